/**
 * Slows down guessing. Each failure beyond a few doubles the wait, counted for where it comes from and, more mildly, for
 * the account it aims at: whoever attacks an account from elsewhere can delay its owner by seconds only.
 */
import { fault } from '@wadah/api/fault'
import { RateLimited } from '../problems.ts'

export type Rule = { free: number; base_ms: number; most_ms: number }
export const SOURCE_RULE: Rule = { free: 5, base_ms: 1000, most_ms: 15 * 60_000 }
/** Everybody on this machine shares one loopback address, the administrator too. */
export const LOOPBACK_RULE: Rule = { free: 10, base_ms: 1000, most_ms: 30_000 }
export const USER_RULE: Rule = { free: 10, base_ms: 500, most_ms: 5000 }

const FORGET_AFTER_MS = 60 * 60_000
const KEYS_MAX = 10_000

type Entry = { failures: number; last_ms: number }

/** How long after the last try the next one is allowed, ms. */
export function delay_ms(failures: number, rule: Rule): number {
  if (failures < rule.free) return 0
  return Math.min(rule.most_ms, rule.base_ms * 2 ** Math.min(30, failures - rule.free))
}

/** IPv6 sources count by their /64: that is what one customer is given. */
export function sourceKey(address: string): string {
  const plain = address.replace(/^::ffff:(?=\d+\.)/, '').replace(/%.*$/, '')
  if (!plain.includes(':')) return plain
  const [head = '', tail] = plain.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const groups =
    tail === undefined
      ? left
      : [...left, ...Array<string>(Math.max(0, 8 - left.length - right.length)).fill('0'), ...right]
  if (plain === '::1') return plain
  return `${groups
    .slice(0, 4)
    .map((g) => g.replace(/^0+(?=.)/, ''))
    .join(':')}::/64`
}

const isLoopback = (source: string) => source === '::1' || source.startsWith('127.') || source === 'local'

export class LoginLimiter {
  #now_ms: () => number
  #entries = new Map<string, Entry>()

  /** `now_ms`: a clock that only moves forward. */
  constructor(now_ms: () => number) {
    this.#now_ms = now_ms
  }

  /**
   * Counts a try as failed until `succeeded` is called, so that many at once cannot slip through.
   * @throws RateLimited when it is too soon; such a try is not counted
   */
  attempt(address: string, user?: string): { succeeded(): void } {
    const source = sourceKey(address)
    const keys: [string, Rule][] = [[`s:${source}`, isLoopback(source) ? LOOPBACK_RULE : SOURCE_RULE]]
    if (user !== undefined) keys.push([`u:${user}`, USER_RULE])
    const now = this.#now_ms()
    const wait_ms = Math.max(...keys.map(([key, rule]) => this.#wait_ms(key, rule, now)))
    if (wait_ms > 0) {
      const wait_s = Math.ceil(wait_ms / 1000)
      const detail = `Too many failed tries; the next one is possible in ${wait_s} s.`
      throw new RateLimited(fault('rate_limited', detail), wait_s)
    }
    for (const [key] of keys) this.#count(key, now)
    return {
      succeeded: () => {
        for (const [key] of keys) this.#entries.delete(key)
      },
    }
  }

  #wait_ms(key: string, rule: Rule, now: number): number {
    const entry = this.#entries.get(key)
    if (!entry) return 0
    if (now - entry.last_ms > FORGET_AFTER_MS) {
      this.#entries.delete(key)
      return 0
    }
    return entry.last_ms + delay_ms(entry.failures, rule) - now
  }

  #count(key: string, now: number): void {
    const failures = (this.#entries.get(key)?.failures ?? 0) + 1
    // Deleted and set anew: the map's first key is then the one untouched for the longest.
    this.#entries.delete(key)
    this.#entries.set(key, { failures, last_ms: now })
    if (this.#entries.size > KEYS_MAX) this.#entries.delete(this.#entries.keys().next().value as string)
  }
}
