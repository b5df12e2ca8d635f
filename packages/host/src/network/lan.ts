/**
 * Networks of kind `bridge`: on a bridge that somebody else made, or on one of ours with a NIC of the host in it. What was seen, what is
 * wanted, and the `ip -batch` lines that lead there. No address of the host is ever touched. Pure.
 */
import type { NetworkDefinition } from '@wadah/ports/networks'
import type { BridgePlan, Link } from './links.ts'
import { aliasOf, bridgeMac, parseAlias, vlanName } from './naming.ts'

export type LanNetwork = Extract<NetworkDefinition, { kind: 'bridge' }>

const no = (reason: string, remedy: string): BridgePlan => ({ ok: false, reason, remedy })

/** A network without a NIC of its own is on a bridge that is not ours, which is only looked at. */
export const isForeign = (network: LanNetwork): boolean => network.nic === undefined

/** `defaults`: interfaces that a default route of the host goes by. */
export function planLan(instance: string, links: Link[], defaults: readonly string[], network: LanNetwork): BridgePlan {
  return network.nic === undefined
    ? planForeign(links, network)
    : planOwn(instance, links, defaults, network, network.nic)
}

function planForeign(links: Link[], network: LanNetwork): BridgePlan {
  const { bridge, vlan } = network
  const seen = links.find((link) => link.name === bridge)
  if (seen === undefined) {
    return no(`There is no interface ${bridge} on this host.`, 'ip -br link show type bridge lists bridges')
  }
  if (seen.kind !== 'bridge')
    return no(
      `${bridge} is no bridge (${seen.loopback ? 'loopback' : seen.kind || 'device'}).`,
      seen.ether && !seen.loopback ? `for a NIC: --nic ${bridge}` : 'ip -br link show type bridge lists bridges',
    )
  if (seen.alias?.startsWith('wadah:')) {
    return no(
      `The bridge ${bridge} was made by Wadah for a network of its own.`,
      'put the NIC of the VM on that network: wadah network list',
    )
  }
  if (!seen.up) return no(`The bridge ${bridge} is down.`, `ip link set dev ${bridge} up`)
  if (vlan !== undefined && seen.vlan_filtering !== true) {
    return no(
      `The bridge ${bridge} does not filter VLANs, so guests can't be kept in VLAN ${vlan}.`,
      `ip link set dev ${bridge} type bridge vlan_filtering 1; or a bridge of its own: --nic NIC --vlan ${vlan}`,
    )
  }
  return { ok: true, fresh: false, create: [], configure: [] }
}

/** What keeps a NIC from being a port of a bridge of ours, with the way out. */
function nicProblem(
  links: Link[],
  defaults: readonly string[],
  network: LanNetwork,
  nic: string,
): { reason: string; remedy: string } | undefined {
  const seen = links.find((link) => link.name === nic)
  const not = (reason: string, remedy: string) => ({ reason, remedy })
  const list = 'ip -br link lists the interfaces of this host'
  if (seen === undefined) return not(`There is no interface ${nic} on this host.`, list)
  if (seen.loopback) return not(`${nic} is the loopback interface, which leads nowhere.`, list)
  if (seen.kind === 'bridge') return not(`${nic} is a bridge.`, `--bridge ${nic}`)
  if (seen.alias?.startsWith('wadah:') || seen.kind === 'tun')
    return not(`${nic} belongs to a VM or a tunnel of this host.`, list)
  if (!seen.ether) return not(`${nic} is no Ethernet interface (${seen.kind || 'device'}).`, list)
  if (seen.master !== undefined && seen.master !== network.bridge)
    return not(
      `${nic} is in ${seen.master} already.`,
      `--bridge ${seen.master} if that is a bridge; ip link set dev ${nic} nomaster takes it out`,
    )
  // A tagged VLAN beside the host's own traffic takes nothing away from it.
  if (network.vlan !== undefined) return undefined
  const own = [...seen.addresses, ...seen.addresses6]
  if (own.length > 0 || defaults.includes(nic)) {
    const what =
      own.length > 0 ? `carries the host's own address ${own.join(', ')}` : "carries the host's default route"
    return not(
      `${nic} ${what}: as a port of a bridge it would cut the host off.`,
      `another NIC; or --nic ${nic} --vlan ID; or make a bridge with ${nic} in it, move the address to the bridge, and use --bridge`,
    )
  }
  return undefined
}

