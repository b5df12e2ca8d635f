/** Bridges and taps: what was seen, what is wanted, and the `ip -batch` lines that lead from one to the other. Pure. */
import type { NetworkAttachment, NetworkDefinition } from '@wadah/ports/networks'
import { overlap, parseSubnet, type Subnet } from './ipv4.ts'
import { aliasOf, bridgeMac, parseAlias, tapName } from './naming.ts'

export type NatNetwork = Extract<NetworkDefinition, { kind: 'nat' }>

/** One interface, from `ip -json -details addr show`. */
export type Link = {
  name: string
  kind: string
  up: boolean
  mac: string
  alias?: string
  master?: string
  /** Owner of a tap. */
  uid?: number
  /** IPv4 addresses with prefix. */
  addresses: string[]
  /** IPv6 addresses with prefix, those of the link left out. */
  addresses6: string[]
  loopback: boolean
  ether: boolean
  /** Of a bridge. */
  vlan_filtering?: boolean
}

type Json = Record<string, unknown>
const record = (value: unknown): Json => (typeof value === 'object' && value !== null ? (value as Json) : {})
const text = (value: unknown): string => (typeof value === 'string' ? value : '')

/** Reads the output of `ip -json -details addr show`. */
export function parseLinks(json: string): Link[] {
  const list: unknown = json.trim() === '' ? [] : JSON.parse(json)
  if (!Array.isArray(list)) return []
  return list.map(record).flatMap((link) => {
    if (text(link['ifname']) === '') return []
    const info = record(link['linkinfo'])
    const data = record(info['info_data'])
    const addresses = (Array.isArray(link['addr_info']) ? link['addr_info'] : []).map(record)
    return [
      {
        name: text(link['ifname']),
        kind: text(info['info_kind']),
        up: Array.isArray(link['flags']) && link['flags'].includes('UP'),
        mac: text(link['address']),
        ...(text(link['ifalias']) === '' ? {} : { alias: text(link['ifalias']) }),
        ...(text(link['master']) === '' ? {} : { master: text(link['master']) }),
        ...(typeof data['user'] === 'number' ? { uid: data['user'] } : {}),
        addresses: addresses
          .filter((a) => a['family'] === 'inet')
          .map((a) => `${text(a['local'])}/${String(a['prefixlen'])}`),
        addresses6: addresses
          .filter((a) => a['family'] === 'inet6' && a['scope'] !== 'link')
          .map((a) => `${text(a['local'])}/${String(a['prefixlen'])}`),
        loopback: text(link['link_type']) === 'loopback',
        ether: text(link['link_type']) === 'ether',
        ...(typeof data['vlan_filtering'] === 'number' ? { vlan_filtering: data['vlan_filtering'] === 1 } : {}),
      },
    ]
  })
}

export type BridgePlan =
  | { ok: true; fresh: boolean; create: string[]; configure: string[] }
  | { ok: false; reason: string; remedy: string }

/**
 * What makes the bridge of a network be there. `create` comes before the interface's sysctls are set, `configure` after, so that
 * nothing IPv6 is ever said on it. An interface that has the name and is not ours is left alone.
 */
