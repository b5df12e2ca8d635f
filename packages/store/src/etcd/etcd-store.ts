/**
 * The record store in an etcd. One of its own, where every revision is one of ours, or one that others write to beside (`shared`). Keys:
 *   <prefix>/id           the store's id; its revision is our revision 0
 *   <prefix>/r/<key>      records
 *   <prefix>/t/<token>    what was committed with a token, bound to a lease that nobody keeps alive
 *   <prefix>/last         put by every transaction of a shared one: where we are among the revisions of others
 * A transaction is one etcd transaction that also puts its token; so a try whose answer was lost can be repeated, and each revision
 * of ours is seen by a watch of the whole.
 */
import { randomUUID } from 'node:crypto'
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
  keyOf,
  type Lease,
  listOf,
  type ListQuery,
  type Page,
  type Progress,
  type Rec,
  type Revision,
  splitKey,
  type Store,
  typed,
  type Write,
} from '../store.ts'
import {
  checkKey,
  checkLimit,
  checkPrefix,
  checkRevision,
  checkTtl,
  decodeCursor,
  type EncodedCheck,
  type EncodedTxn,
  encodeCursor,
  encodeTxn,
} from '../validate.ts'
import { closed, EtcdClient, type Tls } from './client.ts'
import { isOutOfRange, translate } from './errors.ts'
import { EtcdLeases } from './leases.ts'
import { follow } from './watch.ts'
import type { Compare, KeyValue, RangeReply, RequestOp, Txn, TxnReply } from './wire.ts'

const TIMEOUT_MS = 30_000
const TOKEN_AGE_S = 600
const AFTER_ALL = '\u007f'

export type EtcdOptions = {
  /** HOST:PORT of the members. */
  endpoints: readonly string[]
  tls?: Tls
  clock?: Clock
  /** Where in etcd it lies. Default `/wadah`. */
  prefix?: string
  /** Others write to this etcd too, to other keys: not each of its revisions is one of ours. */
  shared?: boolean
  /** Tokens are remembered at least so long. */
  tokenAge_s?: number
}

/** What stands under a token. `void`: whoever comes late with it must not commit any more. */
type TokenValue = { hash: string; call: string; void?: true }
const tokenValue = (kv: KeyValue): TokenValue => JSON.parse(kv.value.toString()) as TokenValue
/** A transaction under way. `fence`: etcd's revision of what must stand under its token, 0 for nothing. */
type Sent = { token: string; key: Buffer; fence: number; tries: { lost: number } }

/** Opens the store, making it where there is none. @throws StoreError `timeout`, `io`, `no_room` */
export function openEtcdStore(options: EtcdOptions): Promise<EtcdStore> {
  const { endpoints, tls, clock = systemClock } = options
  return openOver(new EtcdClient({ endpoints, clock, ...(tls ? { tls } : {}) }), clock, options)
}

/** The same by a client that is there already. */
export async function openOver(
  client: EtcdClient,
  clock: Clock,
  options: Pick<EtcdOptions, 'prefix' | 'shared' | 'tokenAge_s'>,
): Promise<EtcdStore> {
  const prefix = options.prefix ?? '/wadah'
  const key = Buffer.from(`${prefix}/id`)
  try {
    const txn: Txn = {
      compare: [{ key, result: 'EQUAL', target: 'CREATE', create_revision: 0 }],
      success: [{ request_put: { key, value: Buffer.from(randomUUID()) } }],
      failure: [],
    }
    await client.call('KV', 'Txn', txn, clock.monotonic_ms() + TIMEOUT_MS)
    const { kvs } = await client.call<RangeReply>('KV', 'Range', { key }, clock.monotonic_ms() + TIMEOUT_MS)
    const [id] = kvs
    if (!id) throw new StoreError({ kind: 'corrupt', detail: 'the store in etcd has no id' })
    const base = Number(id.create_revision)
    return new EtcdStore(client, clock, {
      id: id.value.toString(),
      base,
      prefix,
      shared: options.shared ?? false,
      tokenAge_s: options.tokenAge_s ?? TOKEN_AGE_S,
    })
  } catch (error) {
    client.close()
    throw translate(error)
  }
}

export class EtcdStore implements Store {
  readonly id: string
  readonly #client: EtcdClient
  readonly #clock: Clock
  readonly #base: number
  readonly #prefix: string
  readonly #shared: boolean
  readonly #tokenAge_s: number
  readonly #leases: EtcdLeases
  readonly #ending = new AbortController()
  /** Transactions are sent one after the other: they happen in the order in which they were asked for. */
  #last: Promise<unknown> = Promise.resolve()
  #tokenLease: { id: string; until_ms: number } | undefined
  /** It ended without an answer, and may yet happen. */
  #unsettled: Sent | undefined
  #closing: Promise<void> | undefined

