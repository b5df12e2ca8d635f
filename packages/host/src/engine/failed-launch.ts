/** The end of a start that came to nothing: `stopped` is told only when nothing of it lives. */
import { WadahError } from '@wadah/api/fault'
import type { Observed } from '@wadah/ports/machine'
import type { RunningVm } from './running-vm.ts'

/** Ends its QEMU, if there is one by now; what is to be told then. */
export async function endFailed(
  there: Pick<RunningVm, 'quit' | 'isAlive' | 'pid'> | undefined,
  error: unknown,
): Promise<Pick<Observed, 'state' | 'reason'>> {
  const why = (error as Error).message
  try {
    await there?.quit()
  } catch (failed) {
    if (there?.isAlive)
      return { state: 'unknown', reason: `its start failed (${why}), and its QEMU stays: ${(failed as Error).message}` }
  }
  // Before there was a monitor: whoever spawned it says that it could not be ended.
  if (!there && error instanceof WadahError && error.fault.effect === 'unknown')
    return { state: 'unknown', reason: why }
  return { state: 'stopped', reason: why }
}
