/** How much one source may have under way at once. */
export class Sources {
  #most: number
  #counts = new Map<string, number>()

  constructor(most: number) {
    this.#most = most
  }

  /** False when it has enough; otherwise `leave` must follow once. */
  enter(source: string): boolean {
    const count = this.#counts.get(source) ?? 0
    if (count >= this.#most) return false
    this.#counts.set(source, count + 1)
    return true
  }

  leave(source: string): void {
    const count = (this.#counts.get(source) ?? 0) - 1
    if (count > 0) this.#counts.set(source, count)
    else this.#counts.delete(source)
  }
}
