/**
 * What keeps guests from the host and from each other's names: rules as text. They name our own bridges, taps and users only. Pure.
 */
import type { NetworkAttachment } from '@wadah/ports/networks'
import type { NatNetwork } from './links.ts'
import { tapName } from './naming.ts'

/** First and last user id that VMs of this host can have. */
export type UidRange = readonly [number, number]

/**
 * Chain `input` of table ip: of the host a guest reaches DHCP and DNS, and gets the answers to what the host asked of it. Told rather than
 * passed over in silence, so that a program in the guest does not wait.
 */
export function inputRules(networks: readonly NatNetwork[]): string[] {
  return networks
    .filter((n) => n.host_access !== true)
    .flatMap((n) => {
      const from = `iifname "${n.bridge}"`
      return [
        `${from} ct state established,related accept`,
        `${from} udp dport 67 accept`,
        `${from} ip daddr ${n.gateway} meta l4proto { tcp, udp } th dport 53 accept`,
        `${from} reject with icmp type admin-prohibited`,
      ]
    })
}

/**
 * Chain `own` of table ip: a guest on a network of kind `user` sends from the sockets of its QEMU, and 10.0.2.2 is the host's 127.0.0.1 to it
 * (libslirp); so does whoever escaped from a QEMU. Each VM has a user id of its own, so those packets can be told from everybody else's.
 * They come to no program of the host, and of guests to what is published. Names are asked of the host's own servers, which may listen here.
 */
export function ownRules(uids: UidRange | undefined, networks: readonly NatNetwork[]): string[] {
  if (uids === undefined) return []
  const theirs = `meta skuid ${uids[0]}-${uids[1]} ct direction original`
  const bridges = networks.map((n) => `"${n.bridge}"`).join(', ')
  return [
    ...toHost(theirs),
    ...(networks.length === 0 ? [] : [`${theirs} oifname { ${bridges} } ct status & dnat == 0 reject`]),
  ]
}

const toHost = (theirs: string) => [
  `${theirs} fib daddr type local meta l4proto tcp tcp dport != 53 reject with tcp reset`,
  `${theirs} fib daddr type local meta l4proto udp udp dport != 53 reject`,
]

/** The same of IPv6, which no network of ours offers but the host's own loopback has. */
export function renderOwn6(table: string, uids: UidRange): string {
  return [
    `add table ip6 ${table}`,
    `delete table ip6 ${table}`,
    `table ip6 ${table} {`,
    '\tchain own {',
    '\t\ttype filter hook output priority filter; policy accept',
    ...toHost(`meta skuid ${uids[0]}-${uids[1]} ct direction original`).map((r) => `\t\t${r}`),
    '\t}',
    '}',
    '',
  ].join('\n')
}

/**
 * Table of the bridge family: behind each tap there is one MAC and one address, no DHCP server and no router. IPv6 is link-local only,
 * for these networks offer none. What is neither ARP, IPv4 nor IPv6 (VLAN tags, spanning tree) goes nowhere.
 */
export function renderBridgeGuard(table: string, attachments: readonly NetworkAttachment[]): string {
  const guarded = attachments
    .filter((a) => a.address !== undefined)
    .map((a) => ({ tap: tapName(a.vm, a.nic), mac: a.mac, address: a.address ?? '' }))
    .sort((a, b) => (a.tap < b.tap ? -1 : 1))
  const chain = (name: string, lines: string[]) => [`\tchain ${name} {`, ...lines.map((l) => `\t\t${l}`), '\t}']
  return [
    `add table bridge ${table}`,
    `delete table bridge ${table}`,
    `table bridge ${table} {`,
    ...guarded.flatMap(({ tap, mac, address }) =>
      chain(`from-${tap}`, [
        `ether saddr != ${mac} drop`,
        `ether type arp arp saddr ether != ${mac} drop`,
        // 0.0.0.0 asks whether somebody has the address already (RFC 5227).
        `ether type arp arp saddr ip != { 0.0.0.0, ${address} } drop`,
        'ether type arp accept',
        'ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept',
        `ip saddr != ${address} drop`,
        'ether type ip udp sport 67 drop',
        'ether type ip accept',
        'icmpv6 type nd-router-advert drop',
        'ether type ip6 udp sport 547 drop',
        'ip6 saddr != { ::, fe80::/10 } drop',
        'ether type ip6 accept',
        'drop',
      ]),
    ),
    ...chain('prerouting', [
      'type filter hook prerouting priority -300; policy accept',
      ...(guarded.length === 0
        ? []
        : [`iifname vmap { ${guarded.map(({ tap }) => `"${tap}" : jump from-${tap}`).join(', ')} }`]),
    ]),
    '}',
    '',
  ].join('\n')
}
