/** Two small tools for doing things at the same time without harm. */

/** One at a time per key, in the order asked for; different keys do not wait for each other. */
export function keyed(): <T>(key: string, work: () => Promise<T>) => Promise<T> {
  const tails = new Map<string, Promise<unknown>>()
  return async (key, work) => {
    const before = tails.get(key) ?? Promise.resolve()
    const mine = before.then(work, work)
    const tail = mine.catch(() => {})
    tails.set(key, tail)
    try {
      return await mine
    } finally {
      if (tails.get(key) === tail) tails.delete(key)
    }
  }
}

/**
 * Calls `work(key)` such that every caller gets a run that began after its call, but callers that come during one share the next:
 * twenty clones at once need two or three fsyncs of their folder, not twenty.
 */
export function coalesce(work: (key: string) => Promise<void>): (key: string) => Promise<void> {
  const state = new Map<string, { running: Promise<void>; next?: Promise<void> }>()
  const start = (key: string): Promise<void> => {
    const running = work(key).finally(() => {
      if (state.get(key)?.running === running && state.get(key)?.next === undefined) state.delete(key)
    })
    state.set(key, { running })
    return running
  }
  return async (key) => {
    const now = state.get(key)
    if (now === undefined) return await start(key)
    now.next ??= now.running.then(
      () => start(key),
      () => start(key),
    )
    return await now.next
  }
}
