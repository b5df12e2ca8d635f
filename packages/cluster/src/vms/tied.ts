/** What keeps a VM where it is, whatever the host: asked by `vm migrate`, which refuses with it, and by the plan of a drain. Pure over the view. */
import type { CachedView } from '@wadah/store/cache'
import {
  isLive,
  networkKind,
  poolKind,
  snapshotKind,
  type SnapshotRecord,
  statusKind,
  type VmRecord,
  type VolumeRecord,
  volumeKind,
} from '../records.ts'
import { chainOf } from '../resolve.ts'

type View = Pick<CachedView, 'get' | 'list'>
export type Tie = { detail: string; remedy: string }

/** Disks that another host can't open: those whose top layer lies in a pool of one host. */
export function localDisks(view: View, vm: VmRecord): { name: string; volume: VolumeRecord }[] {
  return vm.spec.disks.flatMap(({ name, volume: id }) => {
    const [volume] = chainOf({ view: view as CachedView }, id)
    return volume && view.get(poolKind, volume.pool)?.value.shared !== true ? [{ name, volume }] : []
  })
}

/** What a disk may come to take on another host: its size, and what the layers of snapshots below it take. */
export function bytesWithLayers(deps: { view: View }, top: VolumeRecord): number {
  const [, ...below] = chainOf(deps as { view: CachedView }, top.id)
  return below.reduce(
    (sum, v) => sum + (v.role === 'layer' && v.vm === top.vm ? (v.held_bytes ?? 0) : 0),
    top.size_bytes,
  )
}

/** What its snapshots hold where another host can't reach it: layers below its disks or beside them, saved RAM. */
export function heldHere(view: Pick<View, 'get' | 'list'>, vm: VmRecord): VolumeRecord[] {
  const tops = new Set(vm.spec.disks.map((d) => d.volume))
  return view
    .list(volumeKind)
    .map((v) => v.value)
    .filter((v) => v.vm === vm.id && v.role !== undefined && !tops.has(v.id))
    .filter((v) => view.get(poolKind, v.pool)?.value.shared !== true)
}

export const snapshotsOf = (view: Pick<View, 'list'>, vm: string): SnapshotRecord[] =>
  view
    .list(snapshotKind)
    .map((s) => s.value)
    .filter((s) => s.vm === vm)

/** Whether something of a machine, or of what its snapshots keep of it, lies on its host beside its disks. */
export const hasOwnState = (view: Pick<View, 'list'>, { id, spec }: Pick<VmRecord, 'id' | 'spec'>): boolean =>
  [spec, ...snapshotsOf(view, id).map((s) => s.spec)].some(
    ({ tpm, firmware }) => tpm === true || firmware?.kind === 'uefi',
  )

/** Undefined: it may go, if there is a host for it. */
export function tiedBy(view: View, vm: VmRecord): Tie | undefined {
  const { name } = vm
  const status = view.get(statusKind, vm.id)?.value
  const live = isLive(status?.state)
  if (live && status?.state !== 'running' && !(status?.state === 'paused' && status.paused_by === 'user'))
    return {
      detail: `"${name}" is ${status?.state ?? 'unknown'}; it is moved while it runs, is paused or is stopped.`,
      remedy: `wadah vm show ${name}`,
    }
  const devices = vm.spec.hostdevs ?? []
  if (devices.length > 0)
    return {
      detail: `"${name}" has devices of its host (${devices.map((d) => d.name).join(', ')}).`,
      remedy: `wadah vm edit ${name} --remove-hostdev ${devices[0]?.name ?? ''}`,
    }
  // Its file may still be there, and on the other host nobody could take it away.
  const dropped = heldHere(view, vm).find((v) => v.dropped)
  if (dropped)
    return {
      detail: `"${name}" still has a layer of a snapshot that was deleted, ${dropped.name}, on its host.`,
      remedy: 'it is tried again every hour; wadah job list says why it failed (a full pool?)',
    }
  if (!live) return undefined
  for (const nic of vm.spec.nics) {
    const network = view.get(networkKind, nic.network)?.value
    if (network?.kind !== 'bridge')
      return {
        detail: `The NIC "${nic.name}" of "${name}" is on the ${network?.kind ?? ''} network "${network?.name ?? nic.network}", which each host has for itself: its connections would break.`,
        remedy: `shut it down, then move it; or give it a NIC on a network of the kind bridge`,
      }
  }
  return undefined
}
