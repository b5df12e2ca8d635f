/** Where the other hosts of the cluster come in. Nobody else passes, but a host that has a token to join. */
import https from 'node:https'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import { CLOCK_REMEDY } from '@wadah/cluster/members/way'
import type { Certificates } from '../cluster/identity.ts'
import { answerRaw, problem } from '../http/problems.ts'
import { Sources } from '../http/sources.ts'
import { overPeer } from '../http/types.ts'
import { isUntimely, textOf } from './client.ts'

export type PeerHandlers = {
  /** Without a certificate: whether any host may come with this secret. Said before more is read. @throws WadahError */
  checkSecret: (secret: string) => void
  /** A host that wants to join, and showed a secret that is known. */
  join: (secret: string, body: unknown) => Promise<unknown>
  /** Questions of hosts of the cluster, by path. */
  asked: Record<string, (body: unknown, host: string) => Promise<unknown>>
  /** Streams, by path. */
  opened: Record<string, (query: URLSearchParams, host: string, socket: Duplex) => Promise<void>>
  /** Requests of the API that another host passes on. */
  api: (request: IncomingMessage, response: ServerResponse) => void
  isHost: (id: string) => boolean
  log: (line: string) => void
}

export const AUTHORITY_PATH = '/peer/v1/authority'
export const JOIN_PATH = '/peer/v1/join'
export const JOIN_SECRET_HEADER = 'wadah-join-secret'

const JOIN_BYTES = 64 * 1024 * 1024
const ASKED_BYTES = 8 * 1024 * 1024
const JOINS_AT_ONCE = 2
/** A body that is not there by then comes from somebody who wants to hold the connection. */
const JOIN_BODY_MS = 120_000
const ASKED_BODY_MS = 30_000
/** Of one address, with all that hosts have open to each other; of those that showed no certificate of a host; of all of these. */
const PER_SOURCE = 512
const STRANGERS_PER_SOURCE = 8
const STRANGERS = 64

export class PeerServer {
  readonly #server: https.Server
  readonly #handlers: PeerHandlers
  /** With the host that the other end's certificate names; undefined where it has shown none of ours. */
  readonly #sockets = new Map<TLSSocket, string | undefined>()
  readonly #sources = new Sources(PER_SOURCE)
  readonly #strangers = new Sources(STRANGERS_PER_SOURCE)
  readonly #authority: string
  #joining = 0

