/** Where the other hosts are to reach this one. Pure, but for the list of this machine's addresses. */
import { BlockList, isIP, SocketAddress } from 'node:net'
import { networkInterfaces } from 'node:os'
import { fail } from '@wadah/api/fault'

const LOOPBACK = new BlockList()
LOOPBACK.addSubnet('127.0.0.0', 8)
LOOPBACK.addAddress('::1', 'ipv6')
/** RFC 3927, RFC 4291 (2.5.6). */
const LINK_LOCAL = new BlockList()
LINK_LOCAL.addSubnet('169.254.0.0', 16)
LINK_LOCAL.addSubnet('fe80::', 10, 'ipv6')
/** "Any", and multicast. */
const NO_HOST = new BlockList()
NO_HOST.addSubnet('0.0.0.0', 8)
NO_HOST.addSubnet('224.0.0.0', 3)
NO_HOST.addAddress('::', 'ipv6')
NO_HOST.addSubnet('ff00::', 8, 'ipv6')

/** In the one form that others compare by: `2001:DB8::0:1` is `2001:db8::1`. Undefined for what is no address. */
export function canonical(address: string): string | undefined {
  const bare = address.split('%', 1)[0] ?? ''
  const version = isIP(bare)
  if (version === 0) return undefined
  const family = version === 6 ? 'ipv6' : 'ipv4'
  return new SocketAddress({ address: bare, family }).address
}

/** Why no other host can come to this one there; undefined for an address that may do. */
export function unreachableFor(address: string): string | undefined {
  const bare = canonical(address)
  if (bare === undefined) return 'it is no IP address'
  const family = isIP(bare) === 6 ? 'ipv6' : 'ipv4'
  if (LOOPBACK.check(bare, family)) return 'it is of the loopback, which each host has for itself'
  if (LINK_LOCAL.check(bare, family)) return 'it is link-local: it holds on one cable only, and each host may choose it'
  if (NO_HOST.check(bare, family)) return 'it is the address of no one host'
  return undefined
}

/** @returns the address in its usual form. @throws WadahError `invalid` that says which would do */
export function checkAddress(address: string, own: readonly string[] = ownAddresses()): string {
  const fit = own.filter((a) => unreachableFor(a) === undefined)
  const refused = (why: string) => {
    const which =
      fit.length === 0
        ? 'This host has no address that would do: give it one on the network that the hosts share.'
        : `This host has ${fit.join(', ')}.`
    return fail('invalid', `--address ${address}: ${why}. ${which}`, {
      field: '/address',
      remedy: fit.length === 1 ? `--address ${fit[0]}` : 'ip -brief address; then: --address ADDRESS',
    })
  }
  const why = unreachableFor(address)
  if (why !== undefined) throw refused(why)
  const wanted = canonical(address) as string
  if (!own.some((a) => canonical(a) === wanted)) throw refused(`${wanted} is no address of this host`)
  return wanted
}

const ownAddresses = () => Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map((a) => a.address))