export function planBridge(instance: string, links: Link[], network: NatNetwork): BridgePlan {
  const { bridge } = network
  const subnet = parseSubnet(network.subnet)
  const address = `${network.gateway}/${subnet?.prefix ?? 24}`
  const alias = aliasOf(instance, { kind: 'bridge', network: network.id })
  const seen = links.find((link) => link.name === bridge)
  const mac = bridgeMac(network.id)
  const other = links.find(
    (link) => link.name !== bridge && link.addresses.some((a) => a.split('/')[0] === network.gateway),
  )
  if (other !== undefined) {
    return {
      ok: false,
      reason: `The gateway address ${network.gateway} of network "${network.name}" is already on the interface ${other.name}.`,
      remedy: 'make a network with another subnet',
    }
  }
  if (seen === undefined) {
    // A route of ours over somebody else's network could cut this host off.
    const hidden = links.find((link) => link.addresses.some((a) => clash(a, subnet)))
    if (hidden !== undefined) {
      return {
        ok: false,
        reason: `The subnet ${network.subnet} of network "${network.name}" overlaps with ${hidden.addresses.join(', ')} on the interface ${hidden.name}.`,
        remedy: 'make a network with another subnet',
      }
    }
    return {
      ok: true,
      fresh: true,
      create: [
        // STP off and no forward delay: a guest's first DHCP request must not wait 15 s. No snooping: nobody here queries.
        `link add name ${bridge} address ${mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
        `link set dev ${bridge} alias ${alias}`,
      ],
      configure: [`addr add ${address} brd + dev ${bridge}`, `link set dev ${bridge} up`],
    }
  }
  if (seen.kind !== 'bridge' || seen.alias !== alias) {
    return {
      ok: false,
      reason: `An interface ${bridge} exists that Wadah did not make for network "${network.name}" (${seen.kind || 'device'}, alias "${seen.alias ?? ''}").`,
      remedy: `ip -d link show ${bridge}; remove or rename it if it isn't needed`,
    }
  }
  return {
    ok: true,
    fresh: false,
    create: [],
    configure: [
      ...(seen.mac === mac ? [] : [`link set dev ${bridge} address ${mac}`]),
      ...seen.addresses.filter((a) => a !== address).map((a) => `addr del ${a} dev ${bridge}`),
      ...(seen.addresses.includes(address) ? [] : [`addr add ${address} brd + dev ${bridge}`]),
      ...(seen.up ? [] : [`link set dev ${bridge} up`]),
    ],
  }
}

function clash(address: string, subnet: Subnet | undefined): boolean {
  const other = parseSubnet(address)
  return other !== undefined && subnet !== undefined && overlap(other, subnet)
}

/** What taps are on. */
export type BridgedNetwork = Exclude<NetworkDefinition, { kind: 'user' }>

/** The VLAN that ports of a bridge of somebody else's are kept in. */
export function portVlan(network: BridgedNetwork): number | undefined {
  return network.kind === 'bridge' && network.nic === undefined ? network.vlan : undefined
}

/** Taps of ours that lost their bridge (it was removed and made anew) go back on it. */
export function lostTaps(
  instance: string,
  links: Link[],
  networks: readonly BridgedNetwork[],
): { tap: string; network: BridgedNetwork }[] {
  return links.flatMap((link) => {
    const owned = parseAlias(instance, link.alias)
    if (owned?.kind !== 'tap') return []
    const network = networks.find((n) => n.id === owned.network)
    if (network === undefined || link.master === network.bridge) return []
    return [{ tap: link.name, network }]
  })
}

/** Bridges of ours whose network is no more. */
export function strayBridges(instance: string, links: Link[], networks: readonly BridgedNetwork[]): Link[] {
  return links.filter((link) => {
    const owned = parseAlias(instance, link.alias)
    return owned?.kind === 'bridge' && !networks.some((n) => n.id === owned.network && n.bridge === link.name)
  })
}

export type TapPlan = { ok: true; lines: string[] } | { ok: false; reason: string; remedy: string }

/** What makes the tap of a NIC be there, owned by its uid, on the bridge. A tap with another owner is made anew: the owner is fixed. */
export function planTap(instance: string, links: Link[], network: BridgedNetwork, nic: NetworkAttachment): TapPlan {
  const name = tapName(nic.vm, nic.nic)
  const alias = aliasOf(instance, { kind: 'tap', vm: nic.vm, nic: nic.nic, network: network.id })
  const seen = links.find((link) => link.name === name)
  // One that belongs into a VLAN goes up when it is in it.
  const up = portVlan(network) === undefined ? ' up' : ''
  const make = [
    `tuntap add dev ${name} mode tap user ${nic.uid} vnet_hdr`,
    `link set dev ${name} alias ${alias}`,
    `link set dev ${name} addrgenmode none master ${network.bridge}${up}`,
    // The host may remember the MAC of a VM that had the address before, and would talk to that one for a second or more. Without an
    // entry it holds what it has to say until the guest answers or announces itself.
    ...(network.kind === 'nat' && nic.address !== undefined
      ? [`neigh replace ${nic.address} nud failed dev ${network.bridge}`]
      : []),
  ]
  if (seen === undefined) return { ok: true, lines: make }
  const owned = parseAlias(instance, seen.alias)
  // A tap without an alias was left by a start that was cut short between the two lines.
  const halfMade = seen.kind === 'tun' && seen.alias === undefined
  if (!halfMade && (owned?.kind !== 'tap' || owned.vm !== nic.vm || owned.nic !== nic.nic)) {
    return {
      ok: false,
      reason: `An interface ${name} exists that Wadah did not make.`,
      remedy: `ip -d link show ${name}`,
    }
  }
  if (halfMade || seen.uid !== nic.uid) return { ok: true, lines: [`link del dev ${name}`, ...make] }
  return {
    ok: true,
    lines: [
      ...(seen.alias === alias ? [] : [`link set dev ${name} alias ${alias}`]),
      ...(seen.master === network.bridge && seen.up ? [] : [`link set dev ${name} master ${network.bridge}${up}`]),
    ],
  }
}
