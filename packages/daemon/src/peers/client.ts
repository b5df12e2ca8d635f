/** From this host to another: mutual TLS, and the other one must be who the records say it is. */
import https, { type RequestOptions } from 'node:https'
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { FAULTS, fail, fault, type Fault, type FaultCode, WadahError } from '@wadah/api/fault'
import { CLOCK_REMEDY } from '@wadah/cluster/members/way'
import type { HostRecord } from '@wadah/cluster/records'
import type { Certificates } from '../cluster/identity.ts'

const CONNECT_MS = 5_000
const ANSWER_MS = 30_000
const ANSWER_BYTES = 8 * 1024 * 1024

/** With the answer to an Upgrade: how many bytes come. */
export const LENGTH_HEADER = 'wadah-length'

/** How far a connection came: one that stands still after its first small packets is no host that is off. */
export function stageOf(request: ClientRequest): { explain: (cause: Error) => Error } {
  let [connected, secured] = [false, false]
  request.once('socket', (socket) => {
    secured = !socket.connecting
    // One that is used again has been through both; listeners would only gather on it.
    if (secured) return
    socket.once('connect', () => (connected = true))
    socket.once('secureConnect', () => (secured = true))
  })
  return {
    explain: (cause) => {
      const { name, code = '' } = cause as NodeJS.ErrnoException
      const cutOff = ['AbortError', 'TimeoutError'].includes(name) || ['ECONNRESET', 'ETIMEDOUT'].includes(code)
      if (!connected || secured || !(cutOff || /in time/.test(cause.message))) return cause
      return new Error(
        'it takes connections and says nothing more: its daemon hangs, or large packets vanish on the way (MTU)',
        {
          cause,
        },
      )
    },
  }
}

export class PeerClient {
  readonly #certificates: () => Certificates
  readonly #host: (id: string) => HostRecord | undefined
  /** It keeps connections apart by the certificates they were made with; those of before a renewal run out. */
  readonly #agent = new https.Agent({ keepAlive: true, maxSockets: 64, timeout: 60_000 })

  constructor(o: { certificates: () => Certificates; host: (id: string) => HostRecord | undefined }) {
    this.#certificates = o.certificates
    this.#host = o.host
  }

  /** Address and credentials for a request to this host. @throws WadahError `not_found` */
  options(host: string): RequestOptions & { servername: string } {
    const record = this.#host(host)
    if (record?.address === undefined || record.ports === undefined)
      throw fail('not_found', `The host ${record?.name ?? host} is not of this cluster any more.`, {
        remedy: 'wadah host list',
      })
    const { host: pair, hosts_ca } = this.#certificates()
    return {
      host: record.address,
      port: record.ports.peer,
      // Its certificate has its id; an address alone would be anybody's who takes it over.
      servername: host,
      ca: hosts_ca,
      cert: pair.cert,
      key: pair.key,
      minVersion: 'TLSv1.3',
      agent: this.#agent,
    }
  }

  nameOf(host: string): string {
    return this.#host(host)?.name ?? host
  }

  /** A JSON question to a peer. @throws WadahError what it answered, or `unavailable` */
  async ask<T>(
    host: string,
    path: string,
    body: unknown,
    o: { timeout_ms?: number; signal?: AbortSignal } = {},
  ): Promise<T> {
    const text = JSON.stringify(body)
    try {
      const answer = await new Promise<IncomingMessage>((resolve, reject) => {
        const request = https.request({
          ...this.options(host),
          method: 'POST',
          path,
          headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
          signal: AbortSignal.any([AbortSignal.timeout(o.timeout_ms ?? ANSWER_MS), ...(o.signal ? [o.signal] : [])]),
        })
        request.once('response', resolve)
        const stage = stageOf(request)
        request.on('error', (cause) => reject(stage.explain(cause)))
        request.end(text)
      })
      const said = await textOf(answer)
      if ((answer.statusCode ?? 500) >= 300) throw peerFault(said)
      return JSON.parse(said) as T
    } catch (error) {
      throw this.unreachable(host, error)
    }
  }

