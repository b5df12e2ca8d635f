/** What the API can do with snapshots. Refusals come before anything is written; the work is done by jobs. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import { olderQemu } from '@wadah/api/qemu-version'
import type { Job } from '@wadah/api/schema/job'
import type { Snapshot, SnapshotCreate, SnapshotRevert } from '@wadah/api/schema/snapshot'
import type { VmSpec } from '@wadah/api/schema/vm'
import { type Check, type Rec, type Write, absent, put, unchanged } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind } from '../jobs/record.ts'
import type { Pending } from '../pending.ts'
import {
  type PoolRecord,
  type SnapshotRecord,
  type VmRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  poolKind,
  snapshotKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { chainOf } from '../resolve.ts'
import { findPool } from '../storage/find-pool.ts'
import type { Caller, SnapshotService } from '../services.ts'
import { submit } from '../submit.ts'
import { allow, vmTarget } from '../vms/allow.ts'
import { admitVolumes, freeName, volumeName, workerOn } from '../vms/create.ts'
import { diskKey } from '../vms/view.ts'
import { type HeadParams, deleteSnapshot, revertSnapshot, takeSnapshot, tidySnapshots } from './jobs.ts'
import { nextTidy } from './tree.ts'

const MIB = 2 ** 20
/** Each layer costs a look-up at every read of what lies below it; an image may lie below too. */
const MAX_LAYERS = 32
const MAX_SNAPSHOTS = 64
/** Devices and page tables; the true size is known, and counted, once it is saved. */
const RAM_EXTRA_MIB = 64

