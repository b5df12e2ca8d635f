/** One watcher's place in the stream of changes: first read from history, then fed live. */
import type { Change, Progress } from '../store.ts'

/** More than this waiting for a slow watcher, and it goes back to reading history: memory stays bounded. */
const QUEUE_MAX = 10_000

export class Feed {
  readonly prefix: string
  #queue: (Change | Progress)[] = []
  #live = false
  #wake: (() => void) | undefined

  constructor(prefix: string) {
    this.prefix = prefix
  }

  get live(): boolean {
    return this.#live
  }

  /** From here on changes come through `push`. Called in the same turn as the answer that reached the present. */
  start(): void {
    this.#live = true
  }

  /** All changes of one commit, whole revisions, with the revision the store has now. */
  push(changes: readonly Change[], revision: number): void {
    if (!this.#live) return
    for (const change of changes) this.#queue.push(change)
    const end = this.#queue.at(-1)
    if (end?.type === 'progress') this.#queue[this.#queue.length - 1] = { type: 'progress', revision }
    else this.#queue.push({ type: 'progress', revision })
    if (this.#queue.length > QUEUE_MAX) {
      this.#queue = []
      this.#live = false
    }
    this.wake()
  }

  wake(): void {
    this.#wake?.()
    this.#wake = undefined
  }

  /** What has come in; [] when it fell behind or `ended()` became true. */
  async take(ended: () => boolean): Promise<(Change | Progress)[]> {
    while (this.#live && this.#queue.length === 0 && !ended()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const taken = this.#queue
    this.#queue = []
    return taken
  }
}
