/**
 * A mirror that also passes on what the guest writes is ended by force only while no such write is under way: QEMU 7.2 frees the map of
 * what is under way before it waits for the guest's writes, which then write into it (block/mirror.c, mirror_run, `immediate_exit`).
 * Seen: `free(): corrupted unsorted chunks`, and the guest gone, in one of twenty cancellations beside a guest that writes all the time.
 */
import type { RunningVm } from './running-vm.ts'

/**
 * Of `blockdev-mirror`: what the guest writes goes to both sides before it is told done; and where one side fails it stands until it is
 * ended here, instead of ending by itself beside a guest that writes.
 */
export const WRITE_BLOCKING = { 'copy-mode': 'write-blocking', 'on-target-error': 'stop', 'on-source-error': 'stop' }

/** Longer than a write takes where anybody still answers. */
const HANGS_MS = 1_000

/**
 * Holds a guest that runs for as long as `work` takes; nobody is told. `cut`: called where the guest's writes do not come to an end by
 * themselves, or, of one that stands already, the work does not.
 */
export async function whileStill<T>(
  running: RunningVm,
  work: () => Promise<T>,
  cut?: () => Promise<unknown>,
): Promise<T> {
  const late = () => setTimeout(() => void cut?.().catch(() => {}), HANGS_MS)
  if ((await running.status()) !== 'running') {
    // One that was stopped for its switch may have a mirror that ends on a dead line.
    const timer = late()
    return work().finally(() => clearTimeout(timer))
  }
  return running.quietly(async () => {
    const timer = late()
    try {
      // QEMU waits here until all that was written is on the disks.
      await running.pause('job').finally(() => clearTimeout(timer))
      return await work()
    } finally {
      await running.resume()
    }
  })
}
