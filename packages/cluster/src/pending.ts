/**
 * What was chosen and is on its way into the store: another request must not choose the same before the view shows it.
 * Only this daemon's own requests meet here; between daemons the index records decide.
 */
export class Pending {
  readonly #keys = new Map<string, number>()
  readonly #sums = new Map<string, number>()

  #tail: Promise<unknown> = Promise.resolve()

  /** Choosing, one request after the other: between looking what is free and taking it nobody else may look. */
  async alone<T>(choose: () => Promise<T>): Promise<T> {
    const mine = this.#tail.then(choose, choose)
    this.#tail = mine.catch(() => undefined)
    return mine
  }

  has(key: string): boolean {
    return this.#keys.has(key)
  }
  sum(key: string): number {
    return this.#sums.get(key) ?? 0
  }
  /** Takes keys and amounts until the returned function is called. */
  take(keys: readonly string[], amounts: readonly (readonly [string, number])[] = []): () => void {
    for (const key of keys) this.#keys.set(key, (this.#keys.get(key) ?? 0) + 1)
    for (const [key, n] of amounts) this.#sums.set(key, this.sum(key) + n)
    let done = false
    return () => {
      if (done) return
      done = true
      for (const key of keys) {
        const left = (this.#keys.get(key) ?? 1) - 1
        if (left > 0) this.#keys.set(key, left)
        else this.#keys.delete(key)
      }
      for (const [key, n] of amounts) this.#sums.set(key, this.sum(key) - n)
    }
  }
}
