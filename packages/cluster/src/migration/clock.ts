/** How far the other host's clock is from ours. Pure, but for who sends what. */

export type ClockSample = { t1_ms: number; t2_ms: number; t3_ms: number; t4_ms: number }
export type ClockOffset = { offset_ms: number; round_trip_ms: number; samples: number }

/**
 * Theirs − ours from one exchange, with the time it was on its way (RFC 5905, section 8). The true offset lies within half of the round trip
 * of what is said, however unlike the two ways are.
 */
export function offsetOf({ t1_ms, t2_ms, t3_ms, t4_ms }: ClockSample): { offset_ms: number; round_trip_ms: number } {
  return {
    offset_ms: (t2_ms - t1_ms + (t3_ms - t4_ms)) / 2,
    round_trip_ms: Math.max(0, t4_ms - t1_ms - (t3_ms - t2_ms)),
  }
}

/** Keeps the sample with the least round trip: the one that was held up least. */
export class ClockEstimate {
  #best: { offset_ms: number; round_trip_ms: number } | undefined
  #samples = 0
  add(sample: ClockSample): void {
    if (!Object.values(sample).every(Number.isFinite)) return
    const found = offsetOf(sample)
    this.#samples += 1
    if (!this.#best || found.round_trip_ms < this.#best.round_trip_ms) this.#best = found
  }
  get best(): ClockOffset | undefined {
    return this.#best && { ...this.#best, samples: this.#samples }
  }
}

/** From our STOP to their RESUME, on our clock; how far it may be wrong. */
export function stallOf(
  stop_ms: number,
  their_run_ms: number,
  clock: ClockOffset | undefined,
): { stall_ms: number; error_ms: number } {
  if (!clock) return { stall_ms: their_run_ms - stop_ms, error_ms: Number.POSITIVE_INFINITY }
  return { stall_ms: their_run_ms - clock.offset_ms - stop_ms, error_ms: clock.round_trip_ms / 2 }
}
