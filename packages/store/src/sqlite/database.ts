/** The record store in one SQLite file, synchronously. Runs in a thread of its own (worker.ts): a commit waits for the disk. */
import { randomUUID } from 'node:crypto'
import { closeSync, constants, lstatSync, openSync } from 'node:fs'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { StoreError, type StoreErrorInit, toPlain } from '../errors.ts'
import { corrupt, FULL, resultCode, translate } from './errors.ts'
import type {
  ChangeRow,
  CompactedReply,
  HistoryReply,
  Outcome,
  RangeReply,
  Row,
  TxnJob,
  TxnReply,
  WorkerOptions,
} from './protocol.ts'
import { copyTo, MIGRATIONS, type Migration, migrate } from './schema.ts'

/** After every key that begins with a prefix: keys are printable ASCII. */
const AFTER_ALL = '\u007f'
/** At least this many revisions are kept, however old: a quiet store does not forget what a client saw last. */
const KEEP_ALWAYS = 1000
/** Forgetting is done this often, in revisions, as part of an ordinary commit. */
const PRUNE_EVERY = 256
const PRUNE_ROWS_MAX = 5000
const CHECK_BYTES_MAX = 64 * 1024 * 1024

/** By revision, not by key (`+` keeps its index away): what is asked for is the newest few of all that is kept. */
const CHANGES = `SELECT revision, seq, key, value, created, version, was_value, was_created, was_modified, was_version
  FROM history WHERE +key >= :prefix AND +key < :to`
export const CHANGES_AFTER = `${CHANGES} AND revision > :after ORDER BY revision, seq LIMIT :n`
export const CHANGES_OF = `${CHANGES} AND revision = :revision AND seq > :seq ORDER BY seq`

type HistoryRow = {
  revision: number
  key: string
  value: string | null
  created: number | null
  version: number | null
  was_value: string | null
  was_created: number | null
  was_modified: number | null
  was_version: number | null
}

/** Pure: everything up to this revision may be forgotten. `aged` is the newest revision older than the age limit. */
export function compactTo(s: { current: number; compacted: number; aged: number; keepRevisions: number }): number {
  const byCount = s.current - s.keepRevisions
  const byAge = Math.min(s.aged, s.current - KEEP_ALWAYS)
  return Math.max(s.compacted, byCount, byAge)
}

export class Database {
  readonly id: string
  #db: DatabaseSync
  #o: WorkerOptions
  #migrations: readonly Migration[]
  #statements = new Map<string, StatementSync>()
  #revision = 0
  #compacted = 0
  /** Up to here changes were handed out by `transact`. */
  #published = 0
  #broken = false

  /** @throws StoreError `locked`, `corrupt`, `newer`, `io`, `no_room` */
  constructor(options: WorkerOptions, migrations: readonly Migration[] = MIGRATIONS) {
    this.#o = options
    this.#migrations = migrations
    try {
      if (options.file !== ':memory:') makeFile(options.file)
      this.#db = this.#open()
      this.id = this.#text("SELECT value FROM meta WHERE name = 'store'")
      this.#published = this.#revision
      this.#endOldLeases()
    } catch (error) {
      throw translate(error, options.file)
    }
  }

  get revision(): number {
    return this.#revision
  }

  get file(): string {
    return this.#o.file
  }

  #open(): DatabaseSync {
    const { file, lockWait_ms, bytesMax } = this.#o
    const db = new DatabaseSync(file, { timeout: lockWait_ms })
    try {
      // Before anything else: then the lock is taken at once, kept until this process ends, and WAL needs no shared memory file.
      db.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL')
      db.exec('PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 1000')
      db.exec('BEGIN IMMEDIATE; COMMIT')
      const { page_size } = db.prepare('PRAGMA page_size').get() as { page_size: number }
      const { page_count } = db.prepare('PRAGMA page_count').get() as { page_count: number }
      if (page_size * page_count <= CHECK_BYTES_MAX) {
        const { quick_check } = db.prepare('PRAGMA quick_check(1)').get() as { quick_check: string }
        if (quick_check !== 'ok') throw corrupt(file, quick_check)
      }
      migrate(db, file, randomUUID(), this.#migrations)
      if (bytesMax > 0) db.exec(`PRAGMA max_page_count = ${Math.ceil(bytesMax / page_size)}`)
    } catch (error) {
      db.close()
      throw error
    }
    this.#db = db
    this.#statements.clear()
    this.#readCounters()
    return db
  }

