/**
 * Leases of a store whose holders all live in this process. Keeping one alive is noting the time: nothing is written until it ends.
 * A process that stood still longer than the lease has lost it, also in its own eyes: the deadline is looked at before it is moved.
 */
import { randomUUID } from 'node:crypto'
import type { Clock } from '../clock.ts'
import { StoreError } from '../errors.ts'
import type { Lease } from '../store.ts'

type Held = { ttl_ms: number; kept_ms: number; lost: AbortController; stop: () => void }

export class Leases {
  #held = new Map<string, Held>()
  #clock: Clock
  #end: (lease: string) => Promise<unknown>

  /** `end` deletes in the store what is bound to a lease; it may be repeated. */
  constructor(clock: Clock, end: (lease: string) => Promise<unknown>) {
    this.#clock = clock
    this.#end = end
  }

  grant(ttl_s: number): Lease {
    const id = randomUUID()
    const held: Held = {
      ttl_ms: ttl_s * 1000,
      kept_ms: this.#clock.monotonic_ms(),
      lost: new AbortController(),
      stop: () => undefined,
    }
    this.#held.set(id, held)
    this.#schedule(id, held)
    return { id, ttl_s, lost: held.lost.signal, revoke: () => this.#revoke(id) }
  }

  #schedule(id: string, held: Held): void {
    held.stop = this.#clock.timer(() => {
      if (this.alive(id)) {
        held.kept_ms = this.#clock.monotonic_ms()
        this.#schedule(id, held)
      }
    }, held.ttl_ms / 3)
  }

  /** Looks at the deadline; a lease that is over it ends here. */
  alive(id: string): boolean {
    const held = this.#held.get(id)
    if (!held) return false
    if (this.#clock.monotonic_ms() < held.kept_ms + held.ttl_ms) return true
    this.#drop(id, held)
    this.#endLater(id)
    return false
  }

  /** @throws StoreError `lease_lost` */
  check(id: string): void {
    if (this.alive(id)) return
    throw new StoreError({ kind: 'lease_lost', detail: `the lease ${id} has ended`, remedy: 'Take a new lease first.' })
  }

  async #revoke(id: string): Promise<void> {
    const held = this.#held.get(id)
    if (held) this.#drop(id, held)
    await this.#end(id)
  }

  #drop(id: string, held: Held): void {
    this.#held.delete(id)
    held.stop()
    held.lost.abort(new StoreError({ kind: 'lease_lost', detail: `the lease ${id} has ended` }))
  }

  /** Until it works: a full disk must not leave records behind that stand for a holder who is gone. */
  #endLater(id: string, delay_ms = 100): void {
    this.#end(id).catch((error: unknown) => {
      if (error instanceof StoreError && error.kind === 'closed') return
      this.#clock.timer(() => this.#endLater(id, Math.min(delay_ms * 2, 10_000)), delay_ms)
    })
  }

  /** The store closes: holders can count on nothing any more. */
  close(): void {
    for (const [id, held] of this.#held) this.#drop(id, held)
  }
}
