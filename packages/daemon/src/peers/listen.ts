/** Where the other hosts of the cluster come in. Nobody else passes, but a host that has a token to join. */
import https from 'node:https'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { type Fault, fail, toFault } from '@wadah/api/fault'
import type { Certificates } from '../cluster/identity.ts'
import { problem } from '../http/problems.ts'
import { overPeer } from '../http/types.ts'
import { textOf } from './client.ts'

export type PeerHandlers = {
  /** Without a certificate: a host that wants to join. */
  join: (body: unknown, remote: string) => Promise<unknown>
  /** Questions of hosts of the cluster, by path. */
  asked: Record<string, (body: unknown, host: string) => Promise<unknown>>
  /** Streams, by path. */
  opened: Record<string, (query: URLSearchParams, host: string, socket: Duplex) => Promise<void>>
  /** Requests of the API that another host passes on. */
  api: (request: IncomingMessage, response: ServerResponse) => void
  isHost: (id: string) => boolean
  log: (line: string) => void
}

const JOIN_BYTES = 64 * 1024 * 1024
const JOINS_AT_ONCE = 2

export class PeerServer {
  readonly #server: https.Server
  readonly #handlers: PeerHandlers
  readonly #sockets = new Set<Socket>()
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
      (request, response) => void this.#answer(request, response),
    )
    this.#server.maxConnections = 1024
    this.#server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on('error', () => socket.destroy())
      if (head.length > 0) socket.unshift(head)
      this.#upgrade(request, socket).catch((error: unknown) => {
        if (toFault(error).code === 'internal')
          this.#handlers.log(`peers: ${request.url ?? ''}: ${(error as Error).stack ?? String(error)}`)
        // Once it is a stream an answer would only be taken for a part of it.
        if ((socket as Socket).bytesWritten > 0) socket.destroy()
        else refuse(socket, toFault(error))
      })
    })
    this.#server.on('secureConnection', (socket: TLSSocket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
    })
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
    for (const socket of this.#sockets) socket.destroy()
    return closed
  }

  /** The host at the other end; undefined when it has not shown a certificate of a host that is of the cluster now. */
  #peer(socket: TLSSocket): string | undefined {
    if (!socket.authorized) return undefined
    const { subject } = socket.getPeerCertificate()
    const host = subject?.CN
    return typeof host === 'string' && this.#handlers.isHost(host) ? host : undefined
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '').split('?')[0] ?? ''
    const socket = request.socket as TLSSocket
    try {
      // No secret: whoever wants to join holds its fingerprint against the token's.
      if (path === '/peer/v1/authority' && request.method === 'GET')
        return send(response, 200, { authority: this.#authority })
      if (path === '/peer/v1/join' && request.method === 'POST') {
        if (this.#joining >= JOINS_AT_ONCE)
          throw fail('rate_limited', 'Other hosts are joining; try again in a moment.')
        this.#joining += 1
        try {
          const body = JSON.parse(await textOf(request, JOIN_BYTES)) as unknown
          return send(response, 200, await this.#handlers.join(body, socket.remoteAddress ?? ''))
        } finally {
          this.#joining -= 1
        }
      }
      const host = this.#peer(socket)
      if (host === undefined)
        throw fail('unauthenticated', 'Only hosts of this cluster come in here.', {
          remedy: 'wadah cluster join TOKEN',
        })
      const asked = path.startsWith('/peer/') ? this.#handlers.asked[path] : undefined
      if (asked) return send(response, 200, await asked(JSON.parse(await textOf(request)) as unknown, host))
      if (!path.startsWith('/v1/')) throw fail('not_found', `There is nothing at ${path.slice(0, 200)}.`)
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
    if (host === undefined) throw fail('unauthenticated', 'Only hosts of this cluster come in here.')
    const { pathname, searchParams } = new URL(request.url ?? '/', 'https://peer')
    const opened = this.#handlers.opened[pathname]
    if (!opened) throw fail('not_found', `There is nothing at ${pathname.slice(0, 200)}.`)
    await opened(searchParams, host, socket)
  }
}

/** To be written before the first byte of the stream. */
export const UPGRADED = 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wadah\r\n\r\n'

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

function refuse(socket: Duplex, fault: Fault): void {
  if (!socket.writable) return void socket.destroy()
  const body = JSON.stringify(problem(fault))
  socket.end(
    `HTTP/1.1 ${fault.status} Error\r\nContent-Type: application/problem+json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
}
