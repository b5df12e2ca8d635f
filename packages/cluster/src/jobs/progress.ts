/** How far a job is: computed from its steps' weights, told to listeners at most every 100 ms and once at the end of a step. */
import type { Clock } from '@wadah/store/clock'
import type { AnyDefinition, Progress } from './define.ts'

export const PROGRESS_EVERY_MS = 100

export type StepProgress = { fraction: number; done?: number; total?: number; unit?: string }

/** Pure. Anything outside 0 … 1 or not a number is brought inside. */
export function toFraction(p: Progress): StepProgress {
  const within = (n: number) => (n >= 0 ? Math.min(n, 1) : 0)
  if (typeof p === 'number') return { fraction: within(p) }
  return { fraction: p.total > 0 ? within(p.done / p.total) : 0, done: p.done, total: p.total, unit: p.unit ?? 'bytes' }
}

/** Pure: percent of a job of which `ended` steps have ended and the next is `fraction` through. */
export function percentOf(definition: AnyDefinition<never>, ended: number, fraction: number): number {
  const weights = definition.steps.map((s) => s.weight ?? 1)
  const total = weights.reduce((a, b) => a + b, 0)
  const before = weights.slice(0, ended).reduce((a, b) => a + b, 0)
  if (total <= 0) return 0
  return Math.round(((before + fraction * (weights[ended] ?? 0)) / total) * 1000) / 10
}

/** Lets the first call through, then one per interval; the last one is never lost. */
export class Throttle {
  #clock: Clock
  #emit: () => void
  #last = Number.NEGATIVE_INFINITY
  #stop: (() => void) | undefined

  constructor(clock: Clock, emit: () => void) {
    this.#clock = clock
    this.#emit = emit
  }

  call(): void {
    if (this.#stop) return
    const wait = this.#last + PROGRESS_EVERY_MS - this.#clock.monotonic_ms()
    if (wait <= 0) this.now()
    else this.#stop = this.#clock.timer(() => this.now(), wait)
  }

  now(): void {
    this.end()
    this.#last = this.#clock.monotonic_ms()
    this.#emit()
  }

  end(): void {
    this.#stop?.()
    this.#stop = undefined
  }
}
