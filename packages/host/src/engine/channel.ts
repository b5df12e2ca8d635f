/** A queue that one reader drains: events come faster than they are stored, never slower. */
export class Channel<T> {
  readonly #items: T[] = []
  #wake: (() => void) | undefined
  push(item: T): void {
    this.#items.push(item)
    this.#wake?.()
  }
  async *read(signal: AbortSignal): AsyncGenerator<T> {
    const wake = () => this.#wake?.()
    signal.addEventListener('abort', wake, { once: true })
    while (!signal.aborted) {
      const item = this.#items.shift()
      if (item !== undefined) yield item
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    }
  }
}
