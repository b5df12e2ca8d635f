/**
 * The way of a broken post-copy back into the QEMU of its target. That QEMU's main loop may hang on the very page that is to come: a
 * device, or an interrupt under TCG, touches the guest's memory while holding QEMU's lock. Its monitor then carries out nothing but
 * out-of-band commands, and of a new connection it takes plain bytes only, for it shakes hands (TLS) in that main loop. So the daemon
 * does that for it, and hands on what comes to a socket that only this QEMU's user reaches.
 */
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

/**
 * Listens on `host` for one connection, which ends when either side ends it, by TLS for this peer alone where both are given, and hands on between it and the UNIX socket `path`.
 * @throws WadahError `qemu_failed`: it can't listen
 */
export async function relay(host: string, path: string, tls?: { mine: MoveIdentity; peer: MovePeer }): Promise<Relay> {
  const open = new Set<Socket>()
  const take = (from: Socket) => {
    const isPeer = !tls || (from as TLSSocket).getPeerCertificate().subject?.CN === tls.peer.name
    if (!isPeer || open.size > 0) return from.destroy()
    server.close()
    const to = connect(path)
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      open.add(one)
      one.setNoDelay(true)
      one.pipe(other)
      one.on('error', () => {})
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
        take,
      )
    : createServer(take)
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
      server.close()
      for (const socket of open) socket.destroy()
    },
  }
}
