/** Taking, reverting to and deleting snapshots, as steps with their way back. docs/snapshots.md says why in this order. */
import { WadahError, fail, toFault } from '@wadah/api/fault'
import type { Freeze } from '@wadah/api/schema/snapshot'
import type { SnapshotTaken } from '@wadah/ports/snapshots'
import { type Check, type Write, del, put, unchanged } from '@wadah/store/store'
import { type Deps, forward, caughtUp } from '../context.ts'
import { type StepContext, defineJob, pivot, step } from '../jobs/define.ts'
import {
  type SnapshotRecord,
  type VmRecord,
  type VolumeRecord,
  indexKeys,
  indexKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { launchRequest, poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { dropFile, storedVolume, volumeGone, volumeKey } from '../storage/gone.ts'
import { launch, makeVolume } from '../vms/jobs.ts'
import { tidyLayers } from './merge.ts'
import { reparent } from './tree.ts'

type Ctx<P> = StepContext<P, Deps>
/** A new topmost layer of a disk, and the one it stands on. */
export type HeadParams = { disk: string; from: string; head: string }
type Common = { vm: string; vm_name: string; snapshot: string; name: string }
export type TakeParams = Common & {
  heads: HeadParams[]
  ram?: string
  freeze: Freeze
  /** It ran when the snapshot was asked for. */
  ran: boolean
}
export type RevertParams = Common & { heads: HeadParams[]; ram: boolean; start: boolean }
export type DeleteParams = Common

function params<P extends Common>(value: unknown): P {
  const p = value as P
  if (typeof p?.vm !== 'string' || typeof p.snapshot !== 'string') throw fail('invalid', 'The job has no snapshot.')
  return p
}
const claims = (p: Common) => [`vm/${p.vm}`]

function volumeOf(deps: Deps, id: string): VolumeRecord {
  const volume = deps.view.get(volumeKind, id)?.value
  if (!volume) throw fail('gone', 'A layer is not there any more.')
  return volume
}

// ---- layers that are made before anything changes

async function makeHeads<P extends Common & { heads: HeadParams[] }>(ctx: Ctx<P>): Promise<void> {
  const { deps, params: p } = ctx
  await caughtUp(deps)
  const uid = deps.view.get(vmKind, p.vm)?.value.spec.uid
  if (uid === undefined) throw fail('gone', 'The VM is not there any more.')
  for (const { from, head } of p.heads)
    await makeVolume(ctx, volumeOf(deps, head), { volume: from, how: 'linked' }, { uid }, () => undefined)
}
async function dropHeads<P extends Common & { heads: HeadParams[] }>({ deps, params: p }: Ctx<P>): Promise<void> {
  for (const { head } of p.heads) await dropStored(deps, head)
}
/** Half-made or whole. */
async function dropStored(deps: Deps, id: string): Promise<void> {
  const volume = await storedVolume(deps, id)
  if (volume) await dropFile(deps, volume)
}
/** Records that were committed with the job go again. */
async function dropVolumeRecords(deps: Deps, ids: readonly string[]): Promise<Write[]> {
  const found = await Promise.all(ids.map((id) => storedVolume(deps, id)))
  return found.flatMap((volume) => (volume ? volumeGone(volume) : []))
}

// ---- take

export const takeSnapshot = defineJob<TakeParams, Deps>(
  'snapshot.create',
  1,
  params<TakeParams>,
  [
    // Its records were committed together with the job; this step is the way back.
    step('reserve', {
      do: () => undefined,
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        const ids = [...p.heads.map((h) => h.head), ...(p.ram === undefined ? [] : [p.ram])]
        ctx.commit([
          ...(await dropVolumeRecords(deps, ids)),
          del(snapshotKind, p.snapshot),
          del(indexKind, indexKeys.snapshot(p.vm, p.name)),
        ])
      },
      volatile: true,
      weight: 0.1,
    }),
    step('layers', {
      do: makeHeads,
      undo: async (ctx) => {
        await dropHeads(ctx)
        if (ctx.params.ram !== undefined) await dropStored(ctx.deps, ctx.params.ram)
      },
      volatile: true,
      weight: 0.3,
    }),
    step('state', {
      do: ({ deps, params: p }) => deps.machine.snapshots.keepState(p.vm, p.snapshot),
      undo: ({ deps, params: p }) => deps.machine.snapshots.dropState(p.vm, p.snapshot),
      volatile: true,
      weight: 0.1,
    }),
    // From here the disks may have their new layers: they then keep them.
    pivot<TakeParams, Deps, SnapshotTaken>('take', { do: take, weight: 5 }),
    step('record', { do: recordTaken, weight: 0.1 }),
    step('seal', {
      do: async ({ deps, params: p }) => {
        await caughtUp(deps)
        for (const { from } of p.heads) {
          const layer = deps.view.get(volumeKind, from)?.value
          if (layer?.role !== 'layer') continue
          const pool = poolDefinition(poolOf(deps, layer.pool))
          await deps.machine.volumes.grant(pool, volumeDefinition(deps, layer), 'read-only')
        }
      },
      volatile: true,
      weight: 0.1,
    }),
  ],
  {
    claims: (p) => [`vm/${p.vm}`, ...p.heads.map((h) => `volume/${h.from}`)],
    lane: 'create',
    result: (output, p) => {
      const taken = output('take') as SnapshotTaken | undefined
      const { ram, ...rest } = taken ?? ({} as Partial<SnapshotTaken>)
      return {
        vm: p.vm,
        snapshot: p.snapshot,
        name: p.name,
        ...rest,
        ...(ram ? { ram_bytes: ram.bytes, save_ms: ram.save_ms } : {}),
      }
    },
  },
)

async function take(ctx: Ctx<TakeParams>): Promise<SnapshotTaken> {
  const { deps, params: p, signal } = ctx
  await caughtUp(deps)
  const ram = p.ram === undefined ? undefined : volumeOf(deps, p.ram)
  const died = (): SnapshotTaken => ({
    consistency: 'crash',
    note: 'the guest ended while it was taken: the disks are as after a power cut',
  })
  try {
    const taken = await deps.machine.snapshots.take(
      {
        vm: p.vm,
        layers: p.heads.map(({ disk, head }) => {
          const volume = volumeOf(deps, head)
          return { disk, pool: poolDefinition(poolOf(deps, volume.pool)), volume: volumeDefinition(deps, volume) }
        }),
        ...(ram
          ? { ram: { pool: poolDefinition(poolOf(deps, ram.pool)), volume: { id: ram.id, format: 'raw' } } }
          : {}),
        freeze: p.freeze,
      },
      { signal, log: ctx.log, progress: (done, total) => ctx.progress(total > 0 ? done / total : 0) },
    )
    return taken.consistency === 'off' && p.ran ? died() : taken
  } catch (error) {
    // A QEMU that is gone may have written to the new layers: only forward is safe. One that runs is asked; what it was told to do
    // and did not answer in time, it may have done. Of one that can't be asked nothing is known: tried again.
    const seen = await deps.machine.observe(p.vm).catch(() => undefined)
    if (p.ran && seen?.state === 'stopped') return died()
    const heads = await deps.machine.snapshots.heads(p.vm).catch(() => null)
    const untouched = heads !== null && !p.heads.some((h) => heads?.[h.disk] === h.head)
    const effect = seen && seen.state !== 'unknown' && untouched ? 'none' : 'unknown'
    throw new WadahError({ ...toFault(error), effect }, error)
  }
}

async function recordTaken(ctx: Ctx<TakeParams>): Promise<void> {
  const { deps, params: p } = ctx
  await caughtUp(deps)
  const taken = ctx.output<SnapshotTaken>('take') as SnapshotTaken
  const vm = deps.view.get(vmKind, p.vm)
  const snapshot = deps.view.get(snapshotKind, p.snapshot)?.value
  if (!vm || !snapshot) throw fail('gone', 'The VM is not there any more.')
  const writes: Write[] = []
  const checks: Check[] = [unchanged(vm)]
  const to = new Map(p.heads.map((h) => [h.from, h.head]))
  for (const { from, head } of p.heads) {
    const [below, top] = [volumeOf(deps, from), volumeOf(deps, head)]
    const pool = poolDefinition(poolOf(deps, below.pool))
    const held_bytes = await deps.machine.volumes.allocatedBytes(pool, below).catch(() => below.size_bytes)
    const { making: _, ...made } = top
    // The head takes the name under which the disk is known.
    const layer: VolumeRecord = { ...below, name: top.name, role: 'layer', read_only: true, held_bytes }
    const upper: VolumeRecord = { ...made, name: below.name }
    writes.push(put(volumeKind, from, layer), put(volumeKind, head, upper))
    writes.push(put(indexKind, volumeKey(layer), { schema: 1, holder: from }))
    writes.push(put(indexKind, volumeKey(upper), { schema: 1, holder: head }))
  }
  if (p.ram !== undefined) {
    const ram = volumeOf(deps, p.ram)
    if (taken.ram) {
      const { making: _, ...made } = ram
      writes.push(put(volumeKind, p.ram, { ...made, size_bytes: taken.ram.bytes, held_bytes: taken.ram.bytes }))
    } else {
      // What came of it before it failed, or before a crash, goes.
      await dropStored(deps, p.ram)
      writes.push(...volumeGone(ram))
    }
  }
  const { ram, ...seen } = taken
  const done: SnapshotRecord = {
    ...snapshot,
    ...seen,
    state: 'ready',
    ...(ram && p.ram !== undefined ? { ram: { volume: p.ram, ...ram } } : {}),
  }
  writes.push(put(snapshotKind, p.snapshot, done))
  const disks = vm.value.spec.disks.map((d) => {
    const head = to.get(d.volume)
    return head === undefined ? d : { ...d, volume: head, serial: d.serial ?? d.volume }
  })
  writes.push(put(vmKind, p.vm, { ...vm.value, at_snapshot: p.snapshot, spec: { ...vm.value.spec, disks } }))
  ctx.commit(writes, checks)
}

// ---- revert

export const revertSnapshot = defineJob<RevertParams, Deps>(
  'snapshot.revert',
  1,
  params<RevertParams>,
  [
    step('reserve', {
      do: () => undefined,
      undo: async (ctx) =>
        ctx.commit(
          await dropVolumeRecords(
            ctx.deps,
            ctx.params.heads.map((h) => h.head),
          ),
        ),
      volatile: true,
      weight: 0.1,
    }),
    step('layers', { do: makeHeads, undo: dropHeads, volatile: true, weight: 0.3 }),
    pivot('switch', { do: (ctx) => forward(() => switchBack(ctx)) }),
    step('state', {
      do: async ({ deps, params: p }) => {
        const vm = deps.view.get(vmKind, p.vm)?.value
        if (vm) await deps.machine.snapshots.restoreState(p.vm, p.snapshot, vm.spec.uid)
      },
      resolve: ({ log }, why) => log(`its UEFI variables are those of now: ${why.detail}`),
      volatile: true,
      weight: 0.1,
    }),
    step<RevertParams, Deps, Started>('launch', {
      do: start,
      when: (p) => p.ram || p.start,
      // Its disks are what they were; that it does not start is told, and can be tried again by hand.
      resolve: async ({ deps, params: p }, why) => {
        await deps.machine.clean(p.vm).catch(() => undefined)
        return { started: false, why: why.detail }
      },
      weight: 3,
    }),
    step('tidy', {
      do: (ctx) => tidyLayers(ctx, ctx.params.vm),
      resolve: ({ log }, why) => log(`layers are left over: ${why.detail}`),
      volatile: true,
    }),
  ],
  {
    claims,
    lane: 'create',
    result: (output, p) => ({
      vm: p.vm,
      snapshot: p.snapshot,
      name: p.name,
      ...((output('launch') as Started | undefined) ?? { started: false }),
    }),
  },
)
type Started = { started: boolean; why?: string; with_ram?: boolean }

async function switchBack(ctx: Ctx<RevertParams>): Promise<void> {
  const { deps, params: p } = ctx
  await deps.machine.stop(p.vm)
  await caughtUp(deps)
  const vm = deps.view.get(vmKind, p.vm)
  const snapshot = deps.view.get(snapshotKind, p.snapshot)?.value
  if (!vm || !snapshot) throw fail('gone', 'The snapshot is not there any more.')
  const { spec } = vm.value
  const writes: Write[] = []
  const disks = p.heads.map(({ disk, head }) => {
    const then = snapshot.spec.disks.find((d) => d.name === disk)
    const now = spec.disks.find((d) => d.name === disk)
    const { making: _, ...upper } = volumeOf(deps, head)
    const old = now ? deps.view.get(volumeKind, now.volume)?.value : undefined
    if (old && old.id !== head) {
      // What was written since goes; its name goes to the new one.
      const dropped: VolumeRecord = { ...old, name: upper.name, role: 'layer', held_bytes: 0, dropped: true }
      writes.push(put(volumeKind, old.id, dropped), put(indexKind, volumeKey(dropped), { schema: 1, holder: old.id }))
      upper.name = old.name
      writes.push(put(indexKind, volumeKey(upper), { schema: 1, holder: head }))
    }
    writes.push(put(volumeKind, head, upper))
    return {
      ...(now ?? then),
      name: disk,
      volume: head,
      limits: now?.limits ?? then?.limits ?? {},
      serial: then?.serial ?? then?.volume ?? head,
    }
  })
  // The machine as it was, with the limits, NICs, addresses and ports that it has now.
  const { cpus, memory_mib, boot, firmware: fw, boot_order: order, cdroms, balloon_mib, serial_ports } = snapshot.spec
  const { firmware: _f, boot_order: _b, cdroms: _c, serial_ports: _s, ...kept } = spec
  const back = {
    ...kept,
    cpus,
    memory_mib,
    boot,
    balloon_mib,
    disks,
    ...(fw ? { firmware: fw } : {}),
    ...(order ? { boot_order: order } : {}),
    ...(cdroms ? { cdroms } : {}),
    ...(serial_ports === undefined ? {} : { serial_ports }),
  }
  const runs = p.ram || p.start
  writes.push(
    put(vmKind, p.vm, {
      ...vm.value,
      at_snapshot: p.snapshot,
      wanted: runs ? ('running' as const) : ('stopped' as const),
      spec: back,
    }),
  )
  ctx.commit(writes, [unchanged(vm)])
}

async function start(ctx: Ctx<RevertParams>): Promise<Started> {
  const { deps, params: p } = ctx
  await caughtUp(deps)
  const ram = p.ram ? deps.view.get(snapshotKind, p.snapshot)?.value.ram : undefined
  const request = (vm: VmRecord) => {
    const plain = launchRequest(deps, vm)
    if (!ram) return plain
    const volume = volumeOf(deps, ram.volume)
    const { boot, qemu_version } = ram
    const pool = poolDefinition(poolOf(deps, volume.pool))
    return { ...plain, restore: { boot, qemu_version, pool, volume: { id: volume.id, format: 'raw' as const } } }
  }
  try {
    await launch({ ...ctx, params: { vm: p.vm, name: p.vm_name } } as never, request)
  } catch (error) {
    // It ends here: trying once more would not help, and the disks are what they were.
    throw new WadahError({ ...toFault(error), retryable: false }, error)
  }
  return { started: true, with_ram: ram !== undefined }
}

// ---- delete

export const deleteSnapshot = defineJob<DeleteParams, Deps>(
  'snapshot.delete',
  1,
  params<DeleteParams>,
  [
    // Marked together with the job; this step is the way back.
    step('mark', {
      do: () => undefined,
      undo: async (ctx) => {
        const rec = await ctx.deps.store.get(snapshotKind, ctx.params.snapshot)
        if (rec) ctx.commit([put(snapshotKind, rec.id, { ...rec.value, state: 'ready' } satisfies SnapshotRecord)])
      },
      volatile: true,
      weight: 0.1,
    }),
    pivot('drop', { do: (ctx) => forward(() => dropSnapshot(ctx)), weight: 0.2 }),
    step('layers', {
      do: (ctx) => tidyLayers(ctx, ctx.params.vm),
      // The snapshot is gone; layers that could not be merged now are at the next one's end.
      resolve: ({ log }, why) => log(`layers are left over: ${why.detail}`),
      volatile: true,
      weight: 3,
    }),
  ],
  { claims, lane: 'create', result: (_output, p) => ({ vm: p.vm, snapshot: p.snapshot, name: p.name }) },
)

async function dropSnapshot(ctx: Ctx<DeleteParams>): Promise<void> {
  const { deps, params: p } = ctx
  await caughtUp(deps)
  const snapshot = deps.view.get(snapshotKind, p.snapshot)?.value
  if (!snapshot) return
  await deps.machine.snapshots.dropState(p.vm, p.snapshot)
  const ram = snapshot.ram && deps.view.get(volumeKind, snapshot.ram.volume)?.value
  if (ram) await dropFile(deps, ram)
  const others = deps.view.list(snapshotKind).map((s) => s.value)
  const vm = deps.view.get(vmKind, p.vm)
  const writes: Write[] = [
    del(snapshotKind, p.snapshot),
    del(indexKind, indexKeys.snapshot(p.vm, p.name)),
    ...(ram ? volumeGone(ram) : []),
    ...reparent(others, snapshot).map((s) => put(snapshotKind, s.id, s)),
  ]
  if (vm?.value.at_snapshot === p.snapshot) {
    const { at_snapshot: _, ...rest } = vm.value
    writes.push(put(vmKind, p.vm, { ...rest, ...(snapshot.parent ? { at_snapshot: snapshot.parent } : {}) }))
    ctx.commit(writes, [unchanged(vm)])
  } else ctx.commit(writes)
}

/** Layers that could not be merged when they should have been; what still can't be waits for the next time. */
export const tidySnapshots = defineJob<Omit<Common, 'snapshot' | 'name'>, Deps>(
  'snapshot.tidy',
  1,
  (value) => value as { vm: string; vm_name: string },
  [
    pivot('layers', {
      do: async (ctx) => {
        await tidyLayers(ctx, ctx.params.vm).catch((error: unknown) => {
          if (ctx.signal.aborted) throw error
          ctx.log(`layers are left over: ${toFault(error).detail}`)
        })
      },
    }),
  ],
  { claims: (p) => [`vm/${p.vm}`], lane: 'create' },
)
