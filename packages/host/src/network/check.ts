/** A last look at what goes into batches and configuration files: nothing with a space, a newline or a quote in it gets there. Pure. */
import { NAME_PATTERN } from '@wadah/api/ids'
import { parseCidr } from '@wadah/api/cidr'
import type { NetworkAttachment, NicFirewall } from '@wadah/ports/networks'
import { contains, parseAddress, parseSubnet } from './ipv4.ts'
import type { LanNetwork } from './lan.ts'
import type { BridgedNetwork } from './links.ts'

const NAME = new RegExp(NAME_PATTERN)
const WORD = /^[a-z0-9][a-z0-9-]{0,63}$/
const IFNAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$/
const DOMAIN = /^(?=.{1,200}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/
const MAC = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/

/** What is wrong with a network, or undefined. */
export function checkNetwork(network: BridgedNetwork): string | undefined {
  const said = `Network ${network.id.slice(0, 40)}:`
  if (!WORD.test(network.id)) return `${said} its id is none.`
  if (!NAME.test(network.name)) return `${said} its name is none.`
  if (!IFNAME.test(network.bridge)) return `${said} "${network.bridge.slice(0, 40)}" can't be the name of an interface.`
  if (network.kind === 'bridge') return checkLan(network, said)
  const subnet = parseSubnet(network.subnet)
  const gateway = parseAddress(network.gateway)
  if (!DOMAIN.test(network.domain)) return `${said} "${network.domain.slice(0, 80)}" is no domain.`
  if (subnet === undefined || subnet.prefix > 30 || !network.subnet.includes('/')) {
    return `${said} "${network.subnet.slice(0, 40)}" is no subnet like 10.1.2.0/24.`
  }
  if (gateway === undefined || !contains(subnet, gateway)) {
    return `${said} "${network.gateway.slice(0, 40)}" is no address in ${network.subnet}.`
  }
  return undefined
}

function checkLan({ nic, vlan }: LanNetwork, said: string): string | undefined {
  if (nic !== undefined && !IFNAME.test(nic)) return `${said} "${nic.slice(0, 40)}" can't be the name of an interface.`
  if (vlan !== undefined && (!Number.isInteger(vlan) || vlan < 1 || vlan > 4094))
    return `${said} ${vlan} is no VLAN id.`
  return undefined
}

/** What is wrong with an attachment, or undefined. */
export function checkAttachment(a: NetworkAttachment): string | undefined {
  const said = `NIC ${a.nic.slice(0, 63)} of ${a.vm.slice(0, 40)}:`
  if (!WORD.test(a.vm) || !WORD.test(a.network)) return `${said} the id of its VM or network is none.`
  if (!NAME.test(a.nic)) return `${said} its name is none.`
  if (!NAME.test(a.vm_name)) return `${said} "${a.vm_name.slice(0, 80)}" can't be a host name.`
  if (!MAC.test(a.mac)) return `${said} "${a.mac.slice(0, 40)}" is no unicast MAC in small letters.`
  if (!Number.isSafeInteger(a.uid) || a.uid < 0 || a.uid > 0xfffffffe) return `${said} ${a.uid} is no uid.`
  if (a.address !== undefined && parseAddress(a.address) === undefined) {
    return `${said} "${a.address.slice(0, 40)}" is no address.`
  }
  for (const p of a.publish) {
    const port = (n: number): boolean => Number.isInteger(n) && n >= 1 && n <= 65_535
    if ((p.protocol !== 'tcp' && p.protocol !== 'udp') || !port(p.port) || !port(p.to))
      return `${said} a published port is none.`
    if (parseAddress(p.address) === undefined) return `${said} "${p.address.slice(0, 40)}" is no address to publish on.`
  }
  for (const limit of [a.limits.in_bytes_per_s, a.limits.out_bytes_per_s]) {
    if (limit !== undefined && (!Number.isSafeInteger(limit) || limit < 1))
      return `${said} ${limit} is no rate in bytes per second.`
  }
  return a.firewall === undefined || isFirewall(a.firewall) ? undefined : `${said} a rule of its firewall is none.`
}

function isFirewall({ rules, ...defaults }: NicFirewall): boolean {
  const one = (value: string, ...of: string[]): boolean => of.includes(value)
  const port = (n: number): boolean => Number.isInteger(n) && n >= 1 && n <= 65_535
  return (
    one(defaults.in, 'accept', 'drop') &&
    one(defaults.out, 'accept', 'drop') &&
    rules.every(
      (rule) =>
        one(rule.direction, 'in', 'out') &&
        one(rule.action, 'accept', 'drop') &&
        one(rule.protocol, 'tcp', 'udp', 'icmp', 'any') &&
        (rule.ports ?? []).every(([first, last]) => port(first) && port(last) && first <= last) &&
        (rule.peers ?? []).every((peer) => parseCidr(peer) !== undefined),
    )
  )
}

/** Attachments that can be carried out. One that can't must not keep the others from their network; `attach` refuses it by name. */
export function usable(
  attachments: NetworkAttachment[],
  note: (key: string, text: string) => void,
): NetworkAttachment[] {
  const addresses = new Set<string>()
  return attachments.filter((a) => {
    const key = `${a.network} ${a.address}`
    const wrong =
      checkAttachment(a) ??
      (a.address !== undefined && addresses.has(key)
        ? `${a.vm} ${a.nic}: its address ${a.address} is promised twice.`
        : undefined)
    addresses.add(key)
    if (wrong !== undefined) note(`attachment ${a.vm} ${a.nic}`, `left out: ${wrong}`)
    return wrong === undefined
  })
}
