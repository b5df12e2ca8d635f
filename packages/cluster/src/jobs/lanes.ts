/** Limits how many jobs of one sort run at once; the others wait in the order they came. */
export class Lanes {
  #limits: Record<string, number>
  #fallback: number
  #lanes = new Map<string, { busy: number; waiting: (() => void)[] }>()

  constructor(limits: Record<string, number>, fallback: number) {
    this.#limits = limits
    this.#fallback = fallback
  }

  /** Resolves with the way to give the place back (once); rejects with the signal's reason. */
  enter(lane: string, signal: AbortSignal): Promise<() => void> {
    const limit = this.#limits[lane] ?? this.#fallback
    let state = this.#lanes.get(lane)
    if (!state) {
      state = { busy: 0, waiting: [] }
      this.#lanes.set(lane, state)
    }
    const { waiting } = state
    const here = state
    let left = false
    const leave = () => {
      if (left) return
      left = true
      const next = waiting.shift()
      if (next) next()
      else here.busy -= 1
    }
    if (signal.aborted) return Promise.reject(signal.reason as Error)
    if (here.busy < limit) {
      here.busy += 1
      return Promise.resolve(leave)
    }
    return new Promise((resolve, reject) => {
      const admit = () => {
        signal.removeEventListener('abort', giveUp)
        resolve(leave)
      }
      const giveUp = () => {
        waiting.splice(waiting.indexOf(admit), 1)
        reject(signal.reason as Error)
      }
      waiting.push(admit)
      signal.addEventListener('abort', giveUp, { once: true })
    })
  }
}
