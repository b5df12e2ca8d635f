/** Disks that come in and go out: images from elsewhere and of VMs, exports, volumes that move. */
import { WadahError, fail } from '@wadah/api/fault'
import type { Fault } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type {
  ImageFromVm,
  ImageHardware,
  ImageImport,
  ImageUpload,
  ImportFormat,
  VolumeUpload,
} from '@wadah/api/schema/imports'
import type { Job } from '@wadah/api/schema/job'
import { type Rec, absent, exists, put, unchanged } from '@wadah/store/store'
import { type Deps, find } from './context.ts'
import { type ImportParams, imageVolumeName, importImage, importLimit, templateImage } from './images/import-jobs.ts'
import type { JobEngine } from './jobs/engine.ts'
import { claimKind, hasEnded, jobKind } from './jobs/record.ts'
import type { Pending } from './pending.ts'
import {
  type ImageRecord,
  type PoolRecord,
  type VmRecord,
  type VolumeRecord,
  imageKind,
  imageVolumes,
  indexKeys,
  indexKind,
  isLive,
  poolKind,
  statusKind,
  vmKind,
  volumeKind,
} from './records.ts'
import { poolDefinition } from './resolve.ts'
import type { Caller, TransferService } from './services.ts'
import { diskToMove, moveVolumeLive } from './storage/move-live.ts'
import { changeVolume, exportVolumes, uploadVolume, vmsOf } from './storage/transfer-jobs.ts'
import { submit } from './submit.ts'
import { findPool } from './storage/find-pool.ts'
import { admitVolumes, checkName, poolClosing, refuseRole, workerOn } from './vms/create.ts'

/** More disks than an import can have. */
const MOST_DISKS = 16
const EXPORT_MS = 24 * 3600 * 1000

