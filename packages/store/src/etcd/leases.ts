/**
 * Leases of etcd, kept alive from here. The deadline counts from when the last keepalive that was answered was sent: etcd's own begins
 * later, so whoever holds one gives up first.
 */
import type { Clock } from '../clock.ts'
import { StoreError } from '../errors.ts'
import type { Lease } from '../store.ts'
import { closed, type EtcdClient } from './client.ts'
import { isNoLease } from './errors.ts'

const CALL_MS = 10_000
const AGAIN_MS = 100

type Held = { ttl_ms: number; deadline_ms: number; lost: AbortController; stop: () => void }

export class EtcdLeases {
  readonly #client: EtcdClient
  readonly #clock: Clock
  readonly #held = new Map<string, Held>()
  #closed = false

  constructor(client: EtcdClient, clock: Clock) {
    this.#client = client
    this.#clock = clock
  }

  async grant(ttl_s: number): Promise<Lease> {
    const sent_ms = this.#clock.monotonic_ms()
    const { ID: id } = await this.#client.call<{ ID: string }>('Lease', 'LeaseGrant', { TTL: ttl_s }, sent_ms + CALL_MS)
    // It ends by itself.
    if (this.#closed) throw closed()
    const held: Held = {
      ttl_ms: ttl_s * 1000,
      deadline_ms: sent_ms + ttl_s * 1000,
      lost: new AbortController(),
      stop: () => undefined,
    }
    this.#held.set(id, held)
    this.#schedule(id, held)
    return { id, ttl_s, lost: held.lost.signal, revoke: () => this.#revoke(id) }
  }

  /** @throws StoreError `lease_lost`, of leases of this process as soon as their deadline is over */
  check(id: string): void {
    const held = this.#held.get(id)
    if (held && this.#clock.monotonic_ms() < held.deadline_ms) return
    if (held) this.#drop(id, held)
    throw new StoreError({ kind: 'lease_lost', detail: `the lease ${id} has ended`, remedy: 'Take a new lease first.' })
  }

  /** The store closes: holders can count on nothing any more. */
  close(): void {
    this.#closed = true
    for (const [id, held] of this.#held) this.#drop(id, held)
  }

  #schedule(id: string, held: Held, after_ms = held.ttl_ms / 3): void {
    const left = held.deadline_ms - this.#clock.monotonic_ms()
    held.stop = this.#clock.timer(() => void this.#keep(id, held), Math.min(left, after_ms))
  }

  async #keep(id: string, held: Held): Promise<void> {
    if (this.#held.get(id) !== held) return
    const sent_ms = this.#clock.monotonic_ms()
    if (sent_ms >= held.deadline_ms) return this.#drop(id, held)
    // However long the answer takes: at the deadline it is lost.
    held.stop = this.#clock.timer(() => this.#drop(id, held), held.deadline_ms - sent_ms)
    const ttl_s = await this.#keepAlive(id, held.deadline_ms).catch(() => undefined)
    if (this.#held.get(id) !== held) return
    held.stop()
    if (ttl_s === undefined) return this.#schedule(id, held, AGAIN_MS)
    if (ttl_s <= 0) return this.#drop(id, held)
    held.deadline_ms = sent_ms + held.ttl_ms
    this.#schedule(id, held)
  }

  /** What etcd says is left, seconds; 0: it has ended. */
  async #keepAlive(id: string, deadline_ms: number): Promise<number> {
    const { stream, failed } = this.#client.stream<{ ID: string }, { TTL: string }>('Lease', 'LeaseKeepAlive')
    const patience_ms = Math.min(1_000, deadline_ms - this.#clock.monotonic_ms())
    let silent = false
    try {
      return await new Promise<number>((resolve, reject) => {
        const stop = this.#clock.timer(() => {
          silent = true
          reject(new Error('no answer'))
        }, patience_ms)
        stream.on('data', ({ TTL }) => (stop(), resolve(Number(TTL))))
        stream.on('error', (error) => (stop(), reject(error)))
        stream.on('end', () => (stop(), reject(new Error('the stream ended'))))
        stream.write({ ID: id })
      })
    } catch (error) {
      failed(silent)
      throw error
    } finally {
      stream.cancel()
    }
  }

  async #revoke(id: string): Promise<void> {
    const held = this.#held.get(id)
    if (held) this.#drop(id, held)
    try {
      await this.#client.call('Lease', 'LeaseRevoke', { ID: id }, this.#clock.monotonic_ms() + CALL_MS)
    } catch (error) {
      if (!isNoLease(error)) throw error
    }
  }

  #drop(id: string, held: Held): void {
    if (!this.#held.delete(id)) return
    held.stop()
    held.lost.abort(new StoreError({ kind: 'lease_lost', detail: `the lease ${id} has ended` }))
  }
}
