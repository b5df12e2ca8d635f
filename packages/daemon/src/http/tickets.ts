/** One-time tickets for WebSockets: a browser can't send a header there, and a lasting secret does not belong into a URL. */
import { createHash } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import type { ConsoleTarget } from '@wadah/ports/machine'
import type { Identity } from './access/store.ts'

export type Ticket = { vm: string; target: ConsoleTarget; identity: Identity; ends_ms: number }

export const TICKET_MS = 60_000
const TICKETS_MAX = 1024

export class Tickets {
  #random: (bytes: number) => Uint8Array
  #now_ms: () => number
  /** By the SHA-256 of the ticket: looking one up takes the same time for every wrong one. */
  #open = new Map<string, Ticket>()

  /** `now_ms`: a clock that only moves forward. */
  constructor(random: (bytes: number) => Uint8Array, now_ms: () => number) {
    this.#random = random
    this.#now_ms = now_ms
  }

  /** @throws WadahError `rate_limited` when too many wait to be used */
  issue(vm: string, target: ConsoleTarget, identity: Identity): string {
    const now = this.#now_ms()
    for (const [key, ticket] of this.#open) if (ticket.ends_ms <= now) this.#open.delete(key)
    if (this.#open.size >= TICKETS_MAX)
      throw fail('rate_limited', 'Too many console tickets wait to be used; they end within a minute.')
    const secret = Buffer.from(this.#random(32)).toString('base64url')
    this.#open.set(hash(secret), { vm, target, identity, ends_ms: now + TICKET_MS })
    return secret
  }

  /** The ticket, which is then used up; undefined when there is none. */
  redeem(secret: string): Ticket | undefined {
    const key = hash(secret)
    const ticket = this.#open.get(key)
    this.#open.delete(key)
    return ticket && ticket.ends_ms > this.#now_ms() ? ticket : undefined
  }
}

const hash = (secret: string) => createHash('sha256').update(secret).digest('base64url')
