/** Calls endpoints of the contract. The types of each call come from the endpoint itself. */
import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { createClient, type Transport } from '@wadah/api/client'
import type { Endpoint, StaticOf } from '@wadah/api/endpoint'
import { dial, type Trust } from './dial.ts'
import { exchange } from './http.ts'
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
    const client = createClient(this.#transport(input))
    return (await client.call(endpoint as AnyEndpoint, this.#options(endpoint, input))) as StaticOf<E['response']>
  }

  /** Calls an endpoint and hands over the answer, for streams and headers. */
  async open<E extends AnyEndpoint>(endpoint: E, input: Input<E> = {}): Promise<IncomingMessage> {
    let raw: IncomingMessage | undefined
    const client = createClient(
      this.#transport(input, (response) => {
        raw = response
      }),
    )
    await client.stream(endpoint as AnyEndpoint, this.#options(endpoint, input))
    if (!raw) throw new Error('the client answered without asking')
    return raw
  }

  // biome-ignore lint: options of all shapes; `Input` has checked them
  #options(endpoint: AnyEndpoint, input: Input<any>): any {
    const { generation, upload } = input
    return {
      params: input.params,
      query: input.query,
      ...(input.body === undefined ? {} : { body: input.body }),
      ...(generation === undefined ? {} : { generation }),
      ...(upload ? { data: upload.data } : {}),
      // A request that is sent twice (by a proxy) is carried out once. Answers with a secret are not kept, so they take no key.
      ...(endpoint.method === 'POST' && endpoint.answer === 'job' ? { idempotencyKey: randomUUID() } : {}),
      headers: {
        'accept-language': this.options.language,
        'user-agent': 'wadah-cli',
        ...this.authorization(),
        ...(upload?.size_bytes === undefined ? {} : { 'content-length': String(upload.size_bytes) }),
        ...input.headers,
      },
    }
  }

  /** One connection for each request. `seen` gets the answer as Node has it. */
  #transport(
    input: { signal?: AbortSignal; timeout_ms?: number; query?: unknown },
    seen?: (response: IncomingMessage) => void,
  ): Transport {
    const signal = input.signal ?? this.options.signal
    const wait_s = Number((input.query as { wait?: number } | undefined)?.wait ?? 0)
    return async (request) => {
      const response = await exchange(await this.dial(signal), {
        method: request.method,
        path: request.path,
        host: this.host,
        headers: request.headers,
        body: request.body as string | Readable | undefined,
        signal,
        timeout_ms: (input.timeout_ms ?? 60_000) + wait_s * 1000,
      })
      seen?.(response)
      return {
        status: response.statusCode ?? 0,
        headers: response.headers as Record<string, string | undefined>,
        body: response,
      }
    }
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
