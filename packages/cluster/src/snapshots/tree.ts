/** What stands on what: which layer may go, and how. Pure. */
import type { SnapshotRecord, VolumeRecord } from '../records.ts'

export type Tidy =
  /** Nobody needs it, and nothing stands on it. */
  | { kind: 'delete'; layer: VolumeRecord }
  /** Nobody needs what `into` held by itself: it takes what `layer`, the only one that stands on it, holds. */
  | { kind: 'merge'; layer: VolumeRecord; into: VolumeRecord }

/** The next thing to do for the layers of a VM; undefined when all that are there are needed. */
export function nextTidy(
  vm: { id: string; disks: readonly { volume: string }[] },
  volumes: readonly VolumeRecord[],
  snapshots: readonly SnapshotRecord[],
  /** Layers that were tried and could not be done. */
  failed: ReadonlySet<string> = new Set(),
): Tidy | undefined {
  const needed = new Set([
    ...snapshots.filter((s) => s.vm === vm.id).flatMap((s) => s.disks.map((d) => d.volume)),
    ...vm.disks.map((d) => d.volume),
  ])
  const layers = volumes.filter((v) => v.vm === vm.id && v.role === 'layer' && !needed.has(v.id) && !failed.has(v.id))
  // First what only takes up room.
  const dead = layers.find((l) => l.dropped || above(volumes, l.id).length === 0)
  if (dead) return { kind: 'delete', layer: dead }
  for (const into of layers) {
    const [only, ...more] = above(volumes, into.id)
    if (only && more.length === 0 && only.vm === vm.id && !only.making) return { kind: 'merge', layer: only, into }
  }
  return undefined
}

/** What stands on a layer; one that was given up stands on nothing any more. */
export function above(volumes: readonly VolumeRecord[], id: string): VolumeRecord[] {
  return volumes.filter((v) => v.base === id && !v.dropped)
}

/** A snapshot goes: those that came after it stand on the one before. */
export function reparent(snapshots: readonly SnapshotRecord[], going: SnapshotRecord): SnapshotRecord[] {
  return snapshots
    .filter((s) => s.parent === going.id)
    .map((s) => {
      const { parent: _before, ...rest } = s
      return going.parent === undefined ? rest : { ...rest, parent: going.parent }
    })
}
