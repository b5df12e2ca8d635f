/**
 * A thin typed client of the contract over any transport. It knows neither sockets nor files, so that the command line and
 * a browser can both use it.
 */
import type { TSchema } from 'typebox'
import type { Endpoint, StaticOf } from './endpoint.ts'
import { endpoints } from './endpoints/all.ts'
import { type Fault, FAULTS, fail, WadahError } from './fault.ts'
import type { Job } from './schema/job.ts'

export type Bytes = Uint8Array<ArrayBufferLike>

export type ClientRequest = {
  method: string
  /** Path and query, as it goes onto the wire. */
  path: string
  headers: Record<string, string>
  body?: string | Bytes | AsyncIterable<Bytes>
  signal?: AbortSignal
}
export type ClientResponse = {
  status: number
  /** Names in lower case. */
  headers: Readonly<Record<string, string | undefined>>
  body: AsyncIterable<Bytes>
}
/** Sends one request. Rejects when no answer came; every answer, whatever its status, resolves. */
export type Transport = (request: ClientRequest) => Promise<ClientResponse>

type Given<K extends string, T extends TSchema | undefined> = T extends TSchema
  ? Record<string, never> extends StaticOf<T>
    ? { [key in K]?: StaticOf<T> }
    : { [key in K]: StaticOf<T> }
  : { [key in K]?: never }

/** What a call of this endpoint takes: only what the contract has, and all that it demands. */
export type CallOptions<
  P extends TSchema | undefined,
  Q extends TSchema | undefined,
  B extends TSchema | undefined,
> = Given<'params', P> &
  Given<'query', Q> &
  Given<'body', B> & {
    /** The content of an upload. */
    data?: Bytes | AsyncIterable<Bytes>
    headers?: Record<string, string>
    /** Sent as `If-Match`. */
    generation?: number
    idempotencyKey?: string
    signal?: AbortSignal
  }

export type Result<R extends TSchema | undefined> = R extends TSchema ? StaticOf<R> : undefined

export type ServerEvent = { id?: string; event: string; data: string }

export type Client = {
  /** @throws WadahError as the daemon sent it; `unreachable` when the answer is none of Wadah's */
  call<
    P extends TSchema | undefined,
    Q extends TSchema | undefined,
    B extends TSchema | undefined,
    R extends TSchema | undefined,
  >(endpoint: Endpoint<P, Q, B, R>, ...options: OptionsOf<P, Q, B>): Promise<Result<R>>
  /** The body of an answer as it comes. The error is thrown before the first piece. */
  stream<P extends TSchema | undefined, Q extends TSchema | undefined, B extends TSchema | undefined>(
    endpoint: Endpoint<P, Q, B, undefined>,
    ...options: OptionsOf<P, Q, B>
  ): Promise<AsyncIterable<Bytes>>
  /** The event stream, parsed. Ends when the connection does; go on with the last `id`. */
  events(options?: {
    resource?: string
    lastEventId?: string
    signal?: AbortSignal
  }): Promise<AsyncIterable<ServerEvent>>
  /** Waits until the job ended; asks anew every `wait_s` (default 20). `onProgress` gets the job as it was each time. */
  wait(job: Job, options?: { wait_s?: number; signal?: AbortSignal; onProgress?: (job: Job) => void }): Promise<Job>
}

/** The options may be left out when nothing in them is demanded. */
type OptionsOf<P extends TSchema | undefined, Q extends TSchema | undefined, B extends TSchema | undefined> =
  Record<string, never> extends CallOptions<P, Q, B>
    ? [options?: CallOptions<P, Q, B>]
    : [options: CallOptions<P, Q, B>]

/** All that any endpoint may take, for the code below the types. */
type Loose = {
  params?: Record<string, unknown>
  query?: Record<string, string | number | boolean | undefined>
  body?: unknown
  data?: Bytes | AsyncIterable<Bytes>
  headers?: Record<string, string>
  generation?: number
  idempotencyKey?: string
  signal?: AbortSignal
}

