/** The record store of one host: an SQLite file, written by a thread of its own. See docs/store.md. */
import { type Clock, systemClock } from '../clock.ts'
import { StoreError } from '../errors.ts'
import {
  type CallOptions,
  type Change,
  type Check,
  type Committed,
  type Compacted,
  type Conflict,
  type Kind,
  type Lease,
  listOf,
  type ListQuery,
  type Page,
  type Progress,
  type Rec,
  type Revision,
  type Store,
  typed,
  splitKey,
  type Write,
} from '../store.ts'
import {
  checkKey,
  checkLimit,
  checkPrefix,
  checkRevision,
  checkTtl,
  decodeCursor,
  encodeCursor,
  encodeTxn,
} from '../validate.ts'
import { corrupt } from './errors.ts'
import { Feed } from './feed.ts'
import { Leases } from './leases.ts'
import { Link } from './link.ts'
import type { ChangeRow, HistoryReply, RangeReply, Row, TxnReply } from './protocol.ts'

export type SqliteOptions = {
  file: string
  clock?: Clock
  /**
   * The thread's program: `worker.ts` or `worker.js` beside this file, unless given. A program bundled into one file bundles
   * `@wadah/store/sqlite/worker` as a second one and names it here.
   */
  workerUrl?: URL
  /** How long to wait for another process to let go of the file, ms; default 3000. */
  lockWait_ms?: number
  /** How much of the past watches and reads can go back to: this many revisions (10,000), none older than this (1 h). */
  keepRevisions?: number
  keepAge_ms?: number
  /** How long a transaction's token is remembered: 10,000 transactions, 10 min. */
  keepTokens?: number
  tokenAge_ms?: number
  /** The database may not grow beyond this, bytes; default: no limit. */
  bytesMax?: number
  /** Called once if the thread dies by itself. The store answers `io` from then on. */
  onDied?: (why: StoreError) => void
}

const TIMEOUT_MS = 30_000
const HISTORY_PAGE = 500
const BACKUP_MS = 600_000

/**
 * Opens the store, making or upgrading it where needed.
 * @throws StoreError `locked`, `corrupt`, `newer`, `io`, `no_room`, each naming the file and the remedy
 */
export async function openSqliteStore(options: SqliteOptions): Promise<SqliteStore> {
  const clock = options.clock ?? systemClock
  const own = import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js'
  // The link may tell of changes before the store stands on it.
  const made: { store?: SqliteStore } = {}
  const link = await Link.open(
    options.workerUrl ?? new URL(own, import.meta.url),
    {
      file: options.file,
      lockWait_ms: options.lockWait_ms ?? 3000,
      keepRevisions: options.keepRevisions ?? 10_000,
      keepAge_ms: options.keepAge_ms ?? 3_600_000,
      keepTokens: options.keepTokens ?? 10_000,
      tokenAge_ms: options.tokenAge_ms ?? 600_000,
      bytesMax: options.bytesMax ?? 0,
      now_ms: clock.now_ms(),
    },
    {
      changes: (rows, revision) => made.store?.publish(rows, revision),
      died: (why) => {
        made.store?.stop(why)
        options.onDied?.(why)
      },
    },
  )
  made.store = new SqliteStore(options.file, clock, link)
  return made.store
}

/** Way to the database: a thread, or for tests this process (`testing/memory.ts`). */
export type DatabaseLink = Pick<Link, 'store' | 'revision' | 'ask' | 'close'>

export class SqliteStore implements Store {
  readonly id: string
  #file: string
  #clock: Clock
  #link: DatabaseLink
  #leases: Leases
  #feeds = new Set<Feed>()
  #ended: StoreError | undefined

  constructor(file: string, clock: Clock, link: DatabaseLink) {
    this.id = link.store
    this.#file = file
    this.#clock = clock
    this.#link = link
    this.#leases = new Leases(clock, (lease) => link.ask({ op: 'revoke', lease, now_ms: clock.now_ms() }, TIMEOUT_MS))
  }

