/**
 * The way of a broken post-copy back into the QEMU of its target. That QEMU's main loop may hang on the very page that is to come: a
 * device, or an interrupt under TCG, touches the guest's memory while holding QEMU's lock. Its monitor then carries out nothing but
 * out-of-band commands, and of a new connection it takes plain bytes only, for it shakes hands (TLS) in that main loop. So the daemon
 * does that for it, and hands on what comes to a socket that only this QEMU's user reaches.
 */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { type Server, type Socket, connect, createServer } from 'node:net'
import { type TLSSocket, createServer as createTlsServer } from 'node:tls'
import { fail } from '@wadah/api/fault'
import type { MovePeer } from '@wadah/ports/migration'
import type { MoveIdentity } from './certificates.ts'

/** Who does not come within this asks for another one. */
const COMES_MS = 60_000

export type Relay = {
  port: number
  /** Whatever goes through it breaks. */
  close(): void
}

/** As on Linux; Node has no name for it. */
const O_PATH = 0o10000000

/**
 * The socket of this user at `path`, which lies in a folder of that user: whoever escaped into it may have put something else there, and this
 * daemon, as root, would reach it.
 */
async function connectAsTo(path: string, uid: number | null): Promise<Socket> {
  const file = await open(path, O_PATH | constants.O_NOFOLLOW)
  try {
    const stat = await file.stat()
    if (!stat.isSocket() || (uid !== null && stat.uid !== uid)) throw new Error(`${path} is not QEMU's socket`)
    const socket = connect(`/proc/self/fd/${file.fd}`)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    return socket
  } finally {
    await file.close()
  }
}

/**
 * Listens on `host` for one connection, by TLS for this peer alone where both are given, and hands on between it and the UNIX socket `path`
 * of `uid`, until either side ends.
 * @throws WadahError `qemu_failed`: it can't listen
 */
export async function relay(
  host: string,
  { path, uid }: { path: string; uid: number | null },
  tls?: { mine: MoveIdentity; peer: MovePeer },
): Promise<Relay> {
  /** Those too that have not shaken hands yet. */
  const sockets = new Set<Socket>()
  let taken = false
  const take = async (from: Socket) => {
    from.on('error', () => {})
    const isPeer = !tls || (from as TLSSocket).getPeerCertificate().subject?.CN === tls.peer.name
    if (!isPeer || taken) return from.destroy()
    taken = true
    server.close()
    const to = await connectAsTo(path, uid).catch(() => undefined)
    if (!to) return from.destroy()
    to.on('error', () => {})
    sockets.add(to)
    if (from.destroyed) return to.destroy()
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      one.setNoDelay(true)
      one.pipe(other)
      // What came before is still handed on.
      one.on('close', () => other.destroySoon())
    }
  }
  const server: Server = tls
    ? createTlsServer(
        {
          cert: tls.mine.cert,
          key: tls.mine.key,
          ca: tls.peer.ca,
          requestCert: true,
          rejectUnauthorized: true,
          minVersion: 'TLSv1.2',
        },
        (socket) => void take(socket),
      )
    : createServer((socket) => void take(socket))
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, host, resolve)
  }).catch((error: unknown) => {
    throw fail('qemu_failed', `Nothing can listen on ${host} for the rest of the guest.`, { cause: error })
  })
  server.on('error', () => {})
  setTimeout(() => server.close(), COMES_MS).unref()
  return {
    port: (server.address() as { port: number }).port,
    close() {
      taken = true
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}
