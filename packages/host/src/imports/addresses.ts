/**
 * Which addresses a URL may lead to. The daemon is root on its host and often inside a network whose services trust each other: a
 * URL that somebody gives it must not reach them (server-side request forgery), by whatever name or redirect.
 */
import { lookup } from 'node:dns/promises'
import { networkInterfaces } from 'node:os'
import { fail } from '@wadah/api/fault'
import ipaddr from 'ipaddr.js'

export type AddressRules = {
  /** Any address may be reached. */
  allowPrivate: boolean
  /** Names, addresses or subnets (CIDR) that may be reached although they are private. */
  allowHosts: readonly string[]
}

/** Why an address may not be reached, or undefined. `own`: addresses of this host. Pure. */
export function addressProblem(address: string, own: readonly string[] = []): string | undefined {
  if (!ipaddr.isValid(address)) return 'no address'
  const parsed = ipaddr.parse(address)
  if (parsed.kind() === 'ipv6') {
    const six = parsed as ipaddr.IPv6
    // IPv4 in IPv6 clothes: what counts is where it leads.
    if (six.isIPv4MappedAddress()) return addressProblem(six.toIPv4Address().toString(), own)
    const bytes = six.toByteArray()
    if (six.range() === 'rfc6052') return addressProblem(bytes.slice(12).join('.'), own)
  }
  const range = parsed.range()
  if (range !== 'unicast') return range
  const same = (other: string): boolean => ipaddr.isValid(other) && ipaddr.parse(other).toString() === parsed.toString()
  return own.some(same) ? 'an address of this host itself' : undefined
}

/** Whether the administrator allowed it. Pure. */
export function allowed(rules: AddressRules, name: string, address: string): boolean {
  if (rules.allowPrivate) return true
  return rules.allowHosts.some((rule) => {
    if (rule.toLowerCase() === name.toLowerCase()) return true
    if (!ipaddr.isValid(address)) return false
    const parsed = ipaddr.process(address)
    if (ipaddr.isValid(rule)) return ipaddr.process(rule).toString() === parsed.toString()
    if (!ipaddr.isValidCIDR(rule)) return false
    const [subnet, bits] = ipaddr.parseCIDR(rule)
    return subnet.kind() === parsed.kind() && parsed.match([subnet, bits] as never)
  })
}

/** For tests; otherwise the system's. */
export type Resolve = (name: string) => Promise<string[]>
const systemResolve: Resolve = async (name) =>
  (await lookup(name, { all: true, order: 'verbatim' })).map((a) => a.address)

/**
 * One address for a name, looked up once: whoever connects must use this very address, so that a second answer of the name server
 * (DNS rebinding) changes nothing. One forbidden address among several is enough to refuse: it would be a trap or a mistake.
 * @throws WadahError `forbidden`, `unreachable`
 */
export async function resolveOnce(
  hostname: string,
  rules: AddressRules,
  resolve: Resolve = systemResolve,
): Promise<string> {
  const name = hostname.replace(/^\[|\]$/g, '')
  const addresses = ipaddr.isValid(name)
    ? [name]
    : await resolve(name).catch((cause: unknown) => {
        throw fail('download_failed', `The name "${name}" is not known (DNS).`, { field: '/url', cause })
      })
  const [first] = addresses
  if (first === undefined) throw fail('download_failed', `The name "${name}" has no address.`, { field: '/url' })
  const own = Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map((a) => a.address.split('%')[0] ?? ''))
  for (const address of addresses) {
    const problem = addressProblem(address, own)
    if (problem === undefined || allowed(rules, name, address)) continue
    throw fail('forbidden', `"${name}" is ${address} (${problem}), which no URL may reach.`, {
      field: '/url',
      remedy: `download it yourself and import the file; or let the administrator add "${name}" to import_allow_hosts in wadahd.toml`,
    })
  }
  return first
}
