/** The longest delay setTimeout honours; anything above fires at once. */
const MAX_TIMER_MS = 2 ** 31 - 1

export type WaitOptions = { timeout_ms: number; signal?: AbortSignal | undefined }

/**
 * A promise with a deadline and an AbortSignal. `start` gets the two settling functions and returns what must be taken
 * back; that runs exactly once, whichever way the wait ends. When the signal has already fired, `start` is not called.
 */
export function bounded<T>(
  start: (resolve: (value: T) => void, reject: (error: unknown) => void) => (() => void) | undefined,
  options: WaitOptions & { onTimeout: () => Error; onAbort: () => Error },
): Promise<T> {
  const { signal, timeout_ms } = options
  return new Promise<T>((resolve, reject) => {
    if (signal?.aborted) {
      reject(options.onAbort())
      return
    }
    let settled = false
    let undo: (() => void) | undefined
    const settle = (finish: () => void): void => {
      if (settled) return
      settled = true
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
      undo?.()
      finish()
    }
    const abort = (): void => settle(() => reject(options.onAbort()))
    const timer = setTimeout(() => settle(() => reject(options.onTimeout())), clampTimer(timeout_ms))
    signal?.addEventListener('abort', abort, { once: true })
    try {
      undo = start(
        (value) => settle(() => resolve(value)),
        (error) => settle(() => reject(error)),
      )
      // `start` may settle before it returns what to undo.
      if (settled) undo?.()
    } catch (error) {
      settle(() => reject(error))
    }
  })
}

function clampTimer(ms: number): number {
  return Number.isNaN(ms) ? 0 : Math.min(Math.max(ms, 0), MAX_TIMER_MS)
}
