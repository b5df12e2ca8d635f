/** Volumes that go, file and record: what every job that made or held one does on its way back, or at its end. */
import { type Write, del } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { type VolumeRecord, indexKeys, indexKind, volumeKind } from '../records.ts'
import { poolDefinition, poolOf } from '../resolve.ts'

/** The name under which only one volume can be known. */
export const volumeKey = (volume: VolumeRecord): string => indexKeys.name('volume', volume.project, volume.name)

/** Its record and its name. */
export const volumeGone = (volume: VolumeRecord): Write[] => [
  del(volumeKind, volume.id),
  del(indexKind, volumeKey(volume)),
]

/** Its file, half-made or whole. */
export async function dropFile(deps: Deps, volume: VolumeRecord): Promise<void> {
  await deps.machine.volumes.delete(poolDefinition(poolOf(deps, volume.pool)), volume)
}

/** The record as the store has it; of one that is gone, or was never asked for, undefined. */
export async function storedVolume(deps: Deps, id: string | undefined): Promise<VolumeRecord | undefined> {
  return id === undefined ? undefined : (await deps.store.get(volumeKind, id))?.value
}
