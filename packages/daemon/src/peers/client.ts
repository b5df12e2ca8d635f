/** From this host to another: mutual TLS, and the other one must be who the records say it is. */
import https, { type RequestOptions } from 'node:https'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { fail, WadahError, type Fault } from '@wadah/api/fault'
import type { HostRecord } from '@wadah/cluster/records'
import type { Certificates } from '../cluster/identity.ts'

const CONNECT_MS = 5_000
const ANSWER_MS = 30_000
const ANSWER_BYTES = 8 * 1024 * 1024

export class PeerClient {
  readonly #certificates: () => Certificates
  readonly #host: (id: string) => HostRecord | undefined
  #agent: https.Agent | undefined
  #made: string | undefined

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
    if (this.#made !== pair.cert) {
      this.#agent?.destroy()
      this.#agent = new https.Agent({ keepAlive: true, maxSockets: 64, timeout: 60_000 })
      this.#made = pair.cert
    }
    return {
      host: record.address,
      port: record.ports.peer,
      // Its certificate has its id; an address alone would be anybody's who takes it over.
      servername: host,
      ca: hosts_ca,
      cert: pair.cert,
      key: pair.key,
      minVersion: 'TLSv1.3',
      agent: this.#agent as https.Agent,
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
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = https.request({
        ...this.options(host),
        method: 'POST',
        path,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
        signal: AbortSignal.any([AbortSignal.timeout(o.timeout_ms ?? ANSWER_MS), ...(o.signal ? [o.signal] : [])]),
      })
      request.once('response', resolve)
      request.once('error', (cause) => reject(this.unreachable(host, cause)))
      request.end(text)
    })
    const said = JSON.parse(await textOf(answer)) as unknown
    if ((answer.statusCode ?? 500) >= 300) throw new WadahError(said as Fault)
    return said as T
  }

  /** A raw stream both ways, after HTTP's Upgrade. @throws WadahError what it answered, or `unavailable` */
  open(host: string, path: string, signal: AbortSignal): Promise<Duplex> {
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
      request.once('upgrade', (_response, socket, head) => {
        socket.setTimeout(0)
        if (head.length > 0) socket.unshift(head)
        resolve(socket)
      })
      request.once('response', (response) => {
        textOf(response).then(
          (text) => reject(new WadahError(JSON.parse(text) as Fault)),
          (cause: unknown) => reject(this.unreachable(host, cause)),
        )
      })
      request.once('error', (cause) => reject(this.unreachable(host, cause)))
      request.end()
    })
  }

  unreachable(host: string, cause: unknown): WadahError {
    if (cause instanceof WadahError) return cause
    return fail('unavailable', `The host ${this.nameOf(host)} does not answer: ${(cause as Error).message}.`, {
      remedy: 'wadah host list',
      retryable: true,
      effect: 'unknown',
      cause,
    })
  }

  close(): void {
    this.#agent?.destroy()
  }
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