export class SnapshotStore implements SnapshotService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #pending: Pending

  constructor(deps: Deps, engine: JobEngine<Deps>, pending: Pending) {
    this.#deps = deps
    this.#engine = engine
    this.#pending = pending
  }

  list(caller: Caller, ref: string): { items: Snapshot[] } {
    const vm = this.#vm(caller, ref)
    return { items: this.of(vm.id).map((s) => viewSnapshot(s, vm.value)) }
  }

  /** Oldest first. */
  of(vm: string): Rec<SnapshotRecord>[] {
    return this.#deps.view
      .list(snapshotKind)
      .filter((s) => s.value.vm === vm)
      .sort((a, b) => a.created - b.created)
  }

  get(caller: Caller, ref: string, snapshot: string): Snapshot {
    const vm = this.#vm(caller, ref)
    return viewSnapshot(this.#find(vm.value, snapshot), vm.value)
  }

  #vm(caller: Caller, ref: string): Rec<VmRecord> {
    return find(this.#deps, 'vm', vmKind, caller.project, ref)
  }

  #find(vm: VmRecord, ref: string): Rec<SnapshotRecord> {
    const { view } = this.#deps
    const id = view.get(indexKind, indexKeys.snapshot(vm.id, ref))?.value.holder ?? ref
    const rec = view.get(snapshotKind, id)
    if (rec?.value.vm === vm.id) return rec
    throw fail('not_found', `"${vm.name}" has no snapshot "${ref}".`, { remedy: `wadah snapshot list ${vm.name}` })
  }

  async create(caller: Caller, ref: string, body: SnapshotCreate, scheduled = false): Promise<Job> {
    const vm = this.#vm(caller, ref)
    allow(this.#deps, caller, vm, 'snapshot')
    const plan = await this.#pending.alone(() => this.#planCreate(vm, body, scheduled))
    const { params, checks, writes, release } = plan
    return submit(this.#deps, this.#engine, caller, takeSnapshot, params, vmTarget(vm.value), {
      checks,
      writes,
      release,
    })
  }

  async #planCreate(vm: Rec<VmRecord>, body: SnapshotCreate, scheduled: boolean) {
    const deps = this.#deps
    const { view } = deps
    const { name: vmName, spec, project } = vm.value
    const there = this.of(vm.id)
    if (there.length >= MAX_SNAPSHOTS)
      throw fail('no_room', `"${vmName}" has ${there.length} snapshots, as many as a VM may have.`, {
        remedy: `wadah snapshot list ${vmName}, then wadah snapshot delete ${vmName} NAME`,
      })
    const name =
      body.name ??
      freeName(
        's',
        there.map((s) => s.value.name),
      )
    if (there.some((s) => s.value.name === name))
      throw fail('name_taken', `"${vmName}" has a snapshot "${name}" already; choose another name.`, {
        field: '/name',
        remedy: `wadah snapshot list ${vmName}`,
      })
    const state = view.get(statusKind, vm.id)?.value
    const runs = deps.machine.running(vm.id) !== undefined
    if (body.ram && !runs)
      throw fail('wrong_state', `"${vmName}" is off: there is no RAM to save.`, {
        field: '/ram',
        remedy: `leave it out, or wadah vm start ${vmName}`,
      })
    if (body.ram && (spec.hostdevs ?? []).length > 0)
      throw fail('wrong_state', `"${vmName}" has devices of the host, whose state nobody can save.`, {
        field: '/ram',
        remedy: 'leave it out',
      })
    if (body.ram && state?.state === 'paused' && state.paused_by === 'io-error')
      throw fail('wrong_state', `"${vmName}" waits for its storage; its RAM can't be saved now.`, {
        field: '/ram',
        remedy: `wadah vm show ${vmName} says for what`,
      })
    if (spec.disks.length === 0 && !body.ram)
      throw fail('invalid', `"${vmName}" has no disk; only its RAM could be saved.`, { field: '/ram' })
    const waiting = runs ? spec.disks.find((d) => !state?.booted?.disks.includes(diskKey(d))) : undefined
    if (waiting)
      throw fail(
        'wrong_state',
        `The disk "${waiting.name}" comes at the next start; until then there is nothing of it.`,
        {
          remedy: `wadah vm shutdown ${vmName}`,
        },
      )
    const id = newId('snapshot', deps.randomBytes)
    const created_at = new Date(deps.clock.now_ms()).toISOString()
    const tops = this.#tops(vm.value, spec)
    const fresh = { id, name, created_at }
    const { heads, volumes } = this.#heads(vm.value, fresh, tops)
    const ram = body.ram ? this.#ramVolume(vm.value, fresh, tops[0]?.volume.value.pool) : undefined
    const made = [...volumes, ...(ram ? [ram] : [])]
    await admitVolumes(deps, this.#pending, made, '/ram')
    const record: SnapshotRecord = {
      schema: 1,
      id,
      name,
      project,
      created_at,
      vm: vm.id,
      description: body.description ?? '',
      state: 'making',
      ...(vm.value.at_snapshot === undefined ? {} : { parent: vm.value.at_snapshot }),
      ...(scheduled ? { scheduled: true as const } : {}),
      spec,
      disks: tops.map((t) => ({ name: t.disk, volume: t.volume.id })),
    }
    const key = indexKeys.snapshot(vm.id, name)
    return {
      params: {
        vm: vm.id,
        vm_name: vmName,
        snapshot: id,
        name,
        heads,
        ...(ram ? { ram: ram.id } : {}),
        freeze: body.freeze ?? ('auto' as const),
        ran: runs,
      },
      ...this.#commit(
        made,
        [unchanged(vm), absent(indexKind, key), ...tops.map((t) => unchanged(t.volume))],
        [
          put(snapshotKind, id, record),
          put(indexKind, key, { schema: 1, holder: id }),
          // Touched: of two who decide about a disk at the same moment one is refused.
          ...tops.map((t) => put(volumeKind, t.volume.id, t.volume.value)),
        ],
      ),
    }
  }

  /** The topmost volume of each disk, free to get something on top. */
  #tops(vm: VmRecord, spec: VmSpec): { disk: string; volume: Rec<VolumeRecord> }[] {
    const deps = this.#deps
    return spec.disks.map(({ name, volume }) => {
      const rec = find(deps, 'volume', volumeKind, vm.project, volume)
      if (chainOf(deps, volume).length > MAX_LAYERS)
        throw fail('no_room', `The disk "${name}" of "${vm.name}" has ${MAX_LAYERS} layers, as many as it may have.`, {
          remedy: `wadah snapshot delete ${vm.name} NAME merges some`,
        })
      const job = workerOn(deps, volume)
      if (job !== undefined)
        throw fail('busy', `The job ${job} is at work on the disk "${name}".`, { remedy: `wadah job wait ${job}` })
      return { disk: name, volume: rec }
    })
  }

  /** New layers on top of volumes; they get the disks' names when they are taken into use. */
  #heads(
    vm: VmRecord,
    snapshot: { id: string; name: string; created_at: string },
    tops: readonly { disk: string; volume: Rec<VolumeRecord> }[],
  ): { heads: HeadParams[]; volumes: VolumeRecord[] } {
    const deps = this.#deps
    const volumes = tops.map(({ disk, volume }): VolumeRecord => {
      const id = newId('volume', deps.randomBytes)
      return {
        schema: 1,
        id,
        name: volumeName(deps, this.#pending, vm.project, vm.name, `${disk}-${snapshot.name}`, id),
        project: vm.project,
        created_at: snapshot.created_at,
        pool: volume.value.pool,
        format: 'qcow2',
        size_bytes: volume.value.size_bytes,
        base: volume.id,
        vm: vm.id,
        read_only: false,
        making: true,
      }
    })
    const heads = tops.map(({ disk, volume }, i) => ({ disk, from: volume.id, head: (volumes[i] as VolumeRecord).id }))
    return { heads, volumes }
  }

  #ramVolume(
    vm: VmRecord,
    snapshot: { id: string; name: string; created_at: string },
    pool: string | undefined,
  ): VolumeRecord {
    const deps = this.#deps
    const id = newId('volume', deps.randomBytes)
    return {
      schema: 1,
      id,
      name: volumeName(deps, this.#pending, vm.project, vm.name, `ram-${snapshot.name}`, id),
      project: vm.project,
      created_at: snapshot.created_at,
      pool: pool ?? findPool(deps, vm.project, undefined, '/ram').id,
      format: 'raw',
      size_bytes: (vm.spec.memory_mib + RAM_EXTRA_MIB) * MIB,
      vm: vm.id,
      read_only: true,
      role: 'ram',
      making: true,
    }
  }

  #commit(made: VolumeRecord[], checks: Check[], writes: Write[]) {
    const deps = this.#deps
    const keys = made.map((v) => indexKeys.name('volume', v.project, v.name))
    const pools = [...new Set(made.map((v) => v.pool))].flatMap((id): Rec<PoolRecord>[] => {
      const pool = deps.view.get(poolKind, id)
      return pool ? [pool] : []
    })
    return {
      checks: [...checks, ...keys.map((k) => absent(indexKind, k)), ...pools.map(unchanged)],
      writes: [
        ...writes,
        ...made.map((v) => put(volumeKind, v.id, v)),
        ...made.map((v, i) => put(indexKind, keys[i] as string, { schema: 1, holder: v.id })),
      ],
      release: this.#pending.take(
        keys,
        made.map((v) => [`promised/${v.pool}`, v.size_bytes] as const),
      ),
    }
  }

  async revert(caller: Caller, ref: string, snapshot: string, body: SnapshotRevert): Promise<Job> {
    const vm = this.#vm(caller, ref)
    allow(this.#deps, caller, vm, 'revert')
    const rec = this.#ready(vm.value, snapshot)
    const plan = await this.#pending.alone(() => this.#planRevert(vm, rec, body))
    const { params, ...commit } = plan
    return submit(this.#deps, this.#engine, caller, revertSnapshot, params, vmTarget(vm.value), commit)
  }

  #ready(vm: VmRecord, ref: string): Rec<SnapshotRecord> {
    const rec = this.#find(vm, ref)
    if (rec.value.state !== 'ready')
      throw fail(
        'busy',
        `The snapshot "${rec.value.name}" is ${rec.value.state === 'making' ? 'being taken' : 'being deleted'}.`,
        {
          remedy: `wadah job list --target ${vm.name}`,
        },
      )
    return rec
  }

  async #planRevert(vm: Rec<VmRecord>, rec: Rec<SnapshotRecord>, body: SnapshotRevert) {
    const deps = this.#deps
    const { value: snapshot } = rec
    const { name: vmName, spec } = vm.value
    const state = deps.view.get(statusKind, vm.id)?.value.state
    if ((state !== 'stopped' || deps.machine.running(vm.id)) && !body.force)
      throw fail('wrong_state', `"${vmName}" is not stopped; what it does now would be lost.`, {
        field: '/force',
        remedy: `wadah vm shutdown ${vmName}, or add --force`,
      })
    if (body.ram && !snapshot.ram)
      throw fail('invalid', `The snapshot "${snapshot.name}" holds no RAM.`, {
        field: '/ram',
        remedy: 'leave it out; --start starts it anew',
      })
    const ram = body.ram ?? snapshot.ram !== undefined
    const more = spec.disks.find((d) => !snapshot.spec.disks.some((s) => s.name === d.name))
    if (more)
      throw fail('wrong_state', `"${vmName}" has a disk "${more.name}" that it did not have then.`, {
        remedy: `wadah vm edit ${vmName} --remove-disk ${more.name} (its volume is kept)`,
      })
    this.#standsOn(snapshot)
    if (ram && snapshot.ram) {
      sameNics(vmName, snapshot.spec, spec)
      await this.#canGoOn(vmName, snapshot.ram, snapshot.spec, spec)
    }
    const created_at = new Date(deps.clock.now_ms()).toISOString()
    const tops = snapshot.disks.map(({ name, volume }) => ({
      disk: name,
      volume: find(deps, 'volume', volumeKind, vm.value.project, volume),
    }))
    const { heads, volumes } = this.#heads(vm.value, { ...snapshot, name: 'now', created_at }, tops)
    await admitVolumes(deps, this.#pending, volumes, '/snapshot')
    return {
      params: {
        vm: vm.id,
        vm_name: vmName,
        snapshot: snapshot.id,
        name: snapshot.name,
        heads,
        ram,
        start: body.start ?? false,
      },
      ...this.#commit(volumes, [unchanged(vm), unchanged(rec), ...this.#layersUnread(vm.value)], []),
    }
  }

  /** Looked at before anything is lost; the machine looks again. */
  async #canGoOn(vm: string, ram: NonNullable<SnapshotRecord['ram']>, then: VmSpec, now: VmSpec): Promise<void> {
    const here = await this.#deps.machine.offers()
    const no = (why: string) =>
      fail('wrong_state', `The RAM of "${vm}" can't be gone on from: ${why}.`, {
        field: '/ram',
        remedy: 'revert without RAM: add --no-ram',
      })
    if (ram.boot.accelerator !== here.accelerator)
      throw no(`it was saved under ${ram.boot.accelerator.toUpperCase()}, and this host has ${here.accelerator}`)
    if (olderQemu(here.qemu_version, ram.qemu_version))
      throw no(`it was saved by QEMU ${ram.qemu_version}, and this host has ${here.qemu_version}`)
    if ((then.tpm ?? false) !== (now.tpm ?? false))
      throw no(then.tpm ? 'it had a TPM then' : 'it has a TPM now, which it did not have then')
    if ((then.hostdevs ?? []).length > 0 || (now.hostdevs ?? []).length > 0) throw no('it has devices of the host')
  }

  /** What else its machine needs must still be there. */
  #standsOn({ name, spec }: SnapshotRecord): void {
    const { view } = this.#deps
    const gone = (what: string) =>
      fail('wrong_state', `The ${what} that the VM of the snapshot "${name}" needs is not there any more.`)
    if (spec.boot.kind === 'kernel' && !view.get(imageKind, spec.boot.image)) throw gone('kernel image')
    for (const { image } of spec.cdroms ?? []) if (image && !view.get(imageKind, image)) throw gone('CD')
  }

  /** Nobody copies a layer that is to be merged: whoever begins to writes its record, and fails or makes this fail. */
  #layersUnread(vm: VmRecord): Check[] {
    const deps = this.#deps
    return deps.view
      .list(volumeKind)
      .filter(({ value }) => value.vm === vm.id)
      .map((rec) => {
        const job = workerOn(deps, rec.id)
        if (job !== undefined)
          throw fail('busy', `The job ${job} is at work on "${rec.value.name}".`, { remedy: `wadah job wait ${job}` })
        return unchanged(rec)
      })
  }

  async delete(caller: Caller, ref: string, snapshot: string): Promise<Job> {
    const vm = this.#vm(caller, ref)
    allow(this.#deps, caller, vm, 'snapshot')
    const rec = this.#ready(vm.value, snapshot)
    const params = { vm: vm.id, vm_name: vm.value.name, snapshot: rec.id, name: rec.value.name }
    return submit(this.#deps, this.#engine, caller, deleteSnapshot, params, vmTarget(vm.value), {
      checks: [unchanged(rec), ...this.#layersUnread(vm.value)],
      writes: [put(snapshotKind, rec.id, { ...rec.value, state: 'deleting' } satisfies SnapshotRecord)],
    })
  }

  /** Merges what earlier jobs could not; undefined when there is nothing to do, or a job is at work. */
  async tidy(caller: Caller, vm: string): Promise<Job | undefined> {
    const { view } = this.#deps
    const record = view.get(vmKind, vm)?.value
    if (!record || view.get(claimKind, `vm/${vm}`)) return undefined
    const volumes = view.list(volumeKind).map((v) => v.value)
    const snapshots = view.list(snapshotKind).map((s) => s.value)
    if (!nextTidy({ id: vm, disks: record.spec.disks }, volumes, snapshots)) return undefined
    const params = { vm, vm_name: record.name }
    return submit(this.#deps, this.#engine, caller, tidySnapshots, params, vmTarget(record), {
      checks: this.#layersUnread(record),
    })
  }
}