  constructor(
    client: EtcdClient,
    clock: Clock,
    o: { id: string; base: number; prefix: string; shared: boolean; tokenAge_s: number },
  ) {
    this.id = o.id
    this.#client = client
    this.#clock = clock
    this.#base = o.base
    this.#prefix = o.prefix
    this.#shared = o.shared
    this.#tokenAge_s = o.tokenAge_s
    this.#leases = new EtcdLeases(client, clock)
  }

  /** The way to its members, for those who look after them. */
  get client(): EtcdClient {
    return this.#client
  }

  /** Of a shared one: of the last transaction. What ended since with its lease is not counted; a watch tells it soon. */
  async current(o?: CallOptions): Promise<Revision> {
    if (!this.#shared) return await this.#now(o)
    const { kvs } = await this.#range({ key: this.#key('/last') }, this.#deadline(o))
    return kvs[0] ? Number(kvs[0].mod_revision) - this.#base : 0
  }

  /** etcd's own, whoever wrote. */
  async #now(o?: CallOptions): Promise<Revision> {
    const { header } = await this.#range({ key: this.#key('/id') }, this.#deadline(o))
    return Number(header.revision) - this.#base
  }

  async get<T>(kind: Kind<T>, id: string, o?: CallOptions): Promise<Rec<T> | undefined> {
    const key = checkKey(kind.name, id)
    const { kvs } = await this.#range({ key: this.#record(key) }, this.#deadline(o))
    return kvs[0] && typed(kind, this.#rec(kvs[0]))
  }

  list<T>(kind: Kind<T>, q: ListQuery, o?: CallOptions): Promise<Page<T> | Compacted> {
    return listOf(this, kind, q, o)
  }

  async range(prefix: string, q: Omit<ListQuery, 'prefix'>, o?: CallOptions): Promise<Page<unknown> | Compacted> {
    checkPrefix(prefix)
    const limit = checkLimit(q.limit)
    const place = q.cursor === undefined ? undefined : decodeCursor(q.cursor)
    if (place && place.store !== this.id) return this.#compacted(o)
    const at = place?.at ?? (q.at === undefined ? undefined : checkRevision(q.at))
    // A key right after the last one of the page before, that no record has.
    const from = place ? `${place.after}\0` : prefix
    try {
      const { kvs, more, header } = await this.#range(
        {
          key: this.#record(from),
          range_end: this.#record(prefix + AFTER_ALL),
          limit,
          ...(at === undefined ? {} : { revision: at + this.#base }),
        },
        this.#deadline(o),
      )
      const items = kvs.map((kv) => this.#rec(kv))
      const revision = at ?? Number(header.revision) - this.#base
      const end = items.at(-1)
      return {
        type: 'page',
        items,
        revision,
        ...(more && end
          ? { cursor: encodeCursor({ store: this.id, at: revision, after: keyOf(end.kind, end.id) }) }
          : {}),
      }
    } catch (error) {
      if (isOutOfRange((error as StoreError).cause)) return this.#compacted(o)
      throw error
    }
  }

  async txn(
    checks: readonly Check[],
    writes: readonly Write[],
    token: string,
    o?: CallOptions,
  ): Promise<Committed | Conflict> {
    if (this.#closing) throw closed()
    const encoded = encodeTxn(checks, writes, token)
    for (const { lease } of encoded.writes) if (lease !== null) this.#leases.check(lease)
    const deadline_ms = this.#deadline(o)
    const done = this.#last.then(async () => {
      try {
        return await this.#commit(checks, encoded, deadline_ms)
      } catch (error) {
        // The lease of tokens itself may be gone: after a machine was suspended for a while.
        if (!(error instanceof StoreError) || error.kind !== 'lease_lost' || !this.#tokenLease) throw error
        this.#tokenLease = undefined
        return await this.#commit(checks, encoded, deadline_ms)
      }
    })
    this.#last = done.catch(() => undefined)
    return await done
  }

  watch(prefix: string, after: Revision, signal: AbortSignal): AsyncGenerator<Change | Progress | Compacted, void> {
    checkPrefix(prefix)
    checkRevision(after)
    return follow({
      client: this.#client,
      clock: this.#clock,
      range: { key: this.#key('/'), range_end: this.#key('0') },
      records: `${this.#prefix}/r/`,
      base: this.#base,
      prefix,
      after,
      signal,
      ending: this.#ending.signal,
      rec: (kv) => this.#rec(kv),
      current: () => this.#now(),
      ...(this.#shared ? { last: () => this.current() } : {}),
    })
  }

  async lease(ttl_s: number): Promise<Lease> {
    checkTtl(ttl_s)
    if (this.#closing) throw closed()
    try {
      return await this.#leases.grant(ttl_s)
    } catch (error) {
      throw translate(error)
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#last.then(() => {
      this.#ending.abort(closed())
      this.#leases.close()
      this.#client.close()
    })
    return this.#closing
  }

  // ---- transactions

  async #commit(checks: readonly Check[], txn: EncodedTxn, deadline_ms: number): Promise<Committed | Conflict> {
    const key = this.#key(`/t/${txn.token}`)
    const call = randomUUID()
    const again = this.#unsettled?.token === txn.token
    if (this.#unsettled && !again) await this.#settle(this.#unsettled, deadline_ms)
    // A try of an earlier call of it may be on its way.
    const at: Sent = {
      token: txn.token,
      key,
      fence: again ? (this.#unsettled?.fence ?? 0) : 0,
      tries: { lost: again ? 1 : 0 },
    }
    try {
      const done = await this.#tryCommit(checks, txn, { hash: txn.hash, call }, at, deadline_ms)
      this.#unsettled = undefined
      return done
    } catch (error) {
      if (at.tries.lost === 0 || !(error instanceof StoreError)) throw error
      this.#unsettled = at
      const { kind, message: detail, remedy, cause } = error
      throw new StoreError({ kind, detail, effect: 'unknown', retryable: true, cause, ...(remedy ? { remedy } : {}) })
    }
  }

  async #tryCommit(
    checks: readonly Check[],
    txn: EncodedTxn,
    own: TokenValue,
    at: Sent,
    deadline_ms: number,
  ): Promise<Committed | Conflict> {
    const changes = txn.writes.length > 0
    // Deleting what is not there changes nothing, and makes no revision: looked at first.
    let looks = changes && txn.writes.every((w) => w.value === null)
    for (;;) {
      const compare = [
        ...txn.checks.map((c) => this.#compare(c)),
        { key: at.key, result: 'EQUAL', target: 'MOD', mod_revision: at.fence } as const,
      ]
      // What changes nothing answers with a revision, too: one that a watch comes to.
      const marks: RequestOp[] = this.#shared ? [{ request_range: { key: this.#key('/last') } }] : []
      const success = looks
        ? [...txn.writes.map((w) => this.#read(w.key)), ...marks]
        : changes
          ? await this.#writes(txn, own, at.key, deadline_ms)
          : marks
      const failure = [{ request_range: { key: at.key } }, ...txn.checks.map((c) => this.#read(c.key)), ...marks]
      const reply = await this.#txn(
        { compare, success, failure },
        deadline_ms,
        looks || !changes ? undefined : at.tries,
      )
      const read = reply.responses.map((r) => r.response_range?.kvs[0])
      const wrote = reply.succeeded && changes && !looks
      const mark = this.#shared && !wrote ? read.pop() : undefined
      const now =
        this.#shared && !wrote
          ? Number(mark?.mod_revision ?? this.#base) - this.#base
          : Number(reply.header.revision) - this.#base
      if (reply.succeeded) {
        const nothing = looks && read.every((kv) => kv === undefined) && at.tries.lost === 0
        if (nothing || !looks) return { ok: true, revision: now, repeated: false }
        looks = false
        continue
      }
      const [seen, ...records] = read
      const known = seen && tokenValue(seen)
      if (seen && known && !known.void) return this.#committedBefore(seen, known, own)
      const stands = seen ? Number(seen.mod_revision) : 0
      if (stands !== at.fence) {
        at.fence = stands
        continue
      }
      // A try whose answer was lost may still be on its way, and must not find that its checks hold after all.
      if (at.tries.lost > 0 && changes) {
        const came = await this.#settle(at, deadline_ms)
        if (came) return this.#committedBefore(came, tokenValue(came), own)
      }
      const failed = txn.checks.flatMap((c, i) => {
        const kv = records[i]
        return holds(c, kv, this.#base) ? [] : [{ check: checks[i] as Check, current: kv && this.#rec(kv) }]
      })
      return { ok: false, revision: now, failed }
    }
  }

  #committedBefore(seen: KeyValue, known: TokenValue, own: TokenValue): Committed {
    if (known.hash !== own.hash)
      throw new StoreError({ kind: 'token_reused', detail: 'the token was used before for another transaction' })
    // By a try of this very call, perhaps, whose answer was lost.
    return { ok: true, revision: Number(seen.mod_revision) - this.#base, repeated: known.call !== own.call }
  }

  /** Takes the token away from tries that are still on their way; they can't commit any more. What one committed, when it came first. */
  async #settle(at: Sent, deadline_ms: number): Promise<KeyValue | undefined> {
    const value: TokenValue = { hash: '', call: '', void: true }
    const lease = await this.#leaseOfTokens(deadline_ms)
    const reply = await this.#txn(
      {
        compare: [{ key: at.key, result: 'EQUAL', target: 'MOD', mod_revision: at.fence }],
        success: [{ request_put: { key: at.key, value: Buffer.from(JSON.stringify(value)), lease } }],
        failure: [{ request_range: { key: at.key } }],
      },
      deadline_ms,
      at.tries,
    )
    if (this.#unsettled?.token === at.token) this.#unsettled = undefined
    const kv = reply.succeeded ? undefined : reply.responses[0]?.response_range?.kvs[0]
    // A lost try of this may have been carried out.
    return kv && !tokenValue(kv).void ? kv : undefined
  }

  async #writes(txn: EncodedTxn, own: TokenValue, token: Buffer, deadline_ms: number): Promise<RequestOp[]> {
    const ops = txn.writes.map(
      ({ key, value, lease }): RequestOp =>
        value === null
          ? { request_delete_range: { key: this.#record(key) } }
          : {
              request_put: { key: this.#record(key), value: Buffer.from(value), ...(lease === null ? {} : { lease }) },
            },
    )
    const lease = await this.#leaseOfTokens(deadline_ms)
    const last: RequestOp[] = this.#shared ? [{ request_put: { key: this.#key('/last'), value: Buffer.alloc(0) } }] : []
    return [...ops, ...last, { request_put: { key: token, value: Buffer.from(JSON.stringify(own)), lease } }]
  }

  #compare(check: EncodedCheck): Compare {
    const key = this.#record(check.key)
    switch (check.is) {
      case 'absent':
        return { key, result: 'EQUAL', target: 'CREATE', create_revision: 0 }
      case 'exists':
        return { key, result: 'GREATER', target: 'CREATE', create_revision: 0 }
      case 'revision':
        return { key, result: 'EQUAL', target: 'MOD', mod_revision: check.n + this.#base }
      case 'version':
        return { key, result: 'EQUAL', target: 'VERSION', version: check.n }
    }
  }

  #read(key: string): RequestOp {
    return { request_range: { key: this.#record(key) } }
  }

  /** One lease for the tokens of a while; it ends by itself, and they with it. */
  async #leaseOfTokens(deadline_ms: number): Promise<string> {
    const now = this.#clock.monotonic_ms()
    if (this.#tokenLease && now < this.#tokenLease.until_ms) return this.#tokenLease.id
    const half_s = Math.ceil(this.#tokenAge_s / 2)
    const { ID: id } = await this.#call<{ ID: string }>(
      'Lease',
      'LeaseGrant',
      { TTL: this.#tokenAge_s + half_s },
      deadline_ms,
    )
    this.#tokenLease = { id, until_ms: now + half_s * 1000 }
    return id
  }

  // ---- calls

  #deadline(o: CallOptions = {}): number {
    if (this.#closing) throw closed()
    return this.#clock.monotonic_ms() + (o.timeout_ms ?? TIMEOUT_MS)
  }

  #txn(txn: Txn, deadline_ms: number, tries?: { lost: number }): Promise<TxnReply> {
    return this.#call<TxnReply>('KV', 'Txn', txn, deadline_ms, tries)
  }

  #range(request: { key: Buffer; range_end?: Buffer; limit?: number; revision?: number }, deadline_ms: number) {
    // A read can be repeated without a thought.
    return this.#call<RangeReply>('KV', 'Range', request, deadline_ms)
  }

  async #call<R>(
    service: 'KV' | 'Lease',
    method: string,
    request: object,
    deadline_ms: number,
    tries?: { lost: number },
  ): Promise<R> {
    try {
      return await this.#client.call<R>(service, method, request, deadline_ms, tries)
    } catch (error) {
      throw translate(error)
    }
  }

  async #compacted(o?: CallOptions): Promise<Compacted> {
    const current = await this.#now(o)
    return { type: 'compacted', oldest: current, current }
  }

  #key(rest: string): Buffer {
    return Buffer.from(this.#prefix + rest)
  }

  #record(key: string): Buffer {
    return this.#key(`/r/${key}`)
  }

  #rec(kv: KeyValue): Rec<unknown> {
    const key = kv.key.toString().slice(this.#prefix.length + 3)
    try {
      return {
        ...splitKey(key),
        value: JSON.parse(kv.value.toString()),
        created: Number(kv.create_revision) - this.#base,
        modified: Number(kv.mod_revision) - this.#base,
        version: Number(kv.version),
      }
    } catch (cause) {
      throw new StoreError({ kind: 'corrupt', detail: `the record ${key} in etcd is not JSON`, cause })
    }
  }
}

function holds(check: EncodedCheck, kv: KeyValue | undefined, base: number): boolean {
  switch (check.is) {
    case 'absent':
      return kv === undefined
    case 'exists':
      return kv !== undefined
    case 'revision':
      return kv !== undefined && Number(kv.mod_revision) - base === check.n
    case 'version':
      return (kv === undefined ? 0 : Number(kv.version)) === check.n
  }
}
