/** The certificate a listening daemon shows, asked for over loopback. */
import tls from 'node:tls'

/** SHA-256 as 64 hex digits, or undefined when nothing answers with TLS. */
export async function fingerprintOf(host: string, port: number, timeout_ms = 5000): Promise<string | undefined> {
  return await new Promise((resolve) => {
    const socket = tls.connect({ host, port, rejectUnauthorized: false, timeout: timeout_ms })
    const end = (value: string | undefined) => {
      socket.destroy()
      resolve(value)
    }
    socket.once('secureConnect', () =>
      end(socket.getPeerX509Certificate()?.fingerprint256.replaceAll(':', '').toLowerCase()),
    )
    socket.once('timeout', () => end(undefined))
    socket.once('error', () => end(undefined))
  })
}
