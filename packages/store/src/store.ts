/**
 * The record store as everything above it sees it. Its shape is etcd's: one global revision that only
 * grows, compare-and-swap transactions, one ordered watch, leases. Nothing above knows which back end it is.
 */

/** Counts committed transactions that changed something; global, monotonic, 0 for a store never written to. */
export type Revision = number

/** A sort of record. `name` is a path of lower-case words: `vm/spec`, `job`. */
export interface Kind<T> {
  readonly name: string
  /** Reads a stored value of this or an earlier schema. It must keep fields it does not know. Default: as it is. */
  readonly parse?: (value: unknown) => T
}

/** A record. `value` may be shared with other readers and may be frozen: make a new one instead of changing it. */
export interface Rec<T> {
  readonly kind: string
  readonly id: string
  readonly value: T
  /** Revision of the put that made it (again, after a delete). */
  readonly created: Revision
  /** Revision of the last put. */
  readonly modified: Revision
  /** Number of puts since it was made, from 1. The generation of a spec is this. */
  readonly version: number
}

/** What must hold for a transaction to happen. Build with `absent`, `exists`, `atRevision`, `atVersion`. */
export type Check = { readonly kind: string; readonly id: string } & (
  | { readonly is: 'absent' }
  | { readonly is: 'exists' }
  | { readonly is: 'revision'; readonly modified: Revision }
  | { readonly is: 'version'; readonly version: number }
)

/** One change of a transaction. Build with `put` and `del`. */
export type Write =
  | {
      readonly op: 'put'
      readonly kind: string
      readonly id: string
      readonly value: unknown
      /** Id of a lease: the record is deleted when the lease ends. A later put without it unbinds the record. */
      readonly lease?: string
    }
  /** Deleting what is not there changes nothing and is no error. */
  | { readonly op: 'delete'; readonly kind: string; readonly id: string }

/** `revision` is the transaction's own; when nothing was changed, the store's at that moment. */
export type Committed = {
  readonly ok: true
  readonly revision: Revision /** Done by an earlier call with the same token. */
  readonly repeated: boolean
}

/** Nothing was changed. Every check that failed, with the record it met. */
export type Conflict = {
  readonly ok: false
  readonly revision: Revision
  readonly failed: readonly { readonly check: Check; readonly current: Rec<unknown> | undefined }[]
}

/**
 * One record changed. Changes of one transaction have the same `revision` and come in the order of its writes.
 * `last` is true on the last one of a revision within the watched prefix: only from there a watch may be resumed.
 */
export type Change = {
  readonly revision: Revision
  readonly last: boolean
  readonly kind: string
  readonly id: string
  /** The record before, where the back end still knows it. */
  readonly before?: Rec<unknown>
} & ({ readonly type: 'put'; readonly rec: Rec<unknown> } | { readonly type: 'delete' })

/** Everything up to and including `revision` was delivered. */
export type Progress = { readonly type: 'progress'; readonly revision: Revision }

/** What was asked for is no longer (or not) known: list again. `current` is the store's revision now. */
export type Compacted = { readonly type: 'compacted'; readonly oldest: Revision; readonly current: Revision }

/** Where a list goes on: opaque, holds the store's id and the revision the list is read at. */
export type Cursor = string

export type Page<T> = {
  readonly type: 'page'
  /** In order of their key (kind, then id; by code point). */
  readonly items: readonly Rec<T>[]
  /** The revision the whole list is read at; a watch from here misses nothing. */
  readonly revision: Revision
  /** Absent on the last page. */
  readonly cursor?: Cursor
}

export type ListQuery = {
  /** Only ids that begin so. */
  prefix?: string
  /** Read as of this revision; default: now. Ignored when `cursor` is given. */
  at?: Revision
  cursor?: Cursor
  /** 1 … 1000. */
  limit: number
}

export interface Lease {
  readonly id: string
  readonly ttl_s: number
  /** Aborts when the holder must act as if the lease were gone: never later than the store may delete what is bound to it. */
  readonly lost: AbortSignal
  /** Ends it now and deletes what is bound to it, in one revision. Ending it twice is no error. */
  revoke(): Promise<void>
}

export type CallOptions = {
  /** Give up waiting after this; default 30,000. A transaction that times out may have happened: `effect: 'unknown'`. */
  timeout_ms?: number
}

