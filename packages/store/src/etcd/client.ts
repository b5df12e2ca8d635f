/**
 * The way to an etcd of one or more members. Sticks to a member that answers; one that fails or keeps silent is left alone for a
 * while and another is asked. A call that writes must be safe to repeat: its answer may be lost after it was carried out.
 */
import { isIP } from 'node:net'
import { checkServerIdentity, type PeerCertificate } from 'node:tls'
import {
  type Client,
  type ClientDuplexStream,
  Metadata,
  type ServiceError,
  credentials,
  status as code,
} from '@grpc/grpc-js'
import type { Clock } from '../clock.ts'
import { sleep } from '../clock.ts'
import { StoreError } from '../errors.ts'
import { SERVICES, type ServiceName, type StatusReply } from './wire.ts'

/**
 * One try at one member. Once all were tried each further one has twice as long: a disk may be slow, and of a list what is large takes
 * its time. Short at first: one that hangs, or hands what it gets to a leader that does, is not waited for.
 */
const TRY_MS = 500
const TRY_MOST_MS = 1_000
const LIST_TRY_MOST_MS = 16_000
/** So long nobody asks a member that kept silent, as long as there is another. */
const SILENT_MS = 3_000
/** One that answers, if only that it can't now: it has no leader yet, perhaps. */
const REFUSED_MS = 200
const PAUSE_MS = 50
/** An election, and a second one where the first had no end. */
const LOOK_MS = 3_000
const LOOK_TRY_MS = 300
const LOOK_AGAIN_MS = 100
/** etcd ends connections whose pings come more often than every 5 s (`--grpc-keepalive-min-time`). */
const PING_MS = 5_500
const PING_ANSWER_MS = 1_000

/**
 * `server_name`: of all members alike; an address can't be sent as one (RFC 6066, 3). Absent: each is known by its own address or name.
 * `client` absent: nothing is shown to the member, which is then to refuse.
 */
export type Tls = { ca: Buffer; client?: { cert: Buffer; key: Buffer }; server_name?: string }
export type EtcdClientOptions = {
  /** HOST:PORT of the members' client addresses. */
  endpoints: readonly string[]
  /** Absent: plain, for tests on one machine. */
  tls?: Tls
  clock: Clock
}
type Member = { endpoint: string; clients: Map<ServiceName, Client>; parkedUntil_ms: number }
export type Duplex<Q, R> = ClientDuplexStream<Q, R>
type Unary = (
  request: object,
  metadata: Metadata,
  options: { deadline: number },
  done: (error: ServiceError | null, reply: unknown) => void,
) => void

/** What another member may do better, or the same one a moment later. */
const ELSEWHERE: ReadonlySet<number> = new Set([
  code.UNAVAILABLE,
  code.DEADLINE_EXCEEDED,
  code.INTERNAL,
  code.UNKNOWN,
  code.CANCELLED,
  code.ABORTED,
])

export class EtcdClient {
  readonly #o: Omit<EtcdClientOptions, 'tls'>
  #tls: Tls | undefined
  #members: Member[]
  #at = 0
  #closed = false

  constructor(options: EtcdClientOptions) {
    if (options.endpoints.length === 0)
      throw new StoreError({ kind: 'invalid', detail: 'no address of an etcd is given' })
    this.#o = options
    this.#tls = options.tls
    this.#members = options.endpoints.map((endpoint) => ({ endpoint, clients: new Map(), parkedUntil_ms: 0 }))
  }

  get endpoints(): readonly string[] {
    return this.#members.map((m) => m.endpoint)
  }

