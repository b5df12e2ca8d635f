/** What keeps a VM where it is, whatever the host: asked by `vm migrate`, which refuses with it, and by the plan of a drain. Pure over the view. */
import type { CachedView } from '@wadah/store/cache'
import type { Rec } from '@wadah/store/store'
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

/** What snapshots hold goes along with a disk: bytes, by the volume of the disk that it follows, the one that stands on it or the first of its pool. */
export function heldBytesByTop(view: View, vm: VmRecord): ReadonlyMap<string, number> {
  const held = heldHere(view, vm)
  const sums = new Map<string, number>()
  if (held.length === 0) return sums
  const tops = localDisks(view, vm).map((d) => d.volume)
  const below = new Map(tops.flatMap((t) => chainOf({ view: view as CachedView }, t.id).map((v) => [v.id, t.id])))
  for (const v of held) {
    const top = below.get(v.id) ?? tops.find((t) => t.pool === v.pool)?.id
    if (top !== undefined) sums.set(top, (sums.get(top) ?? 0) + (v.held_bytes ?? v.size_bytes))
  }
  return sums
}

/** What its snapshots hold where another host can't reach it: layers below its disks or beside them, saved RAM. */
export function heldHere(view: Pick<View, 'get' | 'list'>, vm: VmRecord): readonly VolumeRecord[] {
  const tops = new Set(vm.spec.disks.map((d) => d.volume))
  return (heldByVm(view.list(volumeKind)).get(vm.id) ?? []).filter(
    (v) => !tops.has(v.id) && view.get(poolKind, v.pool)?.value.shared !== true,
  )
}

/** A plan asks for every VM: the volumes are gone through once, as long as they are the same. */
const grouped = new WeakMap<readonly Rec<VolumeRecord>[], Map<string, VolumeRecord[]>>()
function heldByVm(volumes: readonly Rec<VolumeRecord>[]): Map<string, VolumeRecord[]> {
  const known = grouped.get(volumes)
  if (known) return known
  const by = new Map<string, VolumeRecord[]>()
  for (const { value } of volumes) {
    if (value.vm === undefined || value.role === undefined) continue
    const own = by.get(value.vm)
    if (own) own.push(value)
    else by.set(value.vm, [value])
  }
  grouped.set(volumes, by)
  return by
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

/** All that goes along changes its place in one commit (`TXN_OPS_MAX`). */
const MOST_HELD = 100

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
  const held = heldHere(view, vm)
  const dropped = held.find((v) => v.dropped)
  if (dropped)
    return {
      detail: `"${name}" still has a layer of a snapshot that was deleted, ${dropped.name}, on its host.`,
      remedy: 'it is tried again every hour; wadah job list says why it failed (a full pool?)',
    }
  if (held.length > MOST_HELD)
    return {
      detail: `The snapshots of "${name}" hold ${held.length} layers and files of RAM on its host: at most ${MOST_HELD} go along.`,
      remedy: `wadah snapshot list ${name}, then wadah snapshot delete ${name} SNAPSHOT`,
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
