/** The clock QEMU stamps its events with (gettimeofday), to the microsecond: Node's own wall clock has whole milliseconds. */

const SPIN_MS = 3

/** Where the tick of a whole millisecond falls on the monotonic clock: wall time − performance.now(). Takes up to a millisecond. */
export function tickOffset(now_ms: () => number = Date.now, mono_ms: () => number = () => performance.now()): number {
  const begun = mono_ms()
  const first = now_ms()
  for (;;) {
    const wall = now_ms()
    const at = mono_ms()
    if (wall !== first) return wall - at
    // A clock that stands still, as in tests, has no tick.
    if (at - begun > SPIN_MS) return first - begun
  }
}

/**
 * Wall time with fractions. The offset is looked at anew whenever the two clocks have drifted apart by more than a millisecond
 * (somebody set the clock, or NTP slews it), and at `retune`, which is called before each move.
 */
export class Wall {
  #offset = tickOffset()
  readonly now = (): number => {
    const mono = performance.now()
    const at = mono + this.#offset
    const coarse = Date.now()
    // Date.now() is the floor: the fine one lies in [coarse, coarse + 1).
    if (at < coarse - 0.5 || at > coarse + 1.5) {
      this.#offset = coarse + 0.5 - mono
      return coarse + 0.5
    }
    return at
  }
  retune(): void {
    this.#offset = tickOffset()
  }
}