  /** From now on these are asked; calls and streams under way at others end as if those had failed. */
  setEndpoints(endpoints: readonly string[]): void {
    if (endpoints.length === 0 || this.#closed) return
    const present = this.#members[this.#at]?.endpoint
    const before = new Map(this.#members.map((m) => [m.endpoint, m]))
    this.#members = endpoints.map(
      (endpoint) => before.get(endpoint) ?? { endpoint, clients: new Map(), parkedUntil_ms: 0 },
    )
    this.#at = Math.max(0, endpoints.indexOf(present ?? ''))
    for (const [endpoint, { clients }] of before)
      if (!endpoints.includes(endpoint)) for (const client of clients.values()) client.close()
  }

  /** Connections are made anew with these; calls and streams under way end as if their member had failed, and go on over the new ones. */
  setTls(tls: Tls): void {
    if (this.#closed) return
    this.#tls = tls
    const before = this.#members
    this.#members = before.map((m) => ({ ...m, clients: new Map() }))
    for (const { clients } of before) for (const client of clients.values()) client.close()
  }

  /** One call at this member and no other. @throws ServiceError */
  async callAt<R>(
    endpoint: string,
    service: ServiceName,
    method: string,
    request: object,
    timeout_ms: number,
  ): Promise<R> {
    if (this.#closed) throw closed()
    const known = this.#members.find((m) => m.endpoint === endpoint)
    const member = known ?? { endpoint, clients: new Map(), parkedUntil_ms: 0 }
    try {
      return (await this.#once(member, service, method, request, timeout_ms)) as R
    } finally {
      if (!known) for (const client of member.clients.values()) client.close()
    }
  }

  /**
   * One call, tried at the members in turn until `deadline_ms` (monotonic). `tries` counts those whose answer was lost.
   * @throws ServiceError when etcd refuses it; StoreError `timeout`, `closed`
   */
  async call<R>(
    service: ServiceName,
    method: string,
    request: object,
    deadline_ms: number,
    tries: { lost: number } = { lost: 0 },
  ): Promise<R> {
    const { clock } = this.#o
    const most_ms = method === 'Range' ? LIST_TRY_MOST_MS : TRY_MOST_MS
    let last: unknown
    for (let tried = 0; ; tried += 1) {
      const try_ms = tryMs(tried, this.#members.length, most_ms)
      if (this.#closed) throw closed()
      const left = deadline_ms - clock.monotonic_ms()
      if (left <= 0) {
        throw new StoreError({
          kind: 'timeout',
          detail: `etcd (${this.endpoints.join(', ')}) did not answer in time: ${(last as Error | undefined)?.message ?? 'no try was left'}`,
          remedy: 'Is a majority of its members up? etcdctl endpoint status --cluster',
          effect: tries.lost > 0 ? 'unknown' : 'none',
          retryable: true,
          cause: last,
        })
      }
      const member = this.#member()
      try {
        return (await this.#once(member, service, method, request, Math.min(try_ms, left))) as R
      } catch (error) {
        if (!ELSEWHERE.has((error as ServiceError).code)) throw error
        last = error
        // Whatever was not refused may have been carried out.
        tries.lost += 1
        const silent = (error as ServiceError).code === code.DEADLINE_EXCEEDED
        this.#park(member, silent)
        if (silent) await this.#look()
        if (this.#members.every((m) => m.parkedUntil_ms > clock.monotonic_ms())) await sleep(clock, PAUSE_MS)
      }
    }
  }

  /** A stream at the present member. Whoever reads it says by `failed` that its member failed, and whether it only kept silent. */
  stream<Q, R>(service: ServiceName, method: string): { stream: Duplex<Q, R>; failed: (silent: boolean) => void } {
    if (this.#closed) throw closed()
    const member = this.#member()
    const client = this.#client(member, service) as unknown as Record<string, (m: Metadata) => Duplex<Q, R>>
    const metadata = new Metadata()
    // A member that was cut off from the others ends it instead of keeping silent.
    metadata.set('hasleader', 'true')
    const stream = client[method]?.call(client, metadata) as Duplex<Q, R>
    return { stream, failed: (silent) => this.#failed(member, silent) }
  }

  close(): void {
    this.#closed = true
    for (const member of this.#members) for (const client of member.clients.values()) client.close()
  }

  #once(member: Member, service: ServiceName, method: string, request: object, timeout_ms: number): Promise<unknown> {
    const client = this.#client(member, service) as unknown as Record<string, Unary>
    return new Promise((resolve, reject) => {
      client[method]?.call(client, request, new Metadata(), { deadline: Date.now() + timeout_ms }, (error, reply) => {
        if (error) reject(error)
        else resolve(reply)
      })
    })
  }

  /** The one that is asked now; when it is parked the next that is not, or the one that is parked for the shortest time. */
  #member(): Member {
    const now = this.#o.clock.monotonic_ms()
    const n = this.#members.length
    for (let i = 0; i < n; i += 1) {
      const at = (this.#at + i) % n
      const member = this.#members[at] as Member
      if (member.parkedUntil_ms > now) continue
      this.#at = at
      return member
    }
    return this.#members.reduce((a, b) => (a.parkedUntil_ms <= b.parkedUntil_ms ? a : b))
  }

  #failed(member: Member, silent: boolean): void {
    this.#park(member, silent)
    if (silent) void this.#look()
  }

  #looking: Promise<void> | undefined
  /**
   * Of a member that keeps silent it may be the leader that hangs, to whom it hands what it gets. Each is asked how it is, which it
   * answers by itself, until one leads; that one is asked next. Waits no longer than an election takes.
   */
  #look(): Promise<void> {
    if (this.#members.length < 2) return Promise.resolve()
    this.#looking ??= this.#findLeader().finally(() => (this.#looking = undefined))
    return this.#looking
  }

  async #findLeader(): Promise<void> {
    const { clock } = this.#o
    const until_ms = clock.monotonic_ms() + LOOK_MS
    // Those that did not answer the first time are not waited for again.
    let mute: ReadonlySet<Member> = new Set()
    while (!this.#closed && clock.monotonic_ms() < until_ms) {
      const members = this.#members
      const said = await Promise.all(
        members.map(async (m) =>
          mute.has(m)
            ? undefined
            : await this.#once(m, 'Maintenance', 'Status', {}, LOOK_TRY_MS).catch(() => undefined),
        ),
      )
      if (this.#members !== members) return
      const replies = said as (StatusReply | undefined)[]
      for (const [i, m] of members.entries()) {
        if (!replies[i]) this.#park(m, true)
        else m.parkedUntil_ms = 0
      }
      mute = new Set(replies.some((r) => r) ? members.filter((_, i) => !replies[i]) : [])
      const at = leading(replies)
      if (at !== undefined) {
        this.#at = at
        return
      }
      await sleep(clock, LOOK_AGAIN_MS)
    }
  }

  #park(member: Member, silent: boolean): void {
    member.parkedUntil_ms = this.#o.clock.monotonic_ms() + (silent ? SILENT_MS : REFUSED_MS)
  }

  #client(member: Member, service: ServiceName): Client {
    const known = member.clients.get(service)
    if (known) return known
    const tls = this.#tls
    const address = tls && tls.server_name === undefined ? addressOf(member.endpoint) : undefined
    // An address can't be sent as a name; which one it is to be is looked at all the same.
    const name = address === undefined ? tls?.server_name : NO_NAME
    const verify =
      address === undefined
        ? {}
        : { checkServerIdentity: (_: string, cert: PeerCertificate) => checkServerIdentity(address, cert) }
    const made = new SERVICES[service](
      member.endpoint,
      tls
        ? credentials.createSsl(tls.ca, tls.client?.key ?? null, tls.client?.cert ?? null, verify)
        : credentials.createInsecure(),
      {
        'grpc.keepalive_time_ms': PING_MS,
        'grpc.keepalive_timeout_ms': PING_ANSWER_MS,
        'grpc.max_receive_message_length': -1,
        'grpc.initial_reconnect_backoff_ms': 100,
        'grpc.max_reconnect_backoff_ms': 1_000,
        ...(name === undefined
          ? {}
          : { 'grpc.ssl_target_name_override': name, 'grpc.default_authority': tls?.server_name ?? member.endpoint }),
        // Addresses are of our own network: no proxy of the environment is asked.
        'grpc.enable_http_proxy': 0,
      },
    )
    member.clients.set(service, made)
    return made
  }
}

/** Pure: which of these leads; of two that say so the one of the later term (the other was cut off, and does not know yet). */
export function leading(
  replies: readonly (Pick<StatusReply, 'header' | 'leader' | 'raftTerm'> | undefined)[],
): number | undefined {
  const found = [...replies.entries()].filter(([, s]) => s !== undefined && s.leader === s.header.member_id)
  return found.toSorted(([, a], [, b]) => Number(b?.raftTerm) - Number(a?.raftTerm))[0]?.[0]
}

/** Pure: how long the next try may take, milliseconds, of `tried` before it. */
export function tryMs(tried: number, members: number, most_ms: number): number {
  return Math.min(most_ms, TRY_MS * 2 ** Math.min(20, Math.max(0, tried - members + 1)))
}

const NO_NAME = 'etcd.invalid'

/** `192.0.2.1:2379`, `[2001:db8::1]:2379`: undefined for a name. */
function addressOf(endpoint: string): string | undefined {
  const host = endpoint.slice(0, endpoint.lastIndexOf(':')).replace(/^\[|\]$/g, '')
  return isIP(host) === 0 ? undefined : host
}

export const closed = () => new StoreError({ kind: 'closed', detail: 'the store was closed' })
