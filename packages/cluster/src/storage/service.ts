/** Pools and volumes. */
import { posix } from 'node:path'
import { fail } from '@wadah/api/fault'
import { isId, newId } from '@wadah/api/ids'
import type { Job } from '@wadah/api/schema/job'
import type { Pool, PoolCreate, Volume, VolumeClone, VolumeCreate } from '@wadah/api/schema/storage'
import { type Rec, absent, del, exists, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, made, page } from '../context.ts'
import { type BuildParams, buildImage } from '../images/jobs.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind, hasEnded, jobKind } from '../jobs/record.ts'
import { hostName } from '../members/where.ts'
import type { Pending } from '../pending.ts'
import {
  type PoolRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  poolKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import type { Caller, IfGeneration, ListQuery, PageOf, StorageService } from '../services.ts'
import { submit } from '../submit.ts'
import { factsOf } from './pool-facts.ts'
import { checkShared } from './shared.ts'
import { findPool } from './find-pool.ts'
import { refusedOn } from './proven.ts'
import { admitVolumes, checkName, promisedBytes, refuseRole, workerOn } from '../vms/create.ts'
import { deleteVolumeJob, makeVolumeJob } from './jobs.ts'
import { resizeVolumeJob } from './resize.ts'

const MIB = 1024 * 1024

export class Storage implements StorageService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #pending: Pending

  constructor(deps: Deps, engine: JobEngine<Deps>, pending: Pending) {
    this.#deps = deps
    this.#engine = engine
    this.#pending = pending
  }

  // ---- pools

  async listPools(caller: Caller, q: ListQuery): Promise<PageOf<Pool>> {
    const mine = this.#deps.view.list(poolKind).filter((p) => p.value.project === caller.project)
    const { items, next } = page(mine, (rec) => rec.id, q)
    return {
      items: await Promise.all(items.map((rec) => this.#viewPool(rec))),
      ...(next === undefined ? {} : { next }),
    }
  }

  async #viewPool(rec: Rec<PoolRecord>): Promise<Pool> {
    const { value: p } = rec
    const facts = await factsOf(this.#deps, p)
    const refused = refusedOn(this.#deps.view, p)
    return {
      id: p.id,
      name: p.name,
      project: p.project,
      generation: rec.version,
      created_at: p.created_at,
      kind: p.kind,
      path: p.path,
      overcommit: p.overcommit,
      promised_bytes: promisedBytes(this.#deps, p.id),
      shared: p.shared === true,
      ...(p.shared ? {} : { host: hostName(this.#deps.view, p.host) }),
      ...facts,
      ...(refused.length > 0 ? { refused } : {}),
    }
  }

  getPool(caller: Caller, ref: string): Promise<Pool> {
    return this.#viewPool(find(this.#deps, 'pool', poolKind, caller.project, ref))
  }

  async createPool(caller: Caller, body: PoolCreate): Promise<Pool> {
    const deps = this.#deps
    checkName(deps, 'pool', caller.project, body.name)
    return this.#pending.alone(() => this.#createPool(caller, body))
  }

  /** Alone: one folder is one pool, and no index record says so. */
  async #createPool(caller: Caller, body: PoolCreate): Promise<Pool> {
    const deps = this.#deps
    const path = posix.normalize(body.path).replace(/\/+$/, '') || '/'
    const shared = body.shared === true
    if (shared && !deps.askHost)
      throw fail('wrong_state', 'This host is alone: there is nobody to share a pool with.', {
        field: '/shared',
        remedy: 'leave it out, or: wadah cluster init --address ADDRESS',
      })
    // The same path on another host is another folder, unless it is shared.
    const twin = deps.view
      .list(poolKind)
      .find((p) => p.value.path === path && (shared || p.value.shared === true || p.value.host === deps.hostId))
    if (twin) throw fail('in_use', `${path} is the pool "${twin.value.name}" already.`, { field: '/path' })
    const id = newId('pool', deps.randomBytes)
    const facts = await deps.machine.volumes.openPool({ id, path, direct_io: true })
    const proof = shared ? await checkShared(deps, { id, path, direct_io: facts.direct_io }) : undefined
    const record: PoolRecord = {
      schema: 1,
      id,
      name: body.name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      kind: 'dir',
      path,
      overcommit: body.overcommit ?? 2,
      direct_io: facts.direct_io,
      host: deps.hostId,
      ...(proof ? { shared: true, ...proof } : {}),
    }
    const key = indexKeys.name('pool', caller.project, body.name)
    await commit(
      deps,
      [absent(indexKind, key)],
      [put(poolKind, id, record), put(indexKind, key, { schema: 1, holder: id })],
      indexConflict,
    ).catch(async (error: unknown) => {
      await deps.machine.volumes.closePool(poolDefinition(record)).catch(() => undefined)
      throw error
    })
    return made(() => this.getPool(caller, id))
  }

  async editPool(caller: Caller, ref: string, body: { overcommit: number }, generation: IfGeneration): Promise<Pool> {
    const rec = find(this.#deps, 'pool', poolKind, caller.project, ref)
    checkGeneration(rec, generation)
    await commit(this.#deps, [unchanged(rec)], [put(poolKind, rec.id, { ...rec.value, overcommit: body.overcommit })])
    return this.getPool(caller, rec.id)
  }

  async deletePool(caller: Caller, ref: string, generation: IfGeneration): Promise<void> {
    const deps = this.#deps
    const rec = find(deps, 'pool', poolKind, caller.project, ref)
    checkGeneration(rec, generation)
    const lying = () =>
      deps.view.list(volumeKind).filter(({ value: v }) => v.pool === rec.id || v.moving_to?.pool === rec.id)
    const refuse = () => {
      const volumes = lying()
      if (volumes.length > 0) {
        throw fail(
          'in_use',
          `The pool "${rec.value.name}" has ${volumes.length} volumes, "${volumes[0]?.value.name}" among them.`,
          { remedy: `wadah volume list --pool ${rec.value.name}` },
        )
      }
      const build = deps.view
        .list(jobKind)
        .find(({ value: j }) => j.name === buildImage.name && !hasEnded(j) && (j.params as BuildParams).pool === rec.id)
      if (build) {
        throw fail('in_use', `The job ${build.id} builds an image into the pool "${rec.value.name}".`, {
          remedy: `wadah job wait ${build.id}`,
        })
      }
    }
    refuse()
    // Marked first: whoever was about to put a volume there meets a conflict, and whoever was quicker is seen below.
    await commit(deps, [unchanged(rec)], [put(poolKind, rec.id, { ...rec.value, closing: true })])
    try {
      refuse()
      if (rec.value.shared) await deps.machine.volumes.shared.unmark(poolDefinition(rec.value), 'pool')
      await deps.machine.volumes.closePool(poolDefinition(rec.value))
    } catch (error) {
      const { closing: _, ...open } = rec.value
      await commit(deps, [], [put(poolKind, rec.id, open)])
      throw error
    }
    const { project, name } = rec.value
    await commit(deps, [], [del(poolKind, rec.id), del(indexKind, indexKeys.name('pool', project, name))])
  }

  // ---- volumes

  listVolumes(caller: Caller, q: ListQuery & { pool?: string; vm?: string }): PageOf<Volume> {
    const deps = this.#deps
    const pool = q.pool === undefined ? undefined : find(deps, 'pool', poolKind, caller.project, q.pool, '/pool').id
    const vm =
      q.vm === undefined ? undefined : isId(q.vm) ? q.vm : find(deps, 'vm', vmKind, caller.project, q.vm, '/vm').id
    const matching = deps.view
      .list(volumeKind)
      .filter(
        ({ value: v }) =>
          v.project === caller.project && (pool === undefined || v.pool === pool) && (vm === undefined || v.vm === vm),
      )
    const { items, next } = page(matching, (rec) => rec.id, q)
    return { items: items.map(viewVolume), ...(next === undefined ? {} : { next }) }
  }

  async getVolume(caller: Caller, ref: string): Promise<Volume> {
    const rec = find(this.#deps, 'volume', volumeKind, caller.project, ref)
    const pool = poolDefinition(poolOf(this.#deps, rec.value.pool))
    const definition = volumeDefinition(this.#deps, rec.value)
    const allocated = await this.#deps.machine.volumes.allocatedBytes(pool, definition).catch(() => undefined)
    return { ...viewVolume(rec), ...(allocated === undefined ? {} : { allocated_bytes: allocated }) }
  }

  async createVolume(caller: Caller, body: VolumeCreate): Promise<Job> {
    const deps = this.#deps
    checkName(deps, 'volume', caller.project, body.name)
    const pool = findPool(deps, caller.project, body.pool, '/pool')
    const volume = this.#fresh(caller, body.name, {
      pool: pool.id,
      format: body.format ?? 'qcow2',
      size_bytes: body.size_mib * MIB,
    })
    const release = await this.#admit(volume, '/size_mib')
    return this.#submit(caller, volume, undefined, [pool], release)
  }

  #fresh(
    caller: Caller,
    name: string,
    more: Pick<VolumeRecord, 'pool' | 'format' | 'size_bytes'> & Partial<VolumeRecord>,
  ): VolumeRecord {
    const deps = this.#deps
    return {
      schema: 1,
      id: newId('volume', deps.randomBytes),
      name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      read_only: false,
      making: true,
      ...more,
    }
  }

  #submit(
    caller: Caller,
    volume: VolumeRecord,
    from: { volume: string; how: 'linked' | 'full' } | undefined,
    standsOn: Rec<unknown>[],
    release: () => void,
    more: Parameters<typeof put>[] = [],
  ): Promise<Job> {
    const key = indexKeys.name('volume', volume.project, volume.name)
    return submit(
      this.#deps,
      this.#engine,
      caller,
      makeVolumeJob,
      { volume: volume.id, name: volume.name, ...(from ? { from } : {}) },
      { kind: 'volume', id: volume.id, name: volume.name },
      {
        checks: [absent(indexKind, key), ...standsOn.map(unchanged)],
        writes: [
          put(volumeKind, volume.id, volume),
          put(indexKind, key, { schema: 1, holder: volume.id }),
          ...more.map((m) => put(...m)),
        ],
        release,
      },
    )
  }

  /** Promises the room of a volume; the returned function gives it back once the record itself counts. */
  #admit(volume: VolumeRecord, field: string): Promise<() => void> {
    return this.#pending.alone(async () => {
      await admitVolumes(this.#deps, this.#pending, [volume], field)
      return this.#pending.take([], [[`promised/${volume.pool}`, volume.size_bytes]])
    })
  }

  async cloneVolume(caller: Caller, ref: string, body: VolumeClone): Promise<Job> {
    const deps = this.#deps
    checkName(deps, 'volume', caller.project, body.name)
    const source = find(deps, 'volume', volumeKind, caller.project, ref)
    const how = body.clone ?? 'full'
    this.#readable(source, how)
    const image = source.value.image === undefined ? undefined : deps.view.get(imageKind, source.value.image)
    if (image && !image.value.ready)
      throw fail(
        'wrong_state',
        `"${source.value.name}" belongs to the image "${image.value.name}", which is being deleted.`,
      )
    const pool = findPool(deps, caller.project, body.pool ?? source.value.pool, '/pool')
    if (how === 'linked' && pool.id !== source.value.pool) {
      throw fail('invalid', 'A linked clone lies in the pool of its base. Leave out "pool", or ask for a full clone.', {
        field: '/clone',
      })
    }
    const volume = this.#fresh(caller, body.name, {
      pool: pool.id,
      format: 'qcow2',
      size_bytes: source.value.size_bytes,
      ...(how === 'linked' ? { base: source.id } : {}),
    })
    const release = await this.#admit(volume, '/name')
    // From now on nobody may write what the clone stands on.
    const base: Parameters<typeof put>[] =
      source.value.image === undefined
        ? [[volumeKind, source.id, { ...source.value, read_only: how === 'linked' || source.value.read_only }]]
        : []
    return this.#submit(
      caller,
      volume,
      { volume: source.id, how },
      [pool, source, ...(image ? [image] : [])],
      release,
      base,
    )
  }

  /** A source must not be written while it is read, and the base of a linked clone never again. */
  #readable(source: Rec<VolumeRecord>, how: 'linked' | 'full'): void {
    const { value: v } = source
    if (v.making) throw fail('busy', `The volume "${v.name}" is being made.`)
    if (v.role === 'ram' || how === 'linked') refuseRole(this.#deps, v)
    const job = this.#deps.view.get(claimKind, `volume/${v.id}`)?.value.job
    if (job !== undefined)
      throw fail('busy', `The job ${job} is at work on "${v.name}".`, { remedy: `wadah job wait ${job}` })
    if (v.vm === undefined) return
    const vm = this.#deps.view.get(vmKind, v.vm)?.value
    const name = vm?.name ?? v.vm
    if (how === 'linked') {
      throw fail(
        'in_use',
        `"${v.name}" is a disk of the VM "${name}", which writes it; a linked clone needs a base that nobody writes.`,
        {
          field: '/clone',
          remedy: `wadah volume clone ${v.name} NAME (a full clone), or wadah vm clone ${name} NAME`,
        },
      )
    }
    const state = this.#deps.view.get(statusKind, v.vm)?.value.state
    if (state !== 'stopped' || this.#deps.view.get(claimKind, `vm/${v.vm}`)) {
      throw fail('in_use', `"${v.name}" is a disk of the VM "${name}", which is not stopped.`, {
        remedy: `wadah vm shutdown ${name}`,
      })
    }
  }

  async resizeVolume(caller: Caller, ref: string, body: { size_mib: number }): Promise<Job> {
    const deps = this.#deps
    const rec = find(deps, 'volume', volumeKind, caller.project, ref)
    const { value: v } = rec
    const size_bytes = body.size_mib * MIB
    if (size_bytes <= v.size_bytes) {
      throw fail('invalid', `"${v.name}" has ${v.size_bytes / MIB} MiB; a disk can only grow.`, {
        field: '/size_mib',
        remedy: `wadah volume show ${v.name}`,
      })
    }
    if (v.making) throw fail('busy', `The volume "${v.name}" is being made.`)
    refuseRole(deps, v)
    const above = deps.view.list(volumeKind).find((o) => o.value.base === v.id)
    if (v.image !== undefined || above) {
      throw fail('in_use', `Others stand on "${v.name}": it is never written again.`, {
        remedy: `wadah volume clone ${v.name} NAME`,
      })
    }
    const job = workerOn(deps, v.id)
    if (job !== undefined)
      throw fail('busy', `The job ${job} is at work on "${v.name}".`, { remedy: `wadah job wait ${job}` })
    const release = await this.#admit({ ...v, size_bytes: size_bytes - v.size_bytes }, '/size_mib')
    return submit(
      deps,
      this.#engine,
      caller,
      resizeVolumeJob,
      { volume: v.id, name: v.name, size_bytes, ...(v.vm === undefined ? {} : { vm: v.vm }) },
      { kind: 'volume', id: v.id, name: v.name },
      { checks: [unchanged(rec)], writes: [put(volumeKind, v.id, { ...v, growing_to: size_bytes })], release },
    )
  }

  async deleteVolume(caller: Caller, ref: string, generation: IfGeneration): Promise<Job> {
    const deps = this.#deps
    const rec = find(deps, 'volume', volumeKind, caller.project, ref)
    checkGeneration(rec, generation)
    const { value: v } = rec
    if (v.image !== undefined) {
      const image = deps.view.get(imageKind, v.image)?.value
      throw fail('in_use', `"${v.name}" belongs to the image "${image?.name ?? v.image}".`, {
        remedy: `wadah image delete ${image?.name ?? v.image}`,
      })
    }
    if (v.vm !== undefined) {
      const vm = deps.view.get(vmKind, v.vm)?.value
      if (vm?.spec.disks.some((d) => d.volume === v.id)) {
        throw fail('in_use', `"${v.name}" is a disk of the VM "${vm.name}".`, {
          remedy: `wadah vm edit ${vm.name} --remove-disk NAME, or wadah vm delete ${vm.name}`,
        })
      }
    }
    refuseRole(deps, v)
    const claim = workerOn(deps, v.id)
    if (claim !== undefined)
      throw fail('busy', `The job ${claim} is at work on "${v.name}".`, { remedy: `wadah job wait ${claim}` })
    const refuse = () => {
      const above = deps.view.list(volumeKind).find((o) => o.value.base === v.id)
      if (above)
        throw fail('in_use', `The volume "${above.value.name}" stands on "${v.name}".`, {
          remedy: `wadah volume delete ${above.value.name}`,
        })
    }
    refuse()
    await commit(deps, [unchanged(rec)], [put(volumeKind, v.id, { ...v, making: true })])
    try {
      refuse()
      return await submit(
        deps,
        this.#engine,
        caller,
        deleteVolumeJob,
        { volume: v.id, name: v.name },
        { kind: 'volume', id: v.id, name: v.name },
      )
    } catch (error) {
      await commit(deps, [exists(volumeKind, v.id)], [put(volumeKind, v.id, v)])
      throw error
    }
  }
}

function viewVolume(rec: Rec<VolumeRecord>): Volume {
  const { value: v } = rec
  return {
    id: v.id,
    name: v.name,
    project: v.project,
    generation: rec.version,
    created_at: v.created_at,
    pool: v.pool,
    format: v.format,
    size_bytes: v.size_bytes,
    ...(v.base === undefined ? {} : { base: v.base }),
    ...(v.vm === undefined ? {} : { vm: v.vm }),
    ...(v.image === undefined ? {} : { image: v.image }),
    read_only: v.read_only,
    ...(v.role === undefined ? {} : { role: v.role }),
  }
}