/** RAM holds drivers that know their NICs; they must be the ones that are there. */
function sameNics(vm: string, then: VmSpec, now: VmSpec): void {
  const of = ({ nics }: VmSpec) => nics.map((n) => `${n.name} (${n.mac})`).join(', ') || 'none'
  if (of(then) === of(now)) return
  throw fail(
    'wrong_state',
    `"${vm}" had the NICs ${of(then)} then, and has ${of(now)} now: its RAM can't be gone on from.`,
    {
      field: '/ram',
      remedy: 'revert without RAM: add --no-ram',
    },
  )
}

export function viewSnapshot(rec: Rec<SnapshotRecord>, vm: VmRecord): Snapshot {
  const { value: s } = rec
  return {
    id: s.id,
    name: s.name,
    project: s.project,
    generation: rec.version,
    created_at: s.created_at,
    vm: s.vm,
    description: s.description,
    state: s.state,
    ...(s.parent === undefined ? {} : { parent: s.parent }),
    current: vm.at_snapshot === s.id,
    scheduled: s.scheduled ?? false,
    ...(s.consistency === undefined ? {} : { consistency: s.consistency }),
    ...(s.note === undefined ? {} : { note: s.note }),
    ...(s.stall_ms === undefined ? {} : { stall_ms: s.stall_ms }),
    ...(s.frozen_ms === undefined ? {} : { frozen_ms: s.frozen_ms }),
    ...(s.ram === undefined ? {} : { ram_bytes: s.ram.bytes }),
    disks: s.disks,
    cpus: s.spec.cpus,
    memory_mib: s.spec.memory_mib,
  }
}
