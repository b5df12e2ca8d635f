/** Carries out what tree.ts decides, one thing after the other; again after a crash it goes on where it was. */
import { WadahError, fail, toFault } from '@wadah/api/fault'
import { type Check, type Write, exists, put, unchanged } from '@wadah/store/store'
import { type Deps, commit, caughtUp } from '../context.ts'
import { type VmRecord, type VolumeRecord, indexKind, snapshotKind, vmKind, volumeKind } from '../records.ts'
import { chainOf, poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { dropFile, volumeGone, volumeKey } from '../storage/gone.ts'
import { above, nextTidy } from './tree.ts'

const QUICK_TRIES = 20
const AGAIN_MS = 1_000

export type Work = {
  deps: Deps
  signal: AbortSignal
  log: (line: string) => void
  progress: (fraction: number) => void
}

/** Until every layer of the VM that is there is needed. */
export async function tidyLayers(work: Work, vm: string): Promise<void> {
  const { deps } = work
  // One that can't be merged now keeps no other: of another disk, in another pool.
  const failed = new Set<string>()
  let isUnsure = false
  let first: unknown
  for (;;) {
    work.signal.throwIfAborted()
    await caughtUp(deps)
    const record = deps.view.get(vmKind, vm)?.value
    if (!record) return
    const volumes = deps.view.list(volumeKind).map((v) => v.value)
    const snapshots = deps.view.list(snapshotKind).map((s) => s.value)
    const next = nextTidy({ id: vm, disks: record.spec.disks }, volumes, snapshots, failed)
    if (!next) break
    try {
      if (next.kind === 'delete') await drop(deps, next.layer)
      else await merge(work, record, next.layer, next.into)
    } catch (error) {
      if (work.signal.aborted) throw error
      // QEMU may write to the lower one by now, with the guest held until that is recorded.
      if (next.kind === 'merge') isUnsure = true
      failed.add(next.kind === 'delete' ? next.layer.id : next.into.id)
      first ??= error
      work.log(`${next.layer.name}: ${toFault(error).detail}`)
    }
  }
  if (!isUnsure) await goOn(deps, vm)
  if (first !== undefined) throw first
}

/** A guest that was held at the end of a merge, by a daemon that could not let it go on any more. */
async function goOn(deps: Deps, vm: string): Promise<void> {
  if (!deps.machine.running(vm)) return
  const seen = await deps.machine.observe(vm)
  if (seen.state === 'paused' && seen.paused_by === 'job') await deps.machine.resume(vm)
}

async function drop(deps: Deps, layer: VolumeRecord): Promise<void> {
  await dropFile(deps, layer)
  await commit(deps, [], volumeGone(layer))
}

async function merge(work: Work, vm: VmRecord, layer: VolumeRecord, into: VolumeRecord): Promise<void> {
  const { deps } = work
  const { machine, view } = deps
  const disk = vm.spec.disks.find((d) => chainOf(deps, d.volume).some((v) => v.id === layer.id))
  const upon = above(
    view.list(volumeKind).map((v) => v.value),
    layer.id,
  )
  const pool = poolDefinition(poolOf(deps, layer.pool))
  work.log(`merging the layer ${layer.name} into ${into.name}`)
  const { paused } = await machine.snapshots.merge(
    {
      vm: vm.id,
      disk: disk?.name ?? '',
      pool,
      chain: chainOf(deps, layer.id).map((v) => volumeDefinition(deps, v)),
      active: disk !== undefined,
      above: upon.map((v) => volumeDefinition(deps, v)),
      uid: vm.spec.uid,
    },
    { signal: work.signal, log: work.log, progress: (done, total) => work.progress(total > 0 ? done / total : 0) },
  )
  const isHead = disk?.volume === layer.id
  await recorded(work, async () => commit(deps, ...(await merged(deps, vm, layer, into, upon, isHead))))
  if (paused) await machine.resume(vm.id)
  if (!isHead) await machine.volumes.grant(pool, volumeDefinition(deps, into), 'read-only')
}

/**
 * From the moment in which the guest writes to the lower file until that is recorded there is no way but on: it is tried until it
 * works, at first without a pause, for the guest may be held meanwhile.
 */
async function recorded({ deps, signal, log }: Work, work: () => Promise<unknown>): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await work()
      return
    } catch (error) {
      signal.throwIfAborted()
      if (error instanceof WadahError && error.fault.code === 'gone') throw error
      if (tries > QUICK_TRIES) {
        log(`the merge is not recorded yet: ${toFault(error).detail}`)
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
      }
      await caughtUp(deps).catch(() => undefined)
    }
  }
}

/** `into` is from now on what `layer` was, under its name; `layer` has nothing any more that anybody needs. */
async function merged(
  deps: Deps,
  vm: VmRecord,
  layer: VolumeRecord,
  into: VolumeRecord,
  upon: readonly VolumeRecord[],
  isHead: boolean,
): Promise<[Check[], Write[]]> {
  const { view } = deps
  const allocated = async () =>
    deps.machine.volumes.allocatedBytes(poolDefinition(poolOf(deps, into.pool)), into).catch(() => layer.size_bytes)
  const { role: _r, held_bytes: _h, ...bare } = into
  const taker: VolumeRecord = {
    ...bare,
    name: layer.name,
    size_bytes: layer.size_bytes,
    read_only: !isHead,
    ...(isHead ? {} : { role: 'layer' as const, held_bytes: await allocated() }),
  }
  const { making: _m, ...rest } = layer
  const dropped: VolumeRecord = {
    ...rest,
    name: into.name,
    role: 'layer',
    held_bytes: 0,
    read_only: true,
    dropped: true,
  }
  const swap = (volume: string) => (volume === layer.id ? into.id : volume)
  const checks: Check[] = [exists(volumeKind, layer.id), exists(volumeKind, into.id)]
  const writes: Write[] = [
    put(volumeKind, taker.id, taker),
    put(volumeKind, dropped.id, dropped),
    put(indexKind, volumeKey(taker), { schema: 1, holder: taker.id }),
    put(indexKind, volumeKey(dropped), { schema: 1, holder: dropped.id }),
    ...upon.map((v) => put(volumeKind, v.id, { ...v, base: into.id })),
  ]
  for (const { id, value } of view.list(snapshotKind)) {
    if (!value.disks.some((d) => d.volume === layer.id)) continue
    const disks = value.disks.map((d) => ({ ...d, volume: swap(d.volume) }))
    writes.push(put(snapshotKind, id, { ...value, disks }))
  }
  if (isHead) {
    const now = view.get(vmKind, vm.id)
    if (!now) throw fail('gone', 'The VM is not there any more.')
    const disks = now.value.spec.disks.map((d) => ({ ...d, volume: swap(d.volume) }))
    checks.push(unchanged(now))
    writes.push(put(vmKind, vm.id, { ...now.value, spec: { ...now.value.spec, disks } }))
  }
  return [checks, writes]
}
