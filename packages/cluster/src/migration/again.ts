/** A move that was given up at its ceiling is copied anew: what kept it too long may have been a moment of much work on one of the hosts. */
import { toFault } from '@wadah/api/fault'
import { sleep, systemClock } from '@wadah/store/clock'

export const CEILING_TRIES = 3
/** A target of an older release is `busy` with what it takes back of the try before; others wait for that themselves. */
const BUSY_TRIES = 10
const BUSY_MS = 1_000

type Means = { signal: AbortSignal; log: (line: string) => void; tries?: number; busy_ms?: number }

/**
 * Carries `copy` out, again where another try may keep the ceiling (`retryable`, as far as was foreseen) and the guest runs on here.
 * @returns what it returned, and why each before it was given up
 * @throws what ended it: where a later try failed for another reason before anything was begun, what the first was given up for
 */
export async function untilItFits<T>(
  copy: () => Promise<T>,
  { signal, log, tries = CEILING_TRIES, busy_ms = BUSY_MS }: Means,
): Promise<{ result: T; given_up: string[] }> {
  const given_up: string[] = []
  let first: unknown
  for (let busy = 0; ; ) {
    try {
      return { result: await copy(), given_up }
    } catch (error) {
      const { code, effect, retryable, detail } = toFault(error)
      if (effect !== 'none' || signal.aborted || code === 'cancelled') throw error
      if (code === 'busy' && first !== undefined && busy++ < BUSY_TRIES) {
        await sleep(systemClock, busy_ms, signal)
        continue
      }
      if (code !== 'does_not_converge') {
        if (first !== undefined) log(`not copied anew: ${detail}`)
        throw first ?? error
      }
      first ??= error
      if (!retryable || given_up.length + 1 >= tries) throw error
      given_up.push(detail)
      log(`${detail} It is copied anew (${given_up.length + 1} of ${tries})`)
    }
  }
}