export function createClient(transport: Transport): Client {
  const send = async (endpoint: Endpoint, options: Loose = {}): Promise<ClientResponse> => {
    const response = await transport(requestOf(endpoint, options))
    if (response.status >= 200 && response.status < 300) return response
    throw await errorOf(response)
  }
  const call = async (endpoint: Endpoint, options?: Loose): Promise<unknown> => {
    const response = await send(endpoint, options)
    const text = await textOf(response.body)
    return text === '' ? undefined : parse(text, response.status)
  }
  const client = {
    call,
    stream: async (endpoint: Endpoint, options?: Loose) => (await send(endpoint, options)).body,
    async events({
      resource,
      lastEventId,
      signal,
    }: {
      resource?: string
      lastEventId?: string
      signal?: AbortSignal
    } = {}) {
      const response = await send(endpoints.system.events, {
        ...(resource !== undefined && { query: { resource } }),
        ...(lastEventId !== undefined && { headers: { 'last-event-id': lastEventId } }),
        ...(signal && { signal }),
      })
      return parseEvents(response.body)
    },
    async wait(job: Job, options: { wait_s?: number; signal?: AbortSignal; onProgress?: (job: Job) => void } = {}) {
      let now = job
      while (now.state === 'running' || now.state === 'cancelling' || now.state === 'undoing') {
        options.onProgress?.(now)
        const query = { wait: options.wait_s ?? 20 }
        const signal = options.signal && { signal: options.signal }
        now = (await call(endpoints.jobs.get, { params: { job: job.id }, query, ...signal })) as Job
      }
      return now
    },
  }
  return client as unknown as Client
}

/** Builds the request; exported so that it can be shown (`wadah --verbose`) and tested without a transport. */
export function requestOf(endpoint: Endpoint, o: Loose): ClientRequest {
  const path = endpoint.path.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const value = o.params?.[name]
    if (typeof value !== 'string' || value === '')
      throw fail('invalid', `${endpoint.id} needs ${name}.`, { field: `/${name}` })
    // Encoding leaves dots alone, and whatever resolves the URL would climb up by them.
    if (value === '.' || value === '..') throw fail('invalid', `"${value}" is not a ${name}.`, { field: `/${name}` })
    return encodeURIComponent(value)
  })
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(o.query ?? {})) if (value !== undefined) query.set(name, String(value))
  const text = query.size > 0 ? `?${query.toString()}` : ''
  const headers: Record<string, string> = { accept: endpoint.produces ?? 'application/json', ...o.headers }
  if (o.body !== undefined) headers['content-type'] = 'application/json'
  if (o.data !== undefined) headers['content-type'] = endpoint.accepts ?? 'application/octet-stream'
  if (o.generation !== undefined) headers['if-match'] = `"${o.generation}"`
  if (o.idempotencyKey !== undefined) headers['idempotency-key'] = o.idempotencyKey
  const body = o.data ?? (o.body === undefined ? undefined : JSON.stringify(o.body))
  return {
    method: endpoint.method,
    path: path + text,
    headers,
    ...(body !== undefined && { body }),
    ...(o.signal && { signal: o.signal }),
  }
}

/** An error answer is never larger; what is, does not come from Wadah. */
const ERROR_CHARS_MAX = 64 * 1024

async function errorOf(response: ClientResponse): Promise<WadahError> {
  const text = await textOf(response.body, ERROR_CHARS_MAX)
  try {
    const value = JSON.parse(text) as Partial<Fault>
    if (
      typeof value === 'object' &&
      value !== null &&
      typeof value.code === 'string' &&
      typeof value.detail === 'string'
    ) {
      // A newer daemon may know codes that we do not: its words are passed on all the same.
      const known = FAULTS[value.code]
      return new WadahError({
        status: response.status,
        title: known?.title ?? '',
        effect: 'unknown',
        retryable: known?.retryable ?? false,
        ...(value as Pick<Fault, 'code' | 'detail'>),
      })
    }
  } catch {
    // falls through: not JSON
  }
  return foreign(response.status)
}

const foreign = (status: number) =>
  fail('unreachable', `The answer (HTTP ${status}) does not come from Wadah.`, {
    remedy: 'check the address: is something else listening there?',
    effect: 'unknown',
    retryable: false,
  })

function parse(text: string, status: number): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw foreign(status)
  }
}

async function textOf(body: AsyncIterable<Bytes>, most = Number.POSITIVE_INFINITY): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const piece of body) {
    text += decoder.decode(piece, { stream: true })
    if (text.length > most) break
  }
  return text + decoder.decode()
}

/** Server-sent events (HTML standard, 9.2.6). `id` is the last one seen, also when it came with an earlier event or a comment. */
export async function* parseEvents(body: AsyncIterable<Bytes>): AsyncGenerator<ServerEvent> {
  const decoder = new TextDecoder()
  let rest = ''
  let id: string | undefined
  let event = ''
  let data: string[] = []
  for await (const piece of body) {
    rest += decoder.decode(piece, { stream: true })
    const lines = rest.split(/\r\n|\n|\r(?!$)/)
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (line === '') {
        if (data.length > 0) yield { ...(id !== undefined && { id }), event: event || 'message', data: data.join('\n') }
        event = ''
        data = []
        continue
      }
      const colon = line.indexOf(':')
      const name = colon < 0 ? line : line.slice(0, colon)
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (name === 'data') data.push(value)
      else if (name === 'event') event = value
      else if (name === 'id' && !value.includes('\0')) id = value
    }
  }
}
