/** A move that was given up at its ceiling is copied anew: what kept it too long may have been a moment of much work on one of the hosts. */
import { toFault } from '@wadah/api/fault'

/** The guest stands still at each, and never for longer than it may. */
export const CEILING_TRIES = 3

/**
 * Carries `copy` out, again where another try may keep the ceiling (`retryable`, as QEMU's numbers say) and the guest runs on here.
 * @returns what it returned, and how often it was given up before
 * @throws what the last one threw
 */
export async function untilItFits<T>(
  copy: () => Promise<T>,
  { signal, log, tries = CEILING_TRIES }: { signal: AbortSignal; log: (line: string) => void; tries?: number },
): Promise<{ result: T; given_up: number }> {
  for (let given_up = 0; ; given_up++) {
    try {
      return { result: await copy(), given_up }
    } catch (error) {
      const { code, effect, retryable, detail } = toFault(error)
      const mayFit = code === 'does_not_converge' && retryable && effect === 'none'
      if (!mayFit || given_up + 1 >= tries || signal.aborted) throw error
      log(`${detail} It runs on here, and is copied anew (${given_up + 2} of ${tries})`)
    }
  }
}
