/** Decides which daemon a command talks to. */
import { fail } from '@wadah/api/fault'
import { instanceOf } from '../local/instance.ts'

export type Target = { kind: 'socket'; path: string } | { kind: 'url'; url: URL }

export type Wish = { server?: string | undefined; socket?: string | undefined }
/** Sockets that are looked for when nothing is said, in this order. */
export const DEFAULT_SOCKETS = ['/run/wadah/wadahd.sock', '/run/wadah-demo/wadahd.sock'] as const

/** Pure but for `exists`. Options win over the environment, and that over the usual places: of an ordinary user their own comes first. */
export function chooseTarget(
  wish: Wish,
  env: Record<string, string | undefined>,
  exists: (path: string) => boolean,
  uid = 0,
): Target {
  if (wish.server !== undefined && wish.socket !== undefined) {
    throw fail('invalid', '--server and --socket cannot be given together: one command talks to one daemon')
  }
  if (wish.socket !== undefined) return { kind: 'socket', path: wish.socket }
  if (wish.server !== undefined) return { kind: 'url', url: parseServer(wish.server) }
  if (env['WADAH_SERVER']) return { kind: 'url', url: parseServer(env['WADAH_SERVER']) }
  if (env['WADAH_SOCKET']) return { kind: 'socket', path: env['WADAH_SOCKET'] }
  const own = uid === 0 ? [] : [instanceOf('default', { uid, env }).socket]
  const places = [...own, ...DEFAULT_SOCKETS]
  return { kind: 'socket', path: places.find(exists) ?? (places[0] as string) }
}

/** `https://host:7443`; `host` and `host:port` are taken as https. Plain http only to this machine: a token must not travel in the clear. */
export function parseServer(text: string): URL {
  const full = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `https://${text}`
  const url = URL.canParse(full) ? new URL(full) : undefined
  if (!url || !['https:', 'http:'].includes(url.protocol) || url.hostname === '') {
    throw fail('invalid', `--server: "${text}" is not an address; write https://HOST:7443`, { field: '--server' })
  }
  if (url.username || url.password) {
    throw fail('invalid', '--server: a user or password does not belong in the address; use WADAH_TOKEN', {
      field: '--server',
    })
  }
  if (url.protocol === 'http:' && !isLoopback(url.hostname)) {
    throw fail('invalid', `--server: http:// is taken for this machine only; write https://${url.host}`, {
      field: '--server',
    })
  }
  if (url.port === '' && url.protocol === 'https:' && !/:443(\/|$)/.test(full)) url.port = '7443'
  return url
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '[::1]' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host)
}

/** How a target is named in messages. */
export function describeTarget(target: Target): string {
  return target.kind === 'socket' ? target.path : target.url.origin
}