  /** A raw stream both ways, after HTTP's Upgrade. @throws WadahError what it answered, or `unavailable` */
  async open(host: string, path: string, signal: AbortSignal): Promise<Duplex> {
    return (await this.#open(host, path, signal)).socket
  }

  /**
   * A stream of a length that the other side says first. Reading it ends with a fault when less comes, or more.
   * @throws WadahError what it answered, or `unavailable`
   */
  async receive(host: string, path: string, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    const { socket, headers } = await this.#open(host, path, signal)
    const said = headers[LENGTH_HEADER]
    const bytes = typeof said === 'string' && /^\d{1,15}$/.test(said) ? Number(said) : undefined
    if (bytes === undefined) {
      socket.destroy()
      throw fail('unavailable', `The host ${this.nameOf(host)} did not say how much it sends.`, {
        remedy: 'upgrade the older host',
      })
    }
    return exactly(socket, bytes, this.nameOf(host))
  }

  #open(host: string, path: string, signal: AbortSignal): Promise<{ socket: Duplex; headers: IncomingHttpHeaders }> {
    return new Promise((resolve, reject) => {
      const request = https.request({
        ...this.options(host),
        agent: false,
        method: 'GET',
        path,
        headers: { connection: 'Upgrade', upgrade: 'wadah' },
        signal,
        timeout: CONNECT_MS,
      })
      request.once('timeout', () => request.destroy(new Error('it did not answer in time')))
      request.once('upgrade', (response, socket, head) => {
        socket.setTimeout(0)
        if (head.length > 0) socket.unshift(head)
        resolve({ socket, headers: response.headers })
      })
      request.once('response', (response) => {
        textOf(response).then(
          (text) => reject(peerFault(text)),
          (cause: unknown) => reject(this.unreachable(host, cause)),
        )
      })
      const stage = stageOf(request)
      request.on('error', (cause) => reject(this.unreachable(host, stage.explain(cause))))
      request.end()
    })
  }

  unreachable(host: string, cause: unknown): WadahError {
    if (cause instanceof WadahError) return cause
    const untimely = outOfTimeFault(`The host ${this.nameOf(host)}`, cause)
    if (untimely) return untimely
    return fail('unavailable', `The host ${this.nameOf(host)} does not answer: ${(cause as Error).message}.`, {
      remedy: 'wadah host list',
      retryable: true,
      effect: 'unknown',
      cause,
    })
  }

  close(): void {
    this.#agent.destroy()
  }
}

const UNTIMELY = new Set(['CERT_NOT_YET_VALID', 'CERT_HAS_EXPIRED'])
/** Whether a certificate was refused for the time alone. `error`: of a connection, or its code. */
export const isUntimely = (error: unknown): boolean =>
  UNTIMELY.has(String((error as { code?: unknown } | undefined)?.code ?? error))

/** A certificate of theirs that does not hold by our clock. `date`: what they say it is. Nothing of ours was sent. */
export function outOfTimeFault(who: string, cause: unknown, date?: string): WadahError | undefined {
  if (!isUntimely(cause)) return undefined
  const theirs = date === undefined ? '' : ` (${who} says: ${date})`
  return fail(
    'wrong_state',
    `${who} shows a certificate that does not hold at this time: ${(cause as Error).message}. By this host's clock it is ${new Date().toUTCString()}${theirs}: one of the two clocks is wrong.`,
    { remedy: CLOCK_REMEDY, effect: 'none', cause: cause as Error },
  )
}

export async function textOf(stream: AsyncIterable<unknown>, most = ANSWER_BYTES): Promise<string> {
  const parts: Buffer[] = []
  let bytes = 0
  for await (const part of stream) {
    const chunk = Buffer.from(part as Uint8Array)
    bytes += chunk.length
    if (bytes > most) throw fail('too_large', `More than ${most} bytes came.`)
    parts.push(chunk)
  }
  return Buffer.concat(parts).toString('utf8')
}

/** What another host refused with; only what a fault is made of is taken over, whatever it sent. */
export function peerFault(text: string): WadahError {
  try {
    const f = JSON.parse(text) as Partial<Fault> | null
    const given = (v: unknown) => (typeof v === 'string' ? v : undefined)
    if (f && typeof f.detail === 'string' && typeof f.code === 'string') {
      const effect = (['none', 'partial', 'unknown'] as const).find((e) => e === f.effect) ?? 'unknown'
      const retryable = f.retryable === true
      const more = { field: given(f.field), remedy: given(f.remedy), effect, retryable }
      // One that only a newer release has is told in its own words all the same.
      const code = Object.hasOwn(FAULTS, f.code) ? (f.code as FaultCode) : 'unavailable'
      return new WadahError(fault(code, f.detail, more))
    }
  } catch {
    // Said below.
  }
  return fail('unavailable', 'The other host gave an answer that this release does not understand.', {
    effect: 'unknown',
  })
}

async function* exactly(socket: Duplex, bytes: number, from: string): AsyncGenerator<Uint8Array> {
  const wrong = (count: string) =>
    fail('unavailable', `The host ${from} announced ${bytes} bytes and sent ${count}.`, { retryable: true })
  let count = 0
  try {
    for await (const part of socket as AsyncIterable<Uint8Array>) {
      count += part.length
      if (count > bytes) throw wrong('more')
      yield part
    }
  } catch (cause) {
    if (cause instanceof WadahError) throw cause
    throw fail('unavailable', `The stream from the host ${from} broke: ${(cause as Error).message}.`, {
      retryable: true,
      cause,
    })
  } finally {
    socket.destroy()
  }
  if (count < bytes) throw wrong(`${count}`)
}