  async current(): Promise<Revision> {
    if (this.#ended) throw this.#ended
    return this.#link.revision
  }

  async get<T>(kind: Kind<T>, id: string, o: CallOptions = {}): Promise<Rec<T> | undefined> {
    const key = checkKey(kind.name, id)
    const row = await this.#link.ask<Row | undefined>({ op: 'get', key }, o.timeout_ms ?? TIMEOUT_MS)
    return row && typed(kind, this.#rec(row))
  }

  list<T>(kind: Kind<T>, q: ListQuery, o?: CallOptions): Promise<Page<T> | Compacted> {
    return listOf(this, kind, q, o)
  }

  async range(prefix: string, q: Omit<ListQuery, 'prefix'>, o: CallOptions = {}): Promise<Page<unknown> | Compacted> {
    checkPrefix(prefix)
    const place = q.cursor === undefined ? undefined : decodeCursor(q.cursor)
    const revision = this.#link.revision
    if (place && place.store !== this.id) return { type: 'compacted', oldest: revision, current: revision }
    const at = place?.at ?? (q.at === undefined ? null : checkRevision(q.at))
    const reply = await this.#link.ask<RangeReply>(
      { op: 'range', prefix, at, after: place?.after ?? null, limit: checkLimit(q.limit) },
      o.timeout_ms ?? TIMEOUT_MS,
    )
    if (reply.type === 'compacted') return reply
    const after = reply.more ? reply.rows.at(-1)?.key : undefined
    return {
      type: 'page',
      items: reply.rows.map((row) => this.#rec(row)),
      revision: reply.revision,
      ...(after !== undefined && { cursor: encodeCursor({ store: this.id, at: reply.revision, after }) }),
    }
  }

  async txn(
    checks: readonly Check[],
    writes: readonly Write[],
    token: string,
    o: CallOptions = {},
  ): Promise<Committed | Conflict> {
    const encoded = encodeTxn(checks, writes, token)
    for (const { lease } of encoded.writes) if (lease !== null) this.#leases.check(lease)
    const reply = await this.#link.ask<TxnReply>(
      { op: 'txn', now_ms: this.#clock.now_ms(), ...encoded },
      o.timeout_ms ?? TIMEOUT_MS,
    )
    if (reply.ok) return reply
    const failed = reply.failed.map(({ index, current }) => ({
      check: checks[index] as Check,
      current: current && this.#rec(current),
    }))
    return { ok: false, revision: reply.revision, failed }
  }

  async *watch(
    prefix: string,
    after: Revision,
    signal: AbortSignal,
  ): AsyncGenerator<Change | Progress | Compacted, void, undefined> {
    checkPrefix(prefix)
    let position = checkRevision(after)
    const feed = new Feed(prefix)
    const ended = () => signal.aborted || this.#ended !== undefined
    const wake = () => feed.wake()
    signal.addEventListener('abort', wake, { once: true })
    this.#feeds.add(feed)
    try {
      while (!signal.aborted) {
        if (this.#ended) throw this.#ended
        if (!feed.live) {
          const reply = await this.#history(feed, position)
          if (signal.aborted) return
          if (reply.type === 'compacted') {
            yield reply
            return
          }
          yield* this.#changes(reply.changes)
          position = reply.revision
          yield { type: 'progress', revision: position }
          continue
        }
        for (const item of await feed.take(ended)) {
          if (signal.aborted) return
          yield item
          position = item.revision
        }
      }
    } finally {
      this.#feeds.delete(feed)
      signal.removeEventListener('abort', wake)
    }
  }

  #history(feed: Feed, after: Revision): Promise<HistoryReply> {
    return this.#link.ask<HistoryReply>(
      { op: 'history', prefix: feed.prefix, after, limit: HISTORY_PAGE },
      TIMEOUT_MS,
      (reply) => {
        if (reply.type === 'changes' && !reply.more) feed.start()
      },
    )
  }

  /**
   * Makes `file`, which must not exist, a copy of the store as of one moment (a store of its own kind, for `restoreStore`).
   * @throws StoreError `no_room`, `io`, `timeout`
   */
  async backup(file: string, o: CallOptions = {}): Promise<void> {
    if (this.#ended) throw this.#ended
    await this.#link.ask({ op: 'backup', file }, o.timeout_ms ?? BACKUP_MS)
  }

  async lease(ttl_s: number): Promise<Lease> {
    checkTtl(ttl_s)
    if (this.#ended) throw this.#ended
    return this.#leases.grant(ttl_s)
  }

  async close(): Promise<void> {
    const closing = this.#link.close()
    this.stop(new StoreError({ kind: 'closed', detail: `the store ${this.#file} was closed` }))
    await closing
  }

  /** For the link: what one commit changed. */
  publish(rows: readonly ChangeRow[], revision: Revision): void {
    if (rows.length === 0) return
    for (const feed of this.#feeds) {
      if (feed.live) feed.push(this.#changes(rows.filter((r) => r.key.startsWith(feed.prefix))), revision)
    }
  }

  /** For the link: nothing more will come. */
  stop(why: StoreError): void {
    this.#ended ??= why
    this.#leases.close()
    for (const feed of this.#feeds) feed.wake()
  }

  #changes(rows: readonly ChangeRow[]): Change[] {
    return rows.map((row, i): Change => {
      const base = {
        revision: row.revision,
        last: rows[i + 1]?.revision !== row.revision,
        ...splitKey(row.key),
        ...(row.before && { before: this.#rec(row.before) }),
      }
      return row.row ? { type: 'put', ...base, rec: this.#rec(row.row) } : { type: 'delete', ...base }
    })
  }

  #rec(row: Row): Rec<unknown> {
    const { created, modified, version } = row
    try {
      return { ...splitKey(row.key), value: JSON.parse(row.value), created, modified, version }
    } catch (error) {
      throw corrupt(this.#file, `the record ${row.key} is not JSON`, error)
    }
  }
}
