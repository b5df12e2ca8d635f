/** The time a store (or anything above it) decides by. Injected, so that tests can move it. */
export interface Clock {
  /** Wall clock, milliseconds since 1970. For records and display, never for deadlines: it may jump. */
  now_ms(): number
  /** A clock that only moves forward, milliseconds since an arbitrary start. For deadlines and leases. */
  monotonic_ms(): number
  /** Calls `fn` once after `after_ms`; returns the way to call it off. A timer never keeps the process alive. */
  timer(fn: () => void, after_ms: number): () => void
}

export const systemClock: Clock = {
  now_ms: () => Date.now(),
  monotonic_ms: () => performance.now(),
  timer(fn, after_ms) {
    const timer = setTimeout(fn, after_ms)
    timer.unref()
    return () => clearTimeout(timer)
  },
}

/** Waits `ms` on `clock`; rejects with the signal's reason as soon as it aborts. */
export function sleep(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error)
    const onAbort = () => {
      stop()
      reject(signal?.reason as Error)
    }
    const stop = clock.timer(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}
