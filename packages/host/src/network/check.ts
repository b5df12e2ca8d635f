/** A last look at what goes into batches and configuration files: nothing with a space, a newline or a quote in it gets there. Pure. */
import { NAME_PATTERN } from '@wadah/api/ids'
import { fail } from '@wadah/api/fault'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { contains, parseAddress, parseSubnet } from './ipv4.ts'
import type { NatNetwork } from './links.ts'

const NAME = new RegExp(NAME_PATTERN)
const WORD = /^[a-z0-9][a-z0-9-]{0,63}$/
const IFNAME = /^[a-z][a-z0-9._-]{0,14}$/
const DOMAIN = /^(?=.{1,200}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/
const MAC = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/

/** Throws `invalid` when a network has a value that can't be used. */
export function checkNetwork(network: NatNetwork): void {
  const subnet = parseSubnet(network.subnet)
  const gateway = parseAddress(network.gateway)
  const refuse = (field: string, what: string): never => {
    throw fail('invalid', `Network ${network.id}: ${what}`, { field })
  }
  if (!WORD.test(network.id)) refuse('/id', 'its id is none.')
  if (!NAME.test(network.name)) refuse('/name', 'its name is none.')
  if (!IFNAME.test(network.bridge))
    refuse('/bridge', `"${network.bridge.slice(0, 40)}" can't be the name of an interface.`)
  if (!DOMAIN.test(network.domain)) refuse('/domain', `"${network.domain.slice(0, 80)}" is no domain.`)
  if (subnet === undefined || subnet.prefix > 30)
    return refuse('/subnet', `"${network.subnet.slice(0, 40)}" is no subnet like 10.1.2.0/24.`)
  if (gateway === undefined || !contains(subnet, gateway))
    refuse('/gateway', `"${network.gateway.slice(0, 40)}" is no address in ${network.subnet}.`)
}

/** Throws `invalid` when an attachment has a value that can't be used. */
export function checkAttachment(a: NetworkAttachment): void {
  const refuse = (field: string, what: string): never => {
    throw fail('invalid', `NIC ${a.nic} of ${a.vm}: ${what}`, { field })
  }
  if (!WORD.test(a.vm) || !WORD.test(a.network)) refuse('/vm', 'the id of its VM or network is none.')
  if (!NAME.test(a.nic)) refuse('/nic', 'its name is none.')
  if (!NAME.test(a.vm_name)) refuse('/vm_name', `"${a.vm_name.slice(0, 80)}" can't be a host name.`)
  if (!MAC.test(a.mac)) refuse('/mac', `"${a.mac.slice(0, 40)}" is no unicast MAC in small letters.`)
  if (!Number.isSafeInteger(a.uid) || a.uid < 0 || a.uid > 0xfffffffe) refuse('/uid', `${a.uid} is no uid.`)
  if (a.address !== undefined && parseAddress(a.address) === undefined)
    refuse('/address', `"${a.address.slice(0, 40)}" is no address.`)
  for (const p of a.publish) {
    const port = (n: number): boolean => Number.isInteger(n) && n >= 1 && n <= 65_535
    if ((p.protocol !== 'tcp' && p.protocol !== 'udp') || !port(p.port) || !port(p.to))
      refuse('/publish', 'a published port is none.')
    if (parseAddress(p.address) === undefined)
      refuse('/publish', `"${p.address.slice(0, 40)}" is no address to publish on.`)
  }
  for (const limit of [a.limits.in_bytes_per_s, a.limits.out_bytes_per_s]) {
    if (limit !== undefined && (!Number.isSafeInteger(limit) || limit < 1))
      refuse('/limits', `${limit} is no rate in bytes per second.`)
  }
}
