/** Calls endpoints of the contract. The types of each call come from the endpoint itself. */
import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import type { Endpoint, StaticOf } from '@wadah/api/endpoint'
import { FAULTS, fail, type Fault, type FaultCode, WadahError } from '@wadah/api/fault'
import { dial, type Trust } from './dial.ts'
import { exchange, readText } from './http.ts'
import { describeTarget, type Target } from './target.ts'

// biome-ignore lint: endpoints of all shapes
type AnyEndpoint = Endpoint<any, any, any, any>
/** Options of the command line may be absent as `undefined`: such fields are not sent. */
export type Loose<T> = T extends readonly unknown[] ? T : T extends object ? { [K in keyof T]?: T[K] | undefined } : T
export type Input<E extends AnyEndpoint> = {
  params?: StaticOf<E['params']>
  query?: Loose<StaticOf<E['query']>>
  body?: StaticOf<E['body']>
  /** `If-Match`. */
  generation?: number | undefined
  signal?: AbortSignal
  /** ms until the head of the answer; `?wait=` is added. */
  timeout_ms?: number
  headers?: Record<string, string>
  /** Body of an upload. */
  upload?: { data: Readable; size_bytes?: number | undefined }
}
export type ApiOptions = {
  target: Target
  token?: string | undefined
  /** Sent as Accept-Language, for details of faults. */
  language: string
  trust: Trust
  signal: AbortSignal
  connect_timeout_ms?: number
  remedy?: string
}

/** The path of a call, parameters and query filled in. */
export function pathOf(endpoint: AnyEndpoint, params: Record<string, string> = {}, query: object = {}): string {
  const path = endpoint.path.replace(/\{(\w+)\}/g, (_, key: string) => {
    const value = params[key]
    if (value === undefined || value === '' || value === '.' || value === '..') {
      throw fail('invalid', `"${value ?? ''}" is not a name or id`, { field: key })
    }
    return encodeURIComponent(value)
  })
  const search = new URLSearchParams()
  for (const [key, value] of Object.entries(query)) if (value !== undefined) search.set(key, String(value))
  return search.size === 0 ? path : `${path}?${search}`
}

export class Api {
  readonly options: ApiOptions
  constructor(options: ApiOptions) {
    this.options = options
  }
  get where(): string {
    return describeTarget(this.options.target)
  }

  /** Calls an endpoint that answers JSON or nothing. @throws WadahError with the server's fault, `unreachable`, `timeout` */
  async call<E extends AnyEndpoint>(endpoint: E, input: Input<E> = {}): Promise<StaticOf<E['response']>> {
    const response = await this.open(endpoint, input)
    const text = await readText(response)
    if (response.statusCode === 204 || text === '') return undefined as StaticOf<E['response']>
    try {
      return JSON.parse(text) as StaticOf<E['response']>
    } catch (cause) {
      throw fail('internal', `${this.where} answered something that is not JSON: is it a Wadah daemon?`, { cause })
    }
  }

  /** Calls an endpoint and hands over the answer, for streams and headers. */
  async open<E extends AnyEndpoint>(endpoint: E, input: Input<E> = {}): Promise<IncomingMessage> {
    const wait = Number((input.query as { wait?: number } | undefined)?.wait ?? 0)
    const signal = input.signal ?? this.options.signal
    const headers: Record<string, string> = {
      accept: 'application/json, application/problem+json, */*;q=0.5',
      'accept-language': this.options.language,
      'user-agent': 'wadah-cli',
      ...this.authorization(),
      ...(input.generation === undefined ? {} : { 'if-match': `"${input.generation}"` }),
      // A request that is sent twice (a proxy, a retry) is carried out once.
      ...(endpoint.method === 'POST' && ['job', 'created'].includes(endpoint.answer)
        ? { 'idempotency-key': randomUUID() }
        : {}),
      ...input.headers,
    }
    let body: string | Readable | undefined
    if (input.upload) {
      body = input.upload.data
      headers['content-type'] = endpoint.accepts ?? 'application/octet-stream'
      if (input.upload.size_bytes !== undefined) headers['content-length'] = String(input.upload.size_bytes)
    } else if (input.body !== undefined) {
      body = JSON.stringify(input.body)
      headers['content-type'] = 'application/json'
      headers['content-length'] = String(Buffer.byteLength(body))
    }
    const path = pathOf(
      endpoint,
      input.params as Record<string, string> | undefined,
      (input.query as object | undefined) ?? {},
    )
    const response = await exchange(await this.dial(signal), {
      method: endpoint.method,
      path,
      host: this.host,
      headers,
      body,
      signal,
      timeout_ms: (input.timeout_ms ?? 60_000) + wait * 1000,
    })
    const status = response.statusCode ?? 0
    if (status >= 200 && status < 300) return response
    throw await readFault(response, status, this.where)
  }

  /** A connection of its own (for WebSockets), proved like every other. */
  async dial(signal: AbortSignal = this.options.signal): Promise<Socket> {
    const { target, trust, connect_timeout_ms = 10_000, remedy } = this.options
    return await dial(target, {
      trust,
      signal,
      timeout_ms: connect_timeout_ms,
      ...(remedy === undefined ? {} : { remedy }),
    })
  }
  get host(): string {
    return this.options.target.kind === 'socket' ? 'localhost' : this.options.target.url.host
  }
  authorization(): Record<string, string> {
    return this.options.token === undefined ? {} : { authorization: `Bearer ${this.options.token}` }
  }
}

async function readFault(response: IncomingMessage, status: number, where: string): Promise<WadahError> {
  const text = await readText(response, 2 ** 20).catch(() => '')
  try {
    const f = JSON.parse(text) as Partial<Fault>
    if (typeof f.code === 'string' && typeof f.detail === 'string') {
      const known = FAULTS[f.code as FaultCode]
      return new WadahError({
        ...f,
        code: f.code,
        detail: f.detail,
        status: f.status ?? status,
        title: f.title ?? known?.title ?? f.code,
        effect: f.effect ?? 'unknown',
        retryable: f.retryable ?? known?.retryable ?? false,
      })
    }
  } catch {
    // Not a fault of ours: said below.
  }
  return fail('internal', `${where} answered HTTP ${status} in a form Wadah does not use: is it a Wadah daemon?`, {
    effect: 'unknown',
  })
}

/** All items of a list, page after page. */
export async function listAll<T>(
  page: (cursor: string | undefined) => Promise<{ items: T[]; next?: string }>,
): Promise<T[]> {
  const items: T[] = []
  let cursor: string | undefined
  do {
    const one = await page(cursor)
    items.push(...one.items)
    cursor = one.next
  } while (cursor !== undefined)
  return items
}