  constructor(certificates: Certificates, handlers: PeerHandlers) {
    this.#handlers = handlers
    this.#authority = certificates.hosts_ca
    this.#server = https.createServer(
      {
        ...credentialsOf(certificates),
        requestCert: true,
        // A host that joins has none yet; everything else is refused without (see below).
        rejectUnauthorized: false,
        minVersion: 'TLSv1.3',
        handshakeTimeout: 10_000,
        maxHeaderSize: 16 * 1024,
        headersTimeout: 20_000,
        requestTimeout: 0,
        keepAliveTimeout: 75_000,
      },
      (request, response) => void this.#answer(request, response, false),
    )
    // What is large is sent only once it is wanted.
    this.#server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
      void this.#answer(request, response, true)
    })
    this.#server.maxConnections = 1024
    this.#server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on('error', () => socket.destroy())
      if (head.length > 0) socket.unshift(head)
      this.#upgrade(request, socket).catch((error: unknown) => {
        if (toFault(error).code === 'internal')
          this.#handlers.log(`peers: ${request.url ?? ''}: ${(error as Error).stack ?? String(error)}`)
        // Once it is a stream an answer would only be taken for a part of it.
        if ((socket as Socket).bytesWritten > 0) socket.destroy()
        else answerRaw(socket, toFault(error))
      })
    })
    this.#server.on('connection', (socket: Socket) => {
      const source = socket.remoteAddress ?? ''
      if (!this.#sources.enter(source)) return socket.destroy()
      socket.once('close', () => this.#sources.leave(source))
    })
    this.#server.on('secureConnection', (socket: TLSSocket) => this.#entered(socket))
  }

  listen(address: string, port: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause: NodeJS.ErrnoException) => {
        const what =
          cause.code === 'EADDRINUSE'
            ? fail('port_taken', `Port ${port} of ${address} is in use by another program.`, {
                remedy: `ss -ltnp 'sport = :${port}'`,
                cause,
              })
            : cause.code === 'EADDRNOTAVAIL'
              ? fail(
                  'invalid',
                  `${address}, this host's address in the cluster, is no address of this machine any more.`,
                  {
                    remedy: 'give the machine that address again, or take it out of the cluster and let it join anew',
                    cause,
                  },
                )
              : cause
        reject(what)
      })
      this.#server.listen({ host: address, port }, () => {
        this.#server.removeAllListeners('error')
        this.#server.on('error', (error) => this.#handlers.log(`peers: ${error.message}`))
        resolve()
      })
    })
  }

  /** New connections get these. */
  renew(certificates: Certificates): void {
    this.#server.setSecureContext({ ...credentialsOf(certificates), minVersion: 'TLSv1.3' })
  }

  close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    for (const socket of this.#sockets.keys()) socket.destroy()
    return closed
  }

  /** Ends what hosts have open here that are not of the cluster any more. */
  dropRemoved(): void {
    for (const [socket, host] of this.#sockets) if (host !== undefined && !this.#handlers.isHost(host)) socket.destroy()
  }

  #entered(socket: TLSSocket): void {
    if (this.#peer(socket) === undefined) {
      const source = socket.remoteAddress ?? ''
      const strangers = [...this.#sockets.values()].filter((h) => h === undefined || !this.#handlers.isHost(h)).length
      if (strangers >= STRANGERS || !this.#strangers.enter(source)) return void socket.destroy()
      socket.once('close', () => this.#strangers.leave(source))
    }
    this.#sockets.set(socket, certified(socket))
    socket.once('close', () => this.#sockets.delete(socket))
  }

  /** The host at the other end; undefined when it has not shown a certificate of a host that is of the cluster now. */
  #peer(socket: TLSSocket): string | undefined {
    const host = certified(socket)
    return host !== undefined && this.#handlers.isHost(host) ? host : undefined
  }

  /** `waits`: the other side sends its body only when it is told to (RFC 9110, 10.1.1). */
  async #answer(request: IncomingMessage, response: ServerResponse, waits: boolean): Promise<void> {
    const path = (request.url ?? '').split('?')[0] ?? ''
    const socket = request.socket as TLSSocket
    const host = this.#peer(socket)
    // A stranger has one request; what it still sends after a refusal is not read.
    if (host === undefined) response.shouldKeepAlive = false
    const body = async (most: number, time_ms: number): Promise<unknown> => {
      if (Number(request.headers['content-length'] ?? 0) > most)
        throw fail('too_large', `The body has more than ${most} bytes.`)
      if (waits) response.writeContinue()
      return JSON.parse(await bodyOf(request, most, time_ms)) as unknown
    }
    try {
      // No secret: whoever wants to join holds its fingerprint against the token's.
      if (path === AUTHORITY_PATH && request.method === 'GET')
        return send(response, 200, { authority: this.#authority })
      if (path === JOIN_PATH && request.method === 'POST') {
        const secret = request.headers[JOIN_SECRET_HEADER]
        if (typeof secret !== 'string') throw fail('unauthenticated', 'A host that joins shows the secret of a token.')
        this.#handlers.checkSecret(secret)
        if (this.#joining >= JOINS_AT_ONCE)
          throw fail('rate_limited', 'Other hosts are joining; try again in a moment.')
        this.#joining += 1
        try {
          return send(response, 200, await this.#handlers.join(secret, await body(JOIN_BYTES, JOIN_BODY_MS)))
        } finally {
          this.#joining -= 1
        }
      }
      if (host === undefined) throw strange(socket)
      const asked = path.startsWith('/peer/') ? this.#handlers.asked[path] : undefined
      if (asked) return send(response, 200, await asked(await body(ASKED_BYTES, ASKED_BODY_MS), host))
      if (!path.startsWith('/v1/')) throw fail('not_found', `There is nothing at ${path.slice(0, 200)}.`)
      if (waits) response.writeContinue()
      overPeer.set(socket, host)
      this.#handlers.api(request, response)
    } catch (error) {
      const fault = error instanceof SyntaxError ? fail('malformed', 'The body is not JSON.').fault : toFault(error)
      if (fault.code === 'internal') this.#handlers.log(`peers: ${path}: ${(error as Error).stack ?? String(error)}`)
      send(response, fault.status, problem(fault))
    }
  }

  async #upgrade(request: IncomingMessage, socket: Duplex): Promise<void> {
    const host = this.#peer(request.socket as TLSSocket)
    if (host === undefined) throw strange(request.socket as TLSSocket)
    const { pathname, searchParams } = new URL(request.url ?? '/', 'https://peer')
    const opened = this.#handlers.opened[pathname]
    if (!opened) throw fail('not_found', `There is nothing at ${pathname.slice(0, 200)}.`)
    await opened(searchParams, host, socket)
  }
}

/** To be written before the first byte of the stream. */
export function upgraded(headers: Record<string, string> = {}): string {
  const more = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wadah\r\n${more.join('')}\r\n`
}

/** @throws WadahError `too_large`, `timeout` */
async function bodyOf(request: IncomingMessage, most: number, time_ms: number): Promise<string> {
  const late = fail('timeout', `The body did not come within ${time_ms / 1000} s.`)
  const timer = setTimeout(() => request.destroy(late), time_ms)
  try {
    return await textOf(request, most)
  } catch (error) {
    if (error instanceof WadahError) throw error
    throw fail('malformed', 'The body broke off.', { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

/** Whoever shows no certificate of a host that is of the cluster now. */
function strange(socket: TLSSocket): WadahError {
  if (isUntimely(socket.authorizationError))
    return fail(
      'unauthenticated',
      `The certificate of the host that asks does not hold at this time (here it is ${new Date().toUTCString()}): one of the two clocks is wrong.`,
      { remedy: CLOCK_REMEDY },
    )
  return fail('unauthenticated', 'Only hosts of this cluster come in here.', { remedy: 'wadah cluster join TOKEN' })
}

/** Whether a host of that name is of the cluster now is another question. */
function certified(socket: TLSSocket): string | undefined {
  const host = socket.authorized ? socket.getPeerCertificate().subject?.CN : undefined
  return typeof host === 'string' ? host : undefined
}

const credentialsOf = ({ host, hosts_ca }: Certificates) => ({
  key: host.key,
  cert: host.cert,
  ca: hosts_ca,
})

function send(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent) return void response.destroy()
  const text = JSON.stringify(body ?? {})
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) })
  response.end(text)
}
