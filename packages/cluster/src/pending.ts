/**
 * What was chosen and is on its way into the store: another request must not choose the same before the view shows it.
 * Only this daemon's own requests meet here; between daemons the index records decide.
 */
export class Pending {
  readonly #keys = new Map<string, number>()
  readonly #sums = new Map<string, number>()

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
