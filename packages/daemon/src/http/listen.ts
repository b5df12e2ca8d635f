/** The sockets: HTTPS and the UNIX socket in front of one application; and how they are let go. */
import { readFileSync } from 'node:fs'
import { chmod, chown, lstat, mkdir, rm } from 'node:fs/promises'
import http, { type IncomingMessage, type Server, type ServerOptions as HttpOptions } from 'node:http'
import https from 'node:https'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { hostname } from 'node:os'
import { dirname } from 'node:path'
import type { Duplex } from 'node:stream'
import { fail, fault } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { crossSiteProblem, hostProblem } from './guard.ts'
import { answerRaw } from './problems.ts'
import { type Built, buildServer, type ServerOptions } from './server.ts'
import { Sources } from './sources.ts'
import { type Certificate, ensureCertificate, ownAddresses } from './tls.ts'
import { overSocket } from './types.ts'

export type ListenOptions = {
  /** Address and port for HTTPS; port 0 takes a free one. */
  host: string
  port: number
  /** Folder of `tls.key` and `tls.crt`. */
  tlsDirectory: string
  /** Path of the UNIX socket; it is 0660 for this group when there is one, else 0600. */
  socket?: { path: string; group: string }
}

export type Running = Built & {
  url: string
  port: number
  certificate: Certificate
  /** The one-time link for a new administrator. */
  setupLink(): Promise<string>
  /** Lets requests under way end, for at most `grace_ms` (default 5000); then everything is closed. */
  stop(grace_ms?: number): Promise<void>
}

const DAY_MS = 24 * 3_600_000
const NODE_OPTIONS: HttpOptions = {
  maxHeaderSize: 16 * 1024,
  headersTimeout: 20_000,
  // An upload of gigabytes takes its time; the body has time limits of its own (hooks.ts, streams.ts).
  requestTimeout: 0,
  keepAliveTimeout: 30_000,
  connectionsCheckingInterval: 10_000,
  keepAlive: true,
  keepAliveInitialDelay: 60_000,
  // Refused by us, with words.
  requireHostHeader: false,
}

/** @throws WadahError when the port or the socket is taken, naming it */
export async function startServer(o: ServerOptions & { listen: ListenOptions }): Promise<Running> {
  const { listen, clock } = o
  const wildcard = listen.host === '0.0.0.0' || listen.host === '::'
  const names = [...(o.names ?? []), ...(wildcard ? ownAddresses() : [listen.host])]
  const certificateOptions = { directory: listen.tlsDirectory, names, now_ms: () => clock.now_ms() }
  let certificate = await ensureCertificate(certificateOptions)
  const built = await buildServer({ ...o, names })
  const handler = (request: IncomingMessage, response: http.ServerResponse) => built.app.routing(request, response)
  const secure = https.createServer(
    {
      ...NODE_OPTIONS,
      key: certificate.key,
      cert: certificate.cert,
      minVersion: 'TLSv1.2',
      handshakeTimeout: 10_000,
      ALPNProtocols: ['http/1.1'],
    },
    handler,
  )
  const servers: Server[] = [secure as unknown as Server]
  const sockets = new Set<Duplex>()
  limitConnections(secure as unknown as Server, built)
  let cancelRenewal = () => {}
  try {
    if (listen.socket) {
      const local = http.createServer(NODE_OPTIONS, handler)
      local.on('connection', (socket) => overSocket.add(socket))
      await listenLocal(local, listen.socket)
      servers.push(local)
    }
    await listenTcp(secure as unknown as Server, listen.host, listen.port)
  } catch (error) {
    await Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))))
    await built.app.close()
    throw error
  }
  for (const server of servers) {
    server.on('upgrade', (request, socket, head) => upgrade(built, request, socket, head))
    server.on('clientError', refuseUnreadable)
    for (const event of ['connection', 'secureConnection']) {
      server.on(event, (socket: Socket) => {
        sockets.add(socket)
        socket.once('close', () => sockets.delete(socket))
      })
    }
  }
  const renew = () => {
    cancelRenewal = clock.timer(() => {
      renew()
      ensureCertificate(certificateOptions).then(
        (now) => {
          if (!now.made) return
          certificate = now
          secure.setSecureContext({ key: now.key, cert: now.cert, minVersion: 'TLSv1.2' })
          o.log.warn(
            { fingerprint: now.fingerprint },
            'a new certificate was made; clients that pinned the old one must be told',
          )
        },
        (error: unknown) => o.log.error({ err: error }, 'the certificate could not be renewed'),
      )
    }, DAY_MS)
  }
  renew()
  const { port } = secure.address() as AddressInfo
  const shown = wildcard ? hostname() : listen.host
  const url = o.publicUrl ?? `https://${hostPort(shown, port)}`
  built.setPublicUrl(url)
  return {
    ...built,
    url,
    port,
    get certificate() {
      return certificate
    },
    async setupLink() {
      return `${url}/setup#${(await built.access.newSetupCode()).code}`
    },
    async stop(grace_ms = 5000) {
      cancelRenewal()
      await closeAll(built, servers, sockets, grace_ms)
    },
  }
}

