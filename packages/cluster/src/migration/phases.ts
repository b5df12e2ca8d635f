/** What a move was doing when: kept with the job, and the place where tests make each phase fail. */
import type { MovePhase, PhaseTimes } from '@wadah/ports/migration'

/** The order in which a source goes through them. */
export const PHASES: readonly MovePhase[] = [
  'offer',
  'prepare',
  'seal',
  'mirror',
  'copy',
  'switch',
  'start',
  'commit',
  'follow',
  'quit',
]

export class Phases {
  readonly #times: PhaseTimes[] = []
  readonly #now_ms: () => number
  readonly #at: ((phase: MovePhase) => void) | undefined

  /** `at` is called as each begins; what it throws is as if the phase had failed. Nothing but a test gives one. */
  constructor(now_ms: () => number, at?: (phase: MovePhase) => void) {
    this.#now_ms = now_ms
    this.#at = at
  }
  begin(phase: MovePhase, at_ms = this.#now_ms()): void {
    const last = this.#times.at(-1)
    if (last) last.end_ms ??= at_ms
    this.#times.push({ phase, begin_ms: at_ms })
    this.#at?.(phase)
  }
  end(at_ms = this.#now_ms()): void {
    const last = this.#times.at(-1)
    if (last) last.end_ms ??= at_ms
  }
  get now(): MovePhase | undefined {
    return this.#times.at(-1)?.phase
  }
  get times(): PhaseTimes[] {
    return this.#times.map((t) => ({ ...t }))
  }
}
