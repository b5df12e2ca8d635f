/** What goes of a VM's records with it. */
import { del, put, type Write } from '@wadah/store/store'
import { caughtUp, type Deps } from '../context.ts'
import {
  indexKeys,
  indexKind,
  placementKind,
  secretKind,
  snapshotKind,
  statusKind,
  type VmRecord,
  vmKind,
  type VolumeRecord,
  volumeKind,
} from '../records.ts'
import { indexKeysOf } from './create.ts'

/** Its disks, and what its snapshots hold. What belongs to another VM stays that VM's, whatever this one's spec says. */
export async function volumesOf(deps: Deps, vm: VmRecord): Promise<VolumeRecord[]> {
  await caughtUp(deps)
  const disks = new Set(vm.spec.disks.map((d) => d.volume))
  return deps.view
    .list(volumeKind)
    .flatMap(({ value }) => (value.vm === vm.id && (disks.has(value.id) || value.role) ? [value] : []))
}

/** Writes that remove a VM; of its volumes those that `goes` says, the others are let go. */
export async function dropWrites(deps: Deps, vm: VmRecord, goes: (volume: VolumeRecord) => boolean): Promise<Write[]> {
  const volumes = await volumesOf(deps, vm)
  const going = volumes.filter(goes)
  return [
    ...indexKeysOf(deps, vm, going).map((key) => del(indexKind, key)),
    ...going.map((v) => del(volumeKind, v.id)),
    ...volumes.filter((v) => !goes(v)).map(({ vm: _vm, making: _making, ...free }) => put(volumeKind, free.id, free)),
    ...deps.view
      .list(snapshotKind)
      .flatMap(({ id, value }) =>
        value.vm === vm.id ? [del(snapshotKind, id), del(indexKind, indexKeys.snapshot(vm.id, value.name))] : [],
      ),
    del(secretKind, vm.id),
    del(statusKind, vm.id),
    del(placementKind, vm.id),
    del(vmKind, vm.id),
  ]
}