export class Transfers implements TransferService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #pending: Pending

  constructor(deps: Deps, engine: JobEngine<Deps>, pending: Pending) {
    this.#deps = deps
    this.#engine = engine
    this.#pending = pending
  }

  #pool(caller: Caller, ref: string | undefined): Rec<PoolRecord> {
    const pool = findPool(this.#deps, caller.project, ref, '/pool')
    if (pool.value.closing) throw poolClosing(pool.value)
    return pool
  }

  #image(caller: Caller, name: string, more: Partial<ImageRecord>): ImageRecord {
    const deps = this.#deps
    return {
      schema: 1,
      id: newId('image', deps.randomBytes),
      name,
      project: caller.project,
      created_at: new Date(deps.clock.now_ms()).toISOString(),
      kind: 'disk',
      description: '',
      size_bytes: 0,
      min_memory_mib: 64,
      agent: false,
      ready: false,
      has_kernel: false,
      has_initrd: false,
      ...more,
    }
  }

  async importUrl(caller: Caller, body: ImageImport): Promise<Job> {
    checkName(this.#deps, 'image', caller.project, body.name)
    this.#deps.machine.imports.checkUrl(body.url)
    const pool = this.#pool(caller, body.pool)
    const image = this.#image(caller, body.name, { description: body.description ?? '' })
    return this.#import(caller, image, pool, body, { url: body.url })
  }

  async importFile(
    caller: Caller,
    query: ImageUpload,
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<Job> {
    const deps = this.#deps
    checkName(deps, 'image', caller.project, query.name)
    const pool = this.#pool(caller, query.pool)
    const image = this.#image(caller, query.name, { description: query.description ?? '' })
    return this.#received(pool, image.id, query, data, signal, (staged) =>
      this.#import(caller, image, pool, query, { staged }),
    )
  }

  /** Takes the upload in, then has a job made for it; what came in goes again when there is none. */
  async #received(
    pool: Rec<PoolRecord>,
    id: string,
    { sha256 }: { sha256?: string },
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
    then: (staged: { size_bytes: number; sha256: string }) => Promise<Job>,
  ): Promise<Job> {
    const { imports } = this.#deps.machine
    const where = poolDefinition(pool.value)
    const { file_bytes } = await importLimit(this.#deps, pool.id)
    const options = { limit_bytes: file_bytes, signal, ...(sha256 === undefined ? {} : { sha256 }) }
    const staged = await imports.receive(where, id, data, options)
    try {
      return await then(staged)
    } catch (error) {
      await imports.clean(where, id).catch(() => undefined)
      throw error
    }
  }

  #import(
    caller: Caller,
    image: ImageRecord,
    pool: Rec<PoolRecord>,
    asked: Omit<ImageUpload, 'name'>,
    from: Pick<ImportParams, 'url' | 'staged'>,
  ): Promise<Job> {
    const deps = this.#deps
    const key = indexKeys.name('image', caller.project, image.name)
    const params: ImportParams = {
      image: image.id,
      name: image.name,
      pool: pool.id,
      volumes: Array.from({ length: MOST_DISKS }, () => newId('volume', deps.randomBytes)),
      ...from,
      ...(asked.sha256 === undefined ? {} : { sha256: asked.sha256 }),
      ...(asked.format === undefined ? {} : { format: asked.format }),
      seed: asked.seed ?? 'nocloud',
    }
    return submit(
      deps,
      this.#engine,
      caller,
      importImage,
      params,
      { kind: 'image', id: image.id, name: image.name },
      {
        checks: [absent(indexKind, key), exists(poolKind, pool.id)],
        writes: [put(imageKind, image.id, image), put(indexKind, key, { schema: 1, holder: image.id })],
      },
    )
  }

  async imageFromVm(caller: Caller, body: ImageFromVm): Promise<Job> {
    const deps = this.#deps
    checkName(deps, 'image', caller.project, body.name)
    const vm = find(deps, 'vm', vmKind, caller.project, body.vm, '/vm')
    this.#refuseRunning(vm)
    const { spec } = vm.value
    if (spec.disks.length === 0)
      throw fail('invalid', `"${vm.value.name}" has no disk to make an image of.`, { field: '/vm' })
    const sources = spec.disks.map((d) => find(deps, 'volume', volumeKind, caller.project, d.volume).value)
    const pool = this.#pool(caller, body.pool ?? sources[0]?.pool)
    const was = spec.image === undefined ? undefined : deps.view.get(imageKind, spec.image)?.value
    const image = this.#image(caller, body.name, {
      description: body.description ?? '',
      min_memory_mib: was?.min_memory_mib ?? 64,
      agent: was?.agent ?? false,
      hardware: { cpus: spec.cpus, memory_mib: spec.memory_mib, nics: spec.nics.length },
      seed: spec.seed.kind ?? 'wadah',
      ...(spec.service === undefined ? {} : { service: spec.service }),
      size_bytes: sources.reduce((sum, v) => sum + v.size_bytes, 0),
      notes: [
        `made of the disks of the VM "${vm.value.name}" as they were: names, keys and passwords on them are in it`,
      ],
    })
    const volumes = sources.map((v, i): VolumeRecord => {
      const id = newId('volume', deps.randomBytes)
      return {
        schema: 1,
        id,
        name: imageVolumeName(deps, image, i, id),
        project: caller.project,
        created_at: image.created_at,
        pool: pool.id,
        format: 'qcow2',
        size_bytes: v.size_bytes,
        image: image.id,
        read_only: true,
        making: true,
      }
    })
    const ids = volumes.map((v) => v.id)
    const [first, ...more] = ids
    const record: ImageRecord = {
      ...image,
      ...(first === undefined ? {} : { volume: first }),
      ...(more.length > 0 ? { more_volumes: more } : {}),
    }
    const release = await this.#admit(volumes)
    const keys: [string, string][] = [
      [indexKeys.name('image', caller.project, body.name), image.id],
      ...volumes.map((v): [string, string] => [indexKeys.name('volume', caller.project, v.name), v.id]),
    ]
    return submit(
      deps,
      this.#engine,
      caller,
      templateImage,
      { image: image.id, name: image.name, vm: vm.id, volumes: ids, from: sources.map((v) => v.id) },
      { kind: 'image', id: image.id, name: image.name },
      {
        checks: [...keys.map(([key]) => absent(indexKind, key)), unchanged(vm), exists(poolKind, pool.id)],
        writes: [
          put(imageKind, image.id, record),
          ...volumes.map((v) => put(volumeKind, v.id, v)),
          ...keys.map(([key, holder]) => put(indexKind, key, { schema: 1, holder })),
        ],
        release,
      },
    )
  }

  /** Promises room; the returned function gives it back once the records themselves count. */
  #admit(volumes: VolumeRecord[]): Promise<() => void> {
    return this.#pending.alone(async () => {
      await admitVolumes(this.#deps, this.#pending, volumes, '/pool')
      return this.#pending.take(
        [],
        volumes.map((v) => [`promised/${v.pool}`, v.size_bytes] as const),
      )
    })
  }

  #refuseRunning(vm: Rec<VmRecord>): void {
    const state = this.#deps.view.get(statusKind, vm.id)?.value.state
    const claim = this.#deps.view.get(claimKind, `vm/${vm.id}`)?.value.job
    const { name } = vm.value
    if (claim !== undefined)
      throw fail('busy', `The job ${claim} is at work on "${name}".`, { remedy: `wadah job wait ${claim}` })
    if (state !== 'stopped')
      throw fail('wrong_state', `"${name}" is ${state ?? 'unknown'}; its disks can be copied when it is stopped.`, {
        remedy: `wadah vm shutdown ${name}`,
      })
  }

  /** Its QEMU is there to copy its disks, and no job is at work on it. */
  #runsHere(vm: Rec<VmRecord>): boolean {
    const { view, machine } = this.#deps
    const state = view.get(statusKind, vm.id)?.value.state
    return isLive(state) && view.get(claimKind, `vm/${vm.id}`) === undefined && machine.running(vm.id) !== undefined
  }

  // ---- out

  exportImage(caller: Caller, ref: string, format: ImportFormat, signal: AbortSignal): AsyncIterable<Uint8Array> {
    const image = find(this.#deps, 'image', imageKind, caller.project, ref).value
    if (!image.ready || image.volume === undefined)
      throw fail('wrong_state', `The image "${image.name}" has no disk that is ready.`, {
        remedy: `wadah image show ${image.name}`,
      })
    const volumes = imageVolumes(image).map((id) => find(this.#deps, 'volume', volumeKind, caller.project, id))
    return this.#export(caller, image.name, volumes, format, image.hardware ?? {}, signal)
  }

  downloadVolume(caller: Caller, ref: string, format: ImportFormat, signal: AbortSignal): AsyncIterable<Uint8Array> {
    const rec = find(this.#deps, 'volume', volumeKind, caller.project, ref)
    const volume = rec.value
    if (volume.making) throw fail('busy', `The volume "${volume.name}" is being made.`)
    if (volume.role === 'ram') refuseRole(this.#deps, volume)
    const worker = this.#deps.view.get(claimKind, `volume/${volume.id}`)?.value.job
    if (worker !== undefined)
      throw fail('busy', `The job ${worker} is at work on "${volume.name}".`, { remedy: `wadah job wait ${worker}` })
    const vm = volume.vm === undefined ? undefined : this.#deps.view.get(vmKind, volume.vm)
    if (vm) this.#refuseRunning(vm)
    const spec = vm?.value.spec
    const hardware = spec ? { cpus: spec.cpus, memory_mib: spec.memory_mib, nics: spec.nics.length } : {}
    return this.#export(caller, volume.name, [rec], format, hardware, signal)
  }

  async *#export(
    caller: Caller,
    name: string,
    recs: Rec<VolumeRecord>[],
    format: ImportFormat,
    hardware: ImageHardware,
    signal: AbortSignal,
  ): AsyncIterable<Uint8Array> {
    const deps = this.#deps
    const volumes = recs.map((rec) => rec.value)
    const [first] = volumes as [VolumeRecord]
    const id = newId('volume', deps.randomBytes)
    const pool = find(deps, 'pool', poolKind, caller.project, first.pool)
    const params = {
      export: id,
      name,
      pool: pool.id,
      volumes: volumes.map((v) => v.id),
      vms: vmsOf(deps, volumes),
      format,
      hardware,
    }
    const target = { kind: 'volume', id: first.id, name: first.name }
    // A GET carries no key of its own.
    const { idempotency: _, ...asker } = caller
    const job = await submit(deps, this.#engine, asker, exportVolumes, params, target, {
      checks: recs.map(unchanged),
      // An image's own are never changed, so nobody needs to be kept out.
      writes: volumes.filter((v) => v.image === undefined).map((v) => put(volumeKind, v.id, v)),
    })
    const where = poolDefinition(pool.value)
    try {
      const stop = () => void this.#engine.cancel(job.id).catch(() => undefined)
      signal.addEventListener('abort', stop, { once: true })
      const ended = await this.#engine.wait(job.id, { timeout_ms: EXPORT_MS })
      signal.removeEventListener('abort', stop)
      if (ended.state !== 'done')
        throw new WadahError((ended.fault as Fault | undefined) ?? fail('cancelled', 'The export was cancelled.').fault)
      yield* deps.machine.imports.read(where, id, signal)
    } finally {
      await deps.machine.imports.clean(where, id)
    }
  }

  // ---- volumes

  async uploadVolume(
    caller: Caller,
    query: VolumeUpload,
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<Job> {
    const deps = this.#deps
    checkName(deps, 'volume', caller.project, query.name)
    const pool = this.#pool(caller, query.pool)
    const id = newId('volume', deps.randomBytes)
    return this.#received(pool, id, query, data, signal, (staged) =>
      submit(
        deps,
        this.#engine,
        caller,
        uploadVolume,
        {
          volume: id,
          name: query.name,
          project: caller.project,
          created_at: new Date(deps.clock.now_ms()).toISOString(),
          pool: pool.id,
          staged,
          ...(query.format === undefined ? {} : { format: query.format }),
        },
        { kind: 'volume', id, name: query.name },
        {
          checks: [absent(indexKind, indexKeys.name('volume', caller.project, query.name)), exists(poolKind, pool.id)],
        },
      ),
    )
  }

  async changeVolume(caller: Caller, ref: string, to: { format?: 'qcow2' | 'raw'; pool?: string }): Promise<Job> {
    const deps = this.#deps
    const rec = find(deps, 'volume', volumeKind, caller.project, ref)
    const { value: v } = rec
    if (v.making) throw fail('busy', `The volume "${v.name}" is being made.`)
    refuseRole(deps, v)
    if (v.image !== undefined)
      throw fail('in_use', `"${v.name}" belongs to an image, and stays as it is.`, {
        remedy: `wadah volume clone ${v.name} NAME`,
      })
    const above = deps.view.list(volumeKind).find((o) => o.value.base === v.id)
    if (above)
      throw fail(
        'in_use',
        `The volume "${above.value.name}" is a linked clone of "${v.name}", which must stay where it is.`,
        {
          remedy: `wadah volume delete ${above.value.name}, or wadah volume clone ${v.name} NAME`,
        },
      )
    const worker = workerOn(deps, v.id)
    if (worker !== undefined)
      throw fail('busy', `The job ${worker} is at work on "${v.name}".`, { remedy: `wadah job wait ${worker}` })
    const vm = v.vm === undefined ? undefined : deps.view.get(vmKind, v.vm)
    const disk = vm && this.#runsHere(vm) ? diskToMove(deps, vm.value, v) : undefined
    if (vm && disk === undefined) this.#refuseRunning(vm)
    const pool = to.pool === undefined ? undefined : this.#pool(caller, to.pool)
    const target = { pool: pool?.id ?? v.pool, format: to.format ?? (v.base === undefined ? v.format : 'qcow2') }
    if (target.pool === v.pool && target.format === v.format)
      throw fail('invalid', `"${v.name}" is ${v.format} in that pool already.`, {
        field: to.pool === undefined ? '/format' : '/pool',
      })
    const release = await this.#admit([{ ...v, ...target }])
    const change = { volume: v.id, name: v.name, from: { pool: v.pool, format: v.format }, to: target }
    const about = { kind: 'volume', id: v.id, name: v.name }
    const extra = {
      checks: [unchanged(rec), ...(vm ? [unchanged(vm)] : []), exists(poolKind, target.pool)],
      writes: [put(volumeKind, v.id, v)],
      release,
    }
    const its = vm ? { vm: vm.id, uid: vm.value.spec.uid } : undefined
    if (its && disk !== undefined)
      return submit(deps, this.#engine, caller, moveVolumeLive, { ...change, ...its, disk }, about, extra)
    return submit(deps, this.#engine, caller, changeVolume, { ...change, ...its }, about, extra)
  }
}

/** After a start of the daemon: files of imports that no job is at work on any more. */
export async function sweepImports(deps: Deps): Promise<void> {
  const needed = new Set(
    deps.view
      .list(jobKind)
      .filter(({ value }) => !hasEnded(value))
      .flatMap(({ value }) => {
        const p = value.params as { image?: string; volume?: string; export?: string }
        return [p.image, p.volume, p.export]
      }),
  )
  for (const { value: pool } of deps.view.list(poolKind)) {
    // What lies in a shared one may be another host's.
    if (pool.host !== deps.hostId || pool.shared) continue
    for (const id of await deps.machine.imports.list(poolDefinition(pool)))
      if (!needed.has(id)) await deps.machine.imports.clean(poolDefinition(pool), id)
  }
}