function planOwn(
  instance: string,
  links: Link[],
  defaults: readonly string[],
  network: LanNetwork,
  nic: string,
): BridgePlan {
  const { id, bridge, vlan } = network
  const problem = nicProblem(links, defaults, network, nic)
  if (problem !== undefined) return { ok: false, ...problem }
  const alias = aliasOf(instance, { kind: 'bridge', network: id })
  const seen = links.find((link) => link.name === bridge)
  if (seen !== undefined && (seen.kind !== 'bridge' || seen.alias !== alias)) {
    return no(
      `An interface ${bridge} exists that Wadah did not make for network "${network.name}".`,
      `ip -d link show ${bridge}; remove or rename it if it isn't needed`,
    )
  }
  const mac = bridgeMac(id)
  const create =
    seen === undefined
      ? [
          `link add name ${bridge} address ${mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
          `link set dev ${bridge} alias ${alias}`,
        ]
      : []
  const configure: string[] = []
  const port = vlan === undefined ? nic : vlanName(id)
  const there = links.find((link) => link.name === port)
  if (vlan !== undefined) {
    const tagged = aliasOf(instance, { kind: 'vlan', network: id })
    if (there !== undefined && there.alias !== tagged)
      return no(`An interface ${port} exists that Wadah did not make.`, `ip -d link show ${port}`)
    if (there === undefined) {
      create.push(`link add link ${nic} name ${port} type vlan id ${vlan}`, `link set dev ${port} alias ${tagged}`)
      configure.push(`link set dev ${port} addrgenmode none`)
    }
    const carrier = links.find((link) => link.name === nic)
    if (carrier?.up === false) configure.push(`link set dev ${nic} up`)
  }
  if (there?.master !== bridge || !there.up) configure.push(`link set dev ${port} master ${bridge} up`)
  if (seen?.up !== true) configure.push(`link set dev ${bridge} up`)
  return { ok: true, fresh: seen === undefined, create, configure }
}

/** The port of the host's own side on a bridge of ours. */
export function uplinkOf(network: LanNetwork): string | undefined {
  if (network.nic === undefined) return undefined
  return network.vlan === undefined ? network.nic : vlanName(network.id)
}

/** VLAN interfaces of ours whose network is no more. */
export function strayVlans(instance: string, links: Link[], networks: readonly { id: string }[]): Link[] {
  return links.filter((link) => {
    const owned = parseAlias(instance, link.alias)
    return owned?.kind === 'vlan' && !networks.some((n) => n.id === owned.network)
  })
}

/**
 * `bridge -batch` lines that make a tap an untagged port of one VLAN and of no other. Deleting a range passes over what is not there
 * (Linux, net/bridge/br_netlink.c, br_vlan_info).
 */
export function vlanLines(tap: string, vlan: number): string[] {
  return [
    `vlan add dev ${tap} vid ${vlan} pvid untagged`,
    ...(vlan > 1 ? [`vlan del dev ${tap} vid ${vlan === 2 ? '1' : `1-${vlan - 1}`}`] : []),
    ...(vlan < 4094 ? [`vlan del dev ${tap} vid ${vlan === 4093 ? '4094' : `${vlan + 1}-4094`}`] : []),
  ]
}

/** Reads `ip -json route show default` (IPv4 and IPv6 after each other): names of interfaces. */
export function defaultRoutes(...json: string[]): string[] {
  return json.flatMap((text) => {
    const list: unknown = text.trim() === '' ? [] : JSON.parse(text)
    return Array.isArray(list)
      ? list.flatMap((r: { dev?: unknown } | null) => (typeof r?.dev === 'string' ? [r.dev] : []))
      : []
  })
}
