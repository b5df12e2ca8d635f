/** Keeps other people's web pages out: DNS rebinding (by the Host header) and cross-site requests (by where they say they come from). */
import { networkInterfaces, hostname } from 'node:os'
import { fail, type WadahError } from '@wadah/api/fault'

/** `wadah.example:8443` → `wadah.example`; `[::1]:8443` → `::1`. Undefined for what is no host. */
export function hostName(header: string | undefined): string | undefined {
  const found = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?$/.exec(header ?? '')
  return (found?.[1] ?? found?.[2])?.toLowerCase().replace(/\.$/, '')
}

/** The names this daemon answers to: loopback, its own name and addresses, and what was configured. */
export function ownNames(configured: readonly string[]): Set<string> {
  const own = hostname().toLowerCase()
  const addresses = Object.values(networkInterfaces())
    .flatMap((all) => all ?? [])
    .map((a) => a.address.toLowerCase())
  return new Set(['localhost', '127.0.0.1', '::1', own, ...addresses, ...configured.map((n) => n.toLowerCase())])
}

/** `local`: the address that the connection itself was made to, which may be newer than the list of names. */
export function hostProblem(
  header: string | undefined,
  names: ReadonlySet<string>,
  local?: string,
): WadahError | undefined {
  const name = hostName(header)
  if (name !== undefined && (names.has(name) || name === local?.replace(/^::ffff:/, '').toLowerCase())) return undefined
  return fail('forbidden', `This daemon does not answer to the name "${(header ?? '').slice(0, 200)}".`, {
    remedy:
      'use localhost or the address of the host, or add the name to `names` under [listen] in the configuration of wadahd',
  })
}

export type Came = {
  method: string
  host: string | undefined
  origin: string | undefined
  /** Sec-Fetch-Site */
  site: string | undefined
  /** Proved by the cookie alone, which a browser adds by itself. */
  byCookie: boolean
}

const SAFE = new Set(['GET', 'HEAD', 'OPTIONS'])

/** A page of another origin may neither change anything nor read anything with the user's cookie. */
export function crossSiteProblem(came: Came): WadahError | undefined {
  const { method, host, origin, site, byCookie } = came
  const safe = SAFE.has(method)
  if (safe && !byCookie) return undefined
  // `none`: typed into the address bar.
  if (site !== undefined && site !== 'same-origin' && site !== 'none') return refusal()
  if (origin !== undefined && origin !== `https://${host}`) return refusal()
  if (!safe && byCookie && site === undefined && origin === undefined) {
    return fail(
      'forbidden',
      'A change with a session cookie must say where it comes from (Origin); programs use an API token.',
      {
        remedy: 'wadah token create NAME --scope full',
      },
    )
  }
  return undefined
}

const refusal = () => fail('forbidden', 'The request comes from a page of another site.')