  #readCounters(): void {
    const rows = this.#sql('SELECT name, n FROM counter').all() as { name: string; n: number }[]
    this.#revision = rows.find((r) => r.name === 'revision')?.n ?? 0
    this.#compacted = rows.find((r) => r.name === 'compacted')?.n ?? 0
  }

  /** Who held a lease lived in the process that had this file open, and is gone. */
  #endOldLeases(): void {
    const leases = this.#sql('SELECT DISTINCT lease FROM record WHERE lease IS NOT NULL').all() as { lease: string }[]
    const jobs = leases.map(({ lease }): TxnJob => ({ op: 'revoke', lease, now_ms: this.#o.now_ms }))
    const failed = this.transact(jobs).outcomes.find((o) => 'error' in o)
    if (failed && 'error' in failed) throw new StoreError(failed.error)
  }

  #sql(text: string): StatementSync {
    const known = this.#statements.get(text)
    if (known) return known
    const made = this.#db.prepare(text)
    this.#statements.set(text, made)
    return made
  }

  #text(sql: string): string {
    return (this.#sql(sql).get() as { value: string }).value
  }

  /**
   * Carries out all of them in one durable commit, each by itself all or nothing. If the commit fails for want of room, each is
   * tried alone, so that a large one can't take small ones with it.
   */
  transact(jobs: readonly TxnJob[]): { outcomes: Outcome<TxnReply>[]; changes: ChangeRow[] } {
    if (jobs.length === 0) return { outcomes: [], changes: [] }
    let outcomes: Outcome<TxnReply>[]
    try {
      this.#mend()
      outcomes = this.#group(jobs)
    } catch (error) {
      if (jobs.length > 1 && translate(error, this.#o.file).kind === 'no_room') {
        outcomes = jobs.map((job) => {
          try {
            return this.#group([job])[0] as Outcome<TxnReply>
          } catch (alone) {
            return { error: this.#plain(alone) }
          }
        })
      } else {
        outcomes = jobs.map(() => ({ error: this.#plain(error) }))
      }
    }
    return { outcomes, changes: this.#unpublished() }
  }

  #plain(error: unknown): StoreErrorInit {
    return toPlain(translate(error, this.#o.file))
  }

  #group(jobs: readonly TxnJob[]): Outcome<TxnReply>[] {
    const before = this.#revision
    const compacted = this.#compacted
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      const outcomes = jobs.map((job) => this.#one(job))
      if (this.#revision !== before) {
        if (Math.floor(this.#revision / PRUNE_EVERY) !== Math.floor(before / PRUNE_EVERY)) this.#forget(jobs)
        this.#sql("UPDATE counter SET n = ? WHERE name = 'revision'").run(this.#revision)
      }
      this.#db.exec('COMMIT')
      return outcomes
    } catch (error) {
      this.#revision = before
      this.#compacted = compacted
      const code = resultCode(error)
      // A failed write or flush says nothing about what is on disk: open anew and look.
      if (code !== FULL) this.#broken = true
      try {
        if (this.#db.isTransaction) this.#db.exec('ROLLBACK')
      } catch {
        this.#broken = true
      }
      throw error
    }
  }

  #mend(): void {
    if (!this.#broken) return
    if (this.#db.isOpen) this.#db.close()
    this.#open()
    this.#broken = false
  }

  #one(job: TxnJob): Outcome<TxnReply> {
    const before = this.#revision
    this.#db.exec('SAVEPOINT one')
    try {
      const value = job.op === 'txn' ? this.#txn(job) : this.#revoke(job)
      this.#db.exec('RELEASE one')
      return { value }
    } catch (error) {
      this.#revision = before
      if (!(error instanceof StoreError)) throw error
      this.#db.exec('ROLLBACK TO one; RELEASE one')
      return { error: toPlain(error) }
    }
  }

  #row(key: string): (Row & { lease: string | null }) | undefined {
    return this.#sql('SELECT key, value, created, modified, version, lease FROM record WHERE key = ?').get(key) as
      | (Row & { lease: string | null })
      | undefined
  }

  #txn(job: TxnJob & { op: 'txn' }): TxnReply {
    const known = this.#sql('SELECT hash, revision FROM token WHERE token = ? AND at_ms > ? AND seq > ?').get(
      job.token,
      job.now_ms - this.#o.tokenAge_ms,
      this.#tokens() - this.#o.keepTokens,
    ) as { hash: string; revision: number } | undefined
    if (known) {
      if (known.hash === job.hash) return { ok: true, revision: known.revision, repeated: true }
      throw new StoreError({ kind: 'token_reused', detail: 'the token was used before for another transaction' })
    }
    const failed: { index: number; current: Row | undefined }[] = []
    job.checks.forEach((check, index) => {
      const row = this.#row(check.key)
      const holds =
        check.is === 'absent'
          ? !row
          : check.is === 'exists'
            ? row !== undefined
            : check.is === 'revision'
              ? row?.modified === check.n
              : row?.version === check.n
      if (!holds) failed.push({ index, current: row })
    })
    if (failed.length > 0) return { ok: false, revision: this.#revision, failed }
    const revision = this.#revision + 1
    let seq = 0
    for (const write of job.writes) {
      if (this.#write(revision, seq, write, job.now_ms)) seq += 1
    }
    if (seq === 0) return { ok: true, revision: this.#revision, repeated: false }
    this.#revision = revision
    this.#sql('INSERT OR REPLACE INTO token (token, hash, revision, at_ms) VALUES (?, ?, ?, ?)').run(
      job.token,
      job.hash,
      revision,
      job.now_ms,
    )
    return { ok: true, revision, repeated: false }
  }

  #tokens(): number {
    return (this.#sql('SELECT coalesce(max(seq), 0) AS n FROM token').get() as { n: number }).n
  }

  #revoke(job: TxnJob & { op: 'revoke' }): TxnReply {
    const keys = this.#sql('SELECT key FROM record WHERE lease = ? ORDER BY key').all(job.lease) as { key: string }[]
    if (keys.length === 0) return { ok: true, revision: this.#revision, repeated: false }
    this.#revision += 1
    keys.forEach(({ key }, seq) => this.#write(this.#revision, seq, { key, value: null, lease: null }, job.now_ms))
    return { ok: true, revision: this.#revision, repeated: false }
  }

  /** @returns false when there was nothing to delete */
  #write(
    revision: number,
    seq: number,
    w: { key: string; value: string | null; lease: string | null },
    now_ms: number,
  ) {
    const was = this.#row(w.key)
    if (w.value === null && !was) return false
    const created = w.value === null ? null : (was?.created ?? revision)
    const version = w.value === null ? null : (was?.version ?? 0) + 1
    if (w.value === null) this.#sql('DELETE FROM record WHERE key = ?').run(w.key)
    else {
      this.#sql(
        `INSERT INTO record (key, value, created, modified, version, lease) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified,
           version = excluded.version, lease = excluded.lease`,
      ).run(w.key, w.value, created, revision, version, w.lease)
    }
    this.#sql('INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)').run(
      revision,
      seq,
      w.key,
      now_ms,
      w.value,
      created,
      version,
      was?.value ?? null,
      was?.created ?? null,
      was?.modified ?? null,
      was?.version ?? null,
    )
    return true
  }

  /** Drops old history and tokens, a limited amount at a time. */
  #forget(jobs: readonly TxnJob[]): void {
    const now_ms = jobs.at(-1)?.now_ms ?? 0
    const aged = this.#sql('SELECT coalesce(max(revision), 0) AS n FROM history WHERE at_ms < ? AND revision <= ?').get(
      now_ms - this.#o.keepAge_ms,
      this.#revision - KEEP_ALWAYS,
    ) as { n: number }
    const to = compactTo({
      current: this.#revision,
      compacted: this.#compacted,
      aged: aged.n,
      keepRevisions: this.#o.keepRevisions,
    })
    if (to > this.#compacted) {
      const cut = this.#sql('SELECT revision FROM history ORDER BY revision, seq LIMIT 1 OFFSET ?').get(
        PRUNE_ROWS_MAX,
      ) as { revision: number } | undefined
      this.#compacted = cut ? Math.min(to, Math.max(cut.revision, this.#compacted + 1)) : to
      this.#sql('DELETE FROM history WHERE revision <= ?').run(this.#compacted)
      this.#sql("UPDATE counter SET n = ? WHERE name = 'compacted'").run(this.#compacted)
    }
    this.#sql('DELETE FROM token WHERE at_ms <= ? OR seq <= ?').run(
      now_ms - this.#o.tokenAge_ms,
      this.#tokens() - this.#o.keepTokens,
    )
  }

  /** What was committed since the last call. */
  #unpublished(): ChangeRow[] {
    if (this.#broken || this.#revision === this.#published) return []
    const changes: ChangeRow[] = []
    while (this.#published < this.#revision) {
      const reply = this.history('', this.#published, 1000)
      if (reply.type === 'compacted') break
      for (const change of reply.changes) changes.push(change)
      this.#published = reply.revision
    }
    return changes
  }

  get(key: string): Row | undefined {
    const row = this.#row(key)
    return row && { key: row.key, value: row.value, created: row.created, modified: row.modified, version: row.version }
  }

  #gone(): CompactedReply {
    return { type: 'compacted', oldest: this.#compacted, current: this.#revision }
  }

  range(q: { prefix: string; at: number | null; after: string | null; limit: number }): RangeReply {
    const at = q.at ?? this.#revision
    if (at < this.#compacted || at > this.#revision) return this.#gone()
    const bounds = { from: q.after ?? '', prefix: q.prefix, to: q.prefix + AFTER_ALL, n: q.limit + 1 }
    const now = 'key >= :prefix AND key < :to AND key > :from'
    const rows =
      at === this.#revision
        ? this.#sql(`SELECT key, value, created, modified, version FROM record WHERE ${now} ORDER BY key LIMIT :n`).all(
            bounds,
          )
        : this.#sql(
            `SELECT key, value, created, modified, version FROM record WHERE ${now} AND modified <= :at
             UNION ALL
             SELECT key, was_value, was_created, was_modified, was_version FROM history AS h
             WHERE ${now} AND revision > :at AND was_value IS NOT NULL AND NOT EXISTS (
               SELECT 1 FROM history AS e WHERE e.key = h.key AND e.revision > :at AND e.revision < h.revision)
             ORDER BY key LIMIT :n`,
          ).all({ ...bounds, at })
    const found = rows as unknown as Row[]
    return { type: 'page', rows: found.slice(0, q.limit), revision: at, more: found.length > q.limit }
  }

  /** Changes after a revision, whole revisions only, so sometimes more than `limit`. */
  history(prefix: string, after: number, limit: number): HistoryReply {
    if (after < this.#compacted || after > this.#revision) return this.#gone()
    const range = { prefix, to: prefix + AFTER_ALL }
    const rows = this.#sql(CHANGES_AFTER).all({
      ...range,
      after,
      n: limit,
    }) as (HistoryRow & { seq: number })[]
    const end = rows.at(-1)
    const more = rows.length === limit && end !== undefined
    if (more) {
      const rest = this.#sql(CHANGES_OF).all({
        ...range,
        revision: end.revision,
        seq: end.seq,
      }) as (HistoryRow & { seq: number })[]
      for (const row of rest) rows.push(row)
    }
    return { type: 'changes', changes: rows.map(toChange), revision: more ? end.revision : this.#revision, more }
  }

  /** A copy as of now, readable by its owner only. Consistent: it is made in the one thread that writes. */
  backup(file: string): void {
    this.#mend()
    copyTo(this.#db, file)
  }

  close(): void {
    if (this.#db.isOpen) this.#db.close()
  }
}

function toChange(h: HistoryRow): ChangeRow {
  const { revision, key } = h
  return {
    revision,
    key,
    row:
      h.value === null
        ? undefined
        : { key, value: h.value, created: h.created ?? 0, modified: revision, version: h.version ?? 0 },
    before:
      h.was_value === null
        ? undefined
        : {
            key,
            value: h.was_value,
            created: h.was_created ?? 0,
            modified: h.was_modified ?? 0,
            version: h.was_version ?? 0,
          },
  }
}

/** The file is made here, readable by its owner only; SQLite gives its side files the same mode. */
function makeFile(file: string): void {
  try {
    if (isMadeNow(file)) return
    const found = lstatSync(file)
    if (!found.isFile()) {
      throw new StoreError({
        kind: 'io',
        detail: `${file} is not a plain file`,
        remedy: 'Name a plain file, or one that does not exist yet.',
        file,
      })
    }
    if ((found.mode & 0o077) !== 0) {
      throw new StoreError({
        kind: 'io',
        detail: `${file} can be read by others than its owner`,
        remedy: `chmod 600 ${file}`,
        file,
      })
    }
  } catch (error) {
    if (error instanceof StoreError) throw error
    throw new StoreError({
      kind: 'io',
      detail: `the store ${file} cannot be made: ${error instanceof Error ? error.message : String(error)}`,
      remedy: 'Check that the folder exists and belongs to the user of wadahd.',
      file,
      cause: error,
    })
  }
}

/** Without a look before: of two that make it at the same moment the second finds it, and the lock says whose it is. */
function isMadeNow(file: string): boolean {
  try {
    closeSync(openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600))
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}
