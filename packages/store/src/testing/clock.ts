import type { Clock } from '../clock.ts'

/** A clock that stands still until told to move. */
export class FakeClock implements Clock {
  #now = 0
  #next = 0
  #timers = new Map<number, { at: number; fn: () => void }>()
  start_ms: number

  constructor(start_ms = Date.UTC(2026, 0, 1)) {
    this.start_ms = start_ms
  }

  now_ms(): number {
    return this.start_ms + this.#now
  }

  monotonic_ms(): number {
    return this.#now
  }

  timer(fn: () => void, after_ms: number): () => void {
    const id = this.#next++
    this.#timers.set(id, { at: this.#now + Math.max(0, after_ms), fn })
    return () => this.#timers.delete(id)
  }

  get waiting(): number {
    return this.#timers.size
  }

  /** When the next timer is due, in ms from now. */
  next_ms(): number | undefined {
    const due = [...this.#timers.values()].map((t) => t.at)
    return due.length === 0 ? undefined : Math.min(...due) - this.#now
  }

  /** Moves on, calling each timer at its time. */
  advance(ms: number): void {
    const end = this.#now + ms
    for (;;) {
      const due = [...this.#timers].filter(([, t]) => t.at <= end).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0]
      if (!due) break
      this.#timers.delete(due[0])
      this.#now = Math.max(this.#now, due[1].at)
      due[1].fn()
    }
    this.#now = end
  }

  /** The wall clock alone is set, as an administrator or a time service does it; no time passes. */
  jump(ms: number): void {
    this.start_ms += ms
  }

  /** Moves on without calling anything on the way, as when the process stood still: due timers fire late, afterwards. */
  freeze(ms: number): void {
    this.#now += ms
    this.advance(0)
  }
}