export interface Store {
  /** Made once per store; another one after a restore or a move to another back end. */
  readonly id: string
  /** The revision now. */
  current(o?: CallOptions): Promise<Revision>
  get<T>(kind: Kind<T>, id: string, o?: CallOptions): Promise<Rec<T> | undefined>
  list<T>(kind: Kind<T>, q: ListQuery, o?: CallOptions): Promise<Page<T> | Compacted>
  /** As `list`, across kinds: `prefix` is one of a whole key (`keyOf`), '' is everything. Values as stored. */
  range(prefix: string, q: Omit<ListQuery, 'prefix'>, o?: CallOptions): Promise<Page<unknown> | Compacted>
  /**
   * All or nothing. `token` (any unique string up to 128 characters) makes a retry after an unknown outcome safe:
   * a committed transaction with the same token and content is not done again. A conflict leaves no trace, so a retry is
   * judged anew. Tokens are forgotten after a while (10 minutes or 10,000 transactions, unless set otherwise).
   * A transaction that changes nothing commits without making a revision.
   * @throws StoreError `invalid`, `too_large`, `token_reused`, `lease_lost`, `no_room`, `io`, `timeout`, `closed`
   */
  txn(checks: readonly Check[], writes: readonly Write[], token: string, o?: CallOptions): Promise<Committed | Conflict>
  /**
   * Every change after revision `after` to a key that begins with `prefix`, in order across kinds, none twice, with
   * progress in between (at the latest when it has caught up). Ends when `signal` aborts, without an error; after a
   * `Compacted` (`after` is too old, or of a future this store does not have); throws StoreError `closed` when the store is.
   */
  watch(prefix: string, after: Revision, signal: AbortSignal): AsyncIterable<Change | Progress | Compacted>
  /** A lease kept alive by itself until it is lost or revoked. `ttl_s`: whole seconds, from 1. */
  lease(ttl_s: number): Promise<Lease>
  /** Waits for what is under way, then lets go of everything. Closing twice is no error. */
  close(): Promise<void>
}

/** The longest JSON text of one value, bytes. */
export const VALUE_BYTES_MAX = 1024 * 1024
/** Checks or writes of one transaction. etcd allows 128 of each; two are kept for the idempotency token. */
export const TXN_OPS_MAX = 126
/** All values of one transaction together, bytes; etcd takes requests up to 1.5 MiB. */
export const TXN_BYTES_MAX = 1280 * 1024
export const LIST_LIMIT_MAX = 1000

/** The key of a record in a range: `kind:id`. A kind has no colon, so the first one parts them. */
export function keyOf(kind: { readonly name: string } | string, id: string): string {
  return `${typeof kind === 'string' ? kind : kind.name}:${id}`
}

export function splitKey(key: string): { kind: string; id: string } {
  const colon = key.indexOf(':')
  return { kind: key.slice(0, colon), id: key.slice(colon + 1) }
}

/** A record as its kind reads it. */
export function typed<T>(kind: Kind<T>, rec: Rec<unknown>): Rec<T> {
  return kind.parse ? { ...rec, value: kind.parse(rec.value) } : (rec as Rec<T>)
}

/** `list` of any back end: a range of one kind, each record as its kind reads it. */
export async function listOf<T>(
  store: Pick<Store, 'range'>,
  kind: Kind<T>,
  { prefix = '', ...rest }: ListQuery,
  o?: CallOptions,
): Promise<Page<T> | Compacted> {
  const page = await store.range(keyOf(kind, prefix), rest, o)
  return page.type === 'page' ? { ...page, items: page.items.map((rec) => typed(kind, rec)) } : page
}

type Named = { readonly name: string }

export const absent = (kind: Named, id: string): Check => ({ kind: kind.name, id, is: 'absent' })
export const exists = (kind: Named, id: string): Check => ({ kind: kind.name, id, is: 'exists' })
/** The record is still the one that was read. */
export const unchanged = (rec: Rec<unknown>): Check => atRevision({ name: rec.kind }, rec.id, rec.modified)
export const atRevision = (kind: Named, id: string, modified: Revision): Check => ({
  kind: kind.name,
  id,
  is: 'revision',
  modified,
})
/** The record has had exactly this many puts (its generation). */
export const atVersion = (kind: Named, id: string, version: number): Check => ({
  kind: kind.name,
  id,
  is: 'version',
  version,
})

export function put<T>(kind: Kind<T>, id: string, value: T, lease?: { readonly id: string }): Write {
  return { op: 'put', kind: kind.name, id, value, ...(lease && { lease: lease.id }) }
}
export const del = (kind: Named, id: string): Write => ({ op: 'delete', kind: kind.name, id })
