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
  const [local] = localDisks(view, vm)
  const snapshot = local && snapshotsOf(view, vm.id)[0]?.name
  // What is copied is what the guest sees now; what snapshots hold would stay behind.
  if (local && snapshot !== undefined)
    return {
      detail: `The disk "${local.name}" of "${name}" lies in a pool of its host only, and its snapshot "${snapshot}" there would not go with it.`,
      remedy: `wadah snapshot delete ${name} ${snapshot}; or keep its disks in a shared pool`,
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
