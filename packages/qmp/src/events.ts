import type { QmpEvents } from './generated/qmp-types.ts'

export type QmpEventName = keyof QmpEvents

/** One event as QEMU sent it. `timestamp` is QEMU's clock; -1 when it had none (its own convention). */
export type QmpEventOf<K extends QmpEventName> = {
  event: K
  data: QmpEvents[K]
  timestamp: { seconds: number; microseconds: number }
}

/** Any event, narrowed by `event`. A newer QEMU may send names that are not in the generated list. */
export type QmpEvent = { [K in QmpEventName]: QmpEventOf<K> }[QmpEventName]

/** Stands in a stream where `lost` events were dropped because its reader was too slow: look again at what you track. */
export type LostEvents = { event: null; lost: number }

export type QmpListener = (event: QmpEvent) => void

/** Hands events to subscribers. A listener that throws is reported and never breaks the others. */
export class EventHub {
  #listeners = new Set<QmpListener>()
  #endings = new Set<() => void>()
  #ended = false
  #onFault: (error: unknown) => void

  constructor(onFault: (error: unknown) => void) {
    this.#onFault = onFault
  }

  get ended(): boolean {
    return this.#ended
  }

  /** @returns the function that ends the subscription; calling it twice is harmless */
  subscribe(listener: QmpListener, onEnd?: () => void): () => void {
    if (this.#ended) {
      onEnd?.()
      return () => {}
    }
    // A wrapper of its own, so that one function may be subscribed twice.
    const entry: QmpListener = (event) => listener(event)
    this.#listeners.add(entry)
    if (onEnd) this.#endings.add(onEnd)
    return () => {
      this.#listeners.delete(entry)
      if (onEnd) this.#endings.delete(onEnd)
    }
  }

  emit(event: QmpEvent): void {
    for (const listener of Array.from(this.#listeners)) {
      // One that an earlier listener of this very event has unsubscribed is not called any more.
      if (!this.#listeners.has(listener)) continue
      try {
        const result: unknown = listener(event)
        if (result instanceof Promise) result.catch(this.#onFault)
      } catch (error) {
        this.#onFault(error)
      }
    }
  }

  end(): void {
    this.#ended = true
    const endings = [...this.#endings]
    this.#listeners.clear()
    this.#endings.clear()
    for (const ending of endings) ending()
  }

  /**
   * Events from this call on (not from the first `next()`), at most `limit` waiting. When the reader falls behind, newer
   * events are dropped and one `LostEvents` entry with their number stands in their place. Ends when the connection or
   * the signal does, after what was waiting is read.
   */
  stream(signal: AbortSignal, limit: number): AsyncIterableIterator<QmpEvent | LostEvents> {
    type Item = QmpEvent | LostEvents
    const waiting: Item[] = []
    const readers: ((result: IteratorResult<Item>) => void)[] = []
    let done = false
    let unsubscribe = (): void => {}
    const finish = (): void => {
      if (done) return
      done = true
      unsubscribe()
      signal.removeEventListener('abort', finish)
      for (const reader of readers.splice(0)) reader({ done: true, value: undefined })
    }
    unsubscribe = this.subscribe(
      (event) => {
        const reader = readers.shift()
        if (reader) {
          reader({ done: false, value: event })
          return
        }
        const last = waiting.at(-1)
        if (waiting.length < limit) waiting.push(event)
        else if (last?.event === null) last.lost += 1
        else waiting.push({ event: null, lost: 1 })
      },
      () => finish(),
    )
    if (signal.aborted || this.#ended) finish()
    else signal.addEventListener('abort', finish, { once: true })

    return {
      next: () => {
        const value = waiting.shift()
        if (value !== undefined) return Promise.resolve({ done: false, value })
        if (done) return Promise.resolve({ done: true, value: undefined })
        return new Promise((resolve) => readers.push(resolve))
      },
      return: () => {
        waiting.length = 0
        finish()
        return Promise.resolve({ done: true, value: undefined })
      },
      [Symbol.asyncIterator]() {
        return this
      },
    }
  }
}
