/** `Idempotency-Key`: a POST that is sent twice is carried out once. */
import { createHash } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import type { Subject } from '@wadah/api/schema/access'
import type { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import { del, type Kind, put, type Store } from '@wadah/store/store'

export type Key = { key: string; digest: string }
export type Reply = { status: number; body: string | null; headers: Record<string, string> }
export type ReplyRecord = { schema: 1; digest: string; at_ms: number; reply?: Reply }
export const replyKind: Kind<ReplyRecord> = { name: 'http/reply' }

const KEEP_MS = 24 * 3_600_000
/** Larger answers are not kept; that the request was carried out is. */
const KEEP_BYTES = 64 * 1024
const PRUNE_EVERY_MS = 3_600_000

/** @throws WadahError `malformed` */
export function parseKey(header: string | string[] | undefined): string | undefined {
  if (header === undefined) return undefined
  if (typeof header === 'string' && /^[\x21-\x7e]{1,128}$/.test(header)) return header
  throw fail('malformed', 'Idempotency-Key must have 1 to 128 visible ASCII characters.', { field: '/Idempotency-Key' })
}

/** The same request gives the same digest, in whatever order its fields were written. */
export function digest(method: string, path: string, query: object, body: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify([method, path, sorted(query), sorted(body)]))
    .digest('base64url')
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .toSorted(([a], [b]) => (a < b ? -1 : 1))
      .map(([k, v]) => [k, sorted(v)]),
  )
}

export type RepliesOptions = { store: Store; view: CachedView; clock: Clock; onTrouble: (error: unknown) => void }

export class Replies {
  #o: RepliesOptions
  #underway = new Set<string>()
  #pruned_ms = Number.NEGATIVE_INFINITY

  constructor(options: RepliesOptions) {
    this.#o = options
  }

  /**
   * Carries out `act` unless it was within 24 hours: then that answer is given again.
   * Only success is kept: what failed may be tried again with the same key.
   * @throws WadahError `busy`, `idempotency_mismatch`, `gone`
   */
  async once(
    subject: Subject,
    { key, digest }: Key,
    act: () => Promise<Reply>,
  ): Promise<{ reply: Reply; replayed: boolean }> {
    const id = createHash('sha256')
      .update(JSON.stringify([subject.kind, subject.id, key]))
      .digest('hex')
    if (this.#underway.has(id)) {
      throw fail('busy', 'A request with this Idempotency-Key is being carried out now; ask again in a moment.')
    }
    this.#underway.add(id)
    try {
      const known = this.#o.view.get(replyKind, id)?.value
      if (known && known.at_ms + KEEP_MS > this.#o.clock.now_ms()) {
        if (known.digest !== digest) throw mismatch()
        if (known.reply) return { reply: known.reply, replayed: true }
        throw fail('gone', 'This request was carried out before; its answer was too large to be kept.')
      }
      const reply = await act()
      // It was carried out: that the answer could not be kept must not make it look otherwise.
      if (reply.status < 300) await this.#keep(id, digest, reply).catch(this.#o.onTrouble)
      return { reply, replayed: false }
    } finally {
      this.#underway.delete(id)
    }
  }

  async #keep(id: string, digest: string, reply: Reply): Promise<void> {
    const now = this.#o.clock.now_ms()
    const small = (reply.body?.length ?? 0) <= KEEP_BYTES
    const value: ReplyRecord = { schema: 1, digest, at_ms: now, ...(small && { reply }) }
    const over = now - this.#pruned_ms < PRUNE_EVERY_MS ? [] : this.#over(now, id)
    if (over.length < 100) this.#pruned_ms = now
    const token = `reply-${id.slice(0, 64)}-${now}`
    const done = await this.#o.store.txn([], [put(replyKind, id, value), ...over.map((r) => del(replyKind, r))], token)
    await this.#o.view.waitFor(done.revision)
  }

  #over(now: number, but: string): string[] {
    const all = this.#o.view.list(replyKind)
    return all
      .filter((r) => r.id !== but && r.value.at_ms + KEEP_MS <= now)
      .slice(0, 100)
      .map((r) => r.id)
  }
}

export const mismatch = () =>
  fail('idempotency_mismatch', 'This Idempotency-Key was used for another request; take a new key for a new request.', {
    field: '/Idempotency-Key',
  })
