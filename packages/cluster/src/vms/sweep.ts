/** Disks of edits that never came to their commit. */
import { put, unchanged } from '@wadah/store/store'
import { type Deps, caughtUp } from '../context.ts'
import { systemCaller } from '../host/children.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { placementKind, volumeKind } from '../records.ts'
import type { Caller } from '../services.ts'
import { deleteVolumeJob } from '../storage/jobs.ts'
import { submit } from '../submit.ts'
import { workerOn } from './create.ts'

const DISK_TIMEOUT_MS = 600_000

/**
 * At a start, before anything can be edited: no edit lives any more that waits for a marked volume. One that is still being made is
 * waited for. Ends when all are gone, or tells why one is not; the next start tries again.
 */
export async function sweepAdded(deps: Deps, engine: JobEngine<Deps>): Promise<void> {
  // The edits of other hosts' VMs are theirs, and may be under way.
  const marked = deps.view
    .list(volumeKind)
    .filter(
      ({ value: v }) =>
        v.added_to !== undefined &&
        (deps.view.get(placementKind, v.added_to)?.value.host ?? deps.hostId) === deps.hostId,
    )
  await Promise.all(
    marked.map(async ({ id }) => {
      const job = workerOn(deps, id)
      if (job !== undefined) await engine.wait(job, { timeout_ms: DISK_TIMEOUT_MS })
      await caughtUp(deps)
      await dropAdded(deps, engine, systemCaller(), id)
    }),
  )
}

/** Deletes a volume that an edit had made, unless it became a disk meanwhile. */
export async function dropAdded(deps: Deps, engine: JobEngine<Deps>, caller: Caller, id: string): Promise<void> {
  const rec = deps.view.get(volumeKind, id)
  if (rec?.value.added_to === undefined) return
  const { name } = rec.value
  await submit(
    deps,
    engine,
    caller,
    deleteVolumeJob,
    { volume: id, name },
    { kind: 'volume', id, name },
    // Whoever takes or changes a volume meets a conflict, and so do we.
    { checks: [unchanged(rec)], writes: [put(volumeKind, id, rec.value)] },
  )
    .then((job) => engine.wait(job.id, { timeout_ms: DISK_TIMEOUT_MS }))
    .catch((error: unknown) => deps.log(`the volume ${name} is left over: ${(error as Error).message}`))
}