async function closeAll(built: Built, servers: Server[], sockets: Set<Duplex>, grace_ms: number): Promise<void> {
  const closed = Promise.all(servers.map((s) => new Promise((resolve) => s.close(resolve))))
  built.events.close()
  built.consoles.close()
  // Connections that are kept alive end as soon as their answer is through.
  const idle = setInterval(() => {
    for (const server of servers) server.closeIdleConnections()
  }, 50)
  const late = setTimeout(() => {
    for (const socket of sockets) socket.destroy()
  }, grace_ms)
  await closed
  clearInterval(idle)
  clearTimeout(late)
  for (const socket of sockets) socket.destroy()
  await built.app.close()
  await built.audit.close()
}

function listenTcp(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') {
        reject(
          fail('port_taken', `Port ${port} of ${host} is in use by another program.`, {
            remedy: `find it with: ss -ltnp 'sport = :${port}'`,
          }),
        )
      } else if (error.code === 'EADDRNOTAVAIL') {
        reject(fail('invalid', `${host} is no address of this machine.`, { remedy: 'ip -brief address' }))
      } else reject(error)
    })
    server.listen({ host, port }, () => {
      server.removeAllListeners('error')
      resolve()
    })
  })
}

async function listenLocal(server: Server, { path, group }: { path: string; group: string }): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o755 })
  await removeStale(path)
  // Nobody may connect between the making of the file and the setting of its mode.
  const before = process.umask(0o177)
  const listening = new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(path, () => {
      server.removeAllListeners('error')
      resolve()
    })
  })
  process.umask(before)
  await listening
  const gid = groupId(group)
  if (gid === undefined) return
  try {
    await chown(path, process.getuid?.() ?? 0, gid)
    await chmod(path, 0o660)
  } catch (error) {
    // Not root, and not a member of that group: the socket stays ours alone.
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error
  }
}

/** A socket that a killed daemon left behind. One that answers is another daemon's. */
async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined)
  if (!found) return
  if (!found.isSocket())
    throw fail('in_use', `${path} is there and is no socket.`, { remedy: 'move it away, or set another path' })
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(path)
    probe.once('connect', () => resolve(true)).once('error', () => resolve(false))
    probe.once('connect', () => probe.destroy())
  })
  if (answers) throw fail('in_use', `Another wadahd answers on ${path}.`, { remedy: 'stop that one first' })
  await rm(path, { force: true })
}

/** From /etc/group: a group of the machine itself, not of a directory service. */
function groupId(name: string): number | undefined {
  try {
    const line = readFileSync('/etc/group', 'utf8')
      .split('\n')
      .find((l) => l.startsWith(`${name}:`))
    const gid = Number(line?.split(':')[2])
    return Number.isInteger(gid) ? gid : undefined
  } catch {
    return undefined
  }
}

function limitConnections(server: Server, { limits }: Built): void {
  server.maxConnections = limits.connections
  const sources = new Sources(limits.connectionsPerSource)
  server.on('connection', (socket: Socket) => {
    const source = socket.remoteAddress ?? ''
    if (!sources.enter(source)) return socket.destroy()
    socket.once('close', () => sources.leave(source))
  })
}

function upgrade(built: Built, request: IncomingMessage, socket: Duplex, head: Buffer): void {
  const { host, origin, 'sec-fetch-site': site } = request.headers
  socket.on('error', () => socket.destroy())
  if ((request.url ?? '').split('?')[0] !== '/v1/console') {
    return answerRaw(socket, fault('not_found', 'The only WebSocket is /v1/console.'))
  }
  if (!overSocket.has(socket)) {
    const local = (socket as Socket).localAddress
    // As strict as for a change made with a cookie, but programs need not say where they come from: the ticket proves it.
    const came = { method: 'GET', host, origin, site: typeof site === 'string' ? site : undefined, byCookie: true }
    const wrong = hostProblem(host, built.names, local) ?? crossSiteProblem(came)
    if (wrong) return answerRaw(socket, wrong.fault)
  }
  built.consoles.upgrade(request, socket, head)
}

/** What Node could not read as HTTP, or not in time. */
function refuseUnreadable(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy()
  const detail =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? 'The headers are larger than 16 KiB.'
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? 'The headers did not come within 20 seconds.'
        : 'This is not HTTP/1.1.'
  answerRaw(socket, fault('malformed', detail))
}
