/** Opens one connection to the daemon; a TLS peer is proved before a byte (or a token) is sent. */
import net from 'node:net'
import tls from 'node:tls'
import { setTimeout as delay } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import { describeTarget, type Target } from './target.ts'

export type Trust = {
  /** From `--fingerprint`: nothing else is accepted. */
  pinned?: string | undefined
  /** What is remembered of this `HOST:PORT`. */
  remembered(server: string): Promise<string | undefined>
  /** A certificate seen for the first time is accepted and remembered. */
  remember(server: string, fingerprint: string): Promise<void>
}
export type DialOptions = { trust: Trust; signal: AbortSignal; timeout_ms: number; remedy?: string }

export async function dial(target: Target, options: DialOptions): Promise<net.Socket> {
  options.signal.throwIfAborted()
  const done = new AbortController()
  const socket = begin(target)
  const abort = () => socket.destroy(options.signal.reason instanceof Error ? options.signal.reason : undefined)
  options.signal.addEventListener('abort', abort, { once: true })
  let failed: (error: Error) => void = () => {}
  const closed = () => failed(new Error('the connection was closed'))
  try {
    const opened = new Promise<void>((resolve, reject) => {
      failed = reject
      socket.once(target.kind === 'url' && target.url.protocol === 'https:' ? 'secureConnect' : 'connect', resolve)
      socket.on('error', failed)
      socket.on('close', closed)
    })
    await Promise.race([
      opened,
      delay(options.timeout_ms, undefined, { signal: done.signal, ref: false }).then(() => {
        throw Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })
      }),
    ])
    if (socket instanceof tls.TLSSocket && target.kind === 'url') await prove(socket, target.url, options.trust)
    socket.off('error', failed)
    return socket
  } catch (error) {
    socket.on('error', () => {})
    socket.destroy()
    if (options.signal.aborted) throw options.signal.reason
    throw unreachable(target, error, options.remedy)
  } finally {
    socket.off('close', closed)
    done.abort()
    options.signal.removeEventListener('abort', abort)
  }
}

function begin(target: Target): net.Socket {
  if (target.kind === 'socket') return net.connect({ path: target.path })
  const host = target.url.hostname.replace(/^\[|\]$/g, '')
  const port = Number(target.url.port || (target.url.protocol === 'https:' ? 443 : 80))
  if (target.url.protocol === 'http:') return net.connect({ host, port })
  return tls.connect({
    host,
    port,
    // Proved by `prove`, before anything is sent.
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
    minVersion: 'TLSv1.2',
    ...(net.isIP(host) ? {} : { servername: host }),
  })
}

async function prove(socket: tls.TLSSocket, url: URL, trust: Trust): Promise<void> {
  const certificate = socket.getPeerX509Certificate()
  if (!certificate) throw fail('unreachable', `${url.origin} showed no certificate`)
  const seen = certificate.fingerprint256.replaceAll(':', '').toLowerCase()
  const server = `${url.hostname}:${url.port || '443'}`
  if (trust.pinned !== undefined) {
    if (trust.pinned === seen) return
    throw fail(
      'unauthenticated',
      `${url.origin} is not the server you named: its certificate has the SHA-256 fingerprint ${seen}, and ${trust.pinned} was asked for. Nothing was sent`,
      { remedy: 'compare with what `wadah up` prints on the server' },
    )
  }
  // `authorized` already includes the host name: a certificate of a public authority needs no remembering.
  if (socket.authorized) return
  const remembered = await trust.remembered(server)
  if (remembered === seen) return
  if (remembered !== undefined) {
    throw fail(
      'unauthenticated',
      `The certificate of ${url.origin} has changed: ${remembered} is known, ${seen} was shown. Either the server was set up anew, or somebody is in between. Nothing was sent`,
      { remedy: `if it was set up anew: remove the line "${server}" from ~/.config/wadah/known_servers` },
    )
  }
  await trust.remember(server, seen)
}

function unreachable(target: Target, error: unknown, remedy = 'wadah up'): Error {
  if (error instanceof Error && error.name === 'WadahError') return error
  const code = (error as NodeJS.ErrnoException).code ?? ''
  const where = describeTarget(target)
  const options = { remedy, cause: error }
  switch (code) {
    case 'ENOENT':
      return fail('unreachable', `No daemon is running here: there is no socket ${where}`, options)
    case 'ECONNREFUSED':
      return fail('unreachable', `Nothing answers at ${where}: the daemon does not run, or listens elsewhere`, options)
    case 'EACCES':
    case 'EPERM':
      return fail('forbidden', `You may not use the socket ${where}`, {
        remedy: 'use sudo, or log in over HTTPS: wadah login https://127.0.0.1:7443',
        cause: error,
      })
    case 'ETIMEDOUT':
      return fail('unreachable', `${where} does not answer`, options)
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return fail('unreachable', `The name in ${where} cannot be resolved`, {
        cause: error,
        remedy: 'check the address after --server',
      })
    default:
      return fail('unreachable', `${where} cannot be reached (${code || String((error as Error).message)})`, options)
  }
}
