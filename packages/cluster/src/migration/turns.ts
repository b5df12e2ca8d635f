/** How many VMs come to a host at a time. The others wait, and their sources are told so: nobody takes it for silence. */
import { fail } from '@wadah/api/fault'
import { Lanes } from '../jobs/lanes.ts'
import type { Of, Talk } from './talk.ts'

/** Moves from a host, and to it, at a time, unless its settings say otherwise. */
const MOVES_AT_ONCE = 4
/** As its settings, or its facts, say. */
export const movesAtOnce = (said: { moves_at_once?: number } | undefined): number =>
  said?.moves_at_once ?? MOVES_AT_ONCE

/** Long before a source gives up that has heard nothing. */
const TELL_MS = 1_000
/** As long as a drain waits for a move: those before it may have large disks. */
export const TURN_MS = 6 * 3_600_000
/** Who waits looks this often, in words of the other side, whether there is still something to bring. */
const LOOK_EVERY = 10

export class Turns {
  readonly #most: number
  readonly #lanes: Lanes

  constructor(most: number) {
    this.#most = most
    this.#lanes = new Lanes({}, most)
  }

  /** Resolves with the way to give the place back (once); rejects with the signal's reason. */
  async take(talk: Talk, job: string, signal: AbortSignal): Promise<() => void> {
    let told = false
    const tell = setInterval(() => {
      // A source that goes meanwhile, and says nothing, keeps no place.
      if (!told) talk.beat()
      told = true
      talk.send({ type: 'wait', job, most: this.#most })
    }, TELL_MS)
    try {
      return await this.#lanes.enter('coming', signal)
    } finally {
      clearInterval(tell)
    }
  }
}

/**
 * A source's wait for an answer, begun anew each time it hears that it has to wait. @param waits called once, the first time
 * @param still looks now and then whether what is to come is still there, and throws where it is not
 * @returns the answer, and how long it waited for its turn
 */
export async function whenItsTurn<M extends { type: string }>(
  next: () => Promise<M | Of<'wait'>>,
  waits: (most: number) => void,
  still: () => Promise<void> = async () => {},
): Promise<{ said: Exclude<M, Of<'wait'>>; waited_ms: number }> {
  const begun = performance.now()
  let heard = 0
  for (let waited_ms = 0; ; waited_ms = performance.now() - begun) {
    const said = await next()
    if (said.type !== 'wait') return { said: said as Exclude<M, Of<'wait'>>, waited_ms }
    if (waited_ms === 0) waits((said as Of<'wait'>).most)
    if (heard++ % LOOK_EVERY === 0) await still()
    if (waited_ms > TURN_MS) throw fail('timeout', `The other host had no room for it within ${TURN_MS / 3_600_000} h.`)
  }
}
