/**
 * What keeps guests from the host and from each other's names: rules as text. They name our own bridges, taps and users only. Pure.
 */
import type { NetworkAttachment } from '@wadah/ports/networks'
import { type LanNetwork, isForeign, uplinkOf } from './lan.ts'
import type { BridgedNetwork, NatNetwork } from './links.ts'
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

/**
 * A bit of a packet's mark (`skb->mark`): it came up to the host from a guest on a bridge that the host has an address on. There are other
 * machines on that bridge, so the interface does not tell, and `meta ibrname` is missing in some kernels.
 */
const FROM_GUEST = '0x08000000'

/** Networks whose guests may not reach what listens on the host, and are told by the mark. */
const walledLans = (networks: readonly BridgedNetwork[]): LanNetwork[] =>
  networks.filter((n): n is LanNetwork => n.kind === 'bridge' && isForeign(n) && n.host_access !== true)

/** As `inputRules`, for guests on the host's own networks. */
export function markedRules(networks: readonly BridgedNetwork[], family: 'ip' | 'ip6'): string[] {
  if (walledLans(networks).length === 0) return []
  const from = `meta mark & ${FROM_GUEST} != 0`
  return [
    `${from} ct state established,related accept`,
    `${from} meta l4proto { tcp, udp } th dport 53 accept`,
    ...(family === 'ip'
      ? [`${from} udp dport 67 accept`, `${from} reject with icmp type admin-prohibited`]
      : [
          `${from} udp dport 547 accept`,
          `${from} icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept`,
          `${from} reject with icmpv6 type admin-prohibited`,
        ]),
  ]
}

/** What goes up to the host from ports of bridges: marked, or nothing at all where the bridge is ours and the host has no address on it. */
function upRules(networks: readonly BridgedNetwork[], attachments: readonly NetworkAttachment[]): string[] {
  const taps = (network: LanNetwork) =>
    attachments.filter((a) => a.network === network.id).map((a) => tapName(a.vm, a.nic))
  const names = (list: string[]) => list.sort().map((name) => `"${name}"`)
  const own = networks.filter((n): n is LanNetwork => n.kind === 'bridge' && !isForeign(n))
  const closed = names(own.flatMap((n) => [uplinkOf(n) ?? '', ...taps(n)]))
  const marked = names(walledLans(networks).flatMap(taps))
  return [
    ...(closed.length === 0 ? [] : [`iifname { ${closed.join(', ')} } drop`]),
    ...(marked.length === 0 ? [] : [`iifname { ${marked.join(', ')} } meta mark set meta mark | ${FROM_GUEST}`]),
  ]
}

/**
 * Table of the bridge family: behind each tap there is one MAC and one address, no DHCP server and no router. On `nat` IPv6 is link-local
 * only, for these networks offer none; on `bridge` addresses are the LAN's, and only one that was given is guarded. What is neither ARP,
 * IPv4 nor IPv6 (VLAN tags, spanning tree) goes nowhere.
 */
export function renderBridgeGuard(
  table: string,
  networks: readonly BridgedNetwork[],
  attachments: readonly NetworkAttachment[],
): string {
  const lans = new Set(networks.flatMap((n) => (n.kind === 'bridge' ? [n.id] : [])))
  const guarded = attachments
    .filter((a) => a.address !== undefined || lans.has(a.network))
    .map((a) => ({ tap: tapName(a.vm, a.nic), mac: a.mac, address: a.address, lan: lans.has(a.network) }))
    .sort((a, b) => (a.tap < b.tap ? -1 : 1))
  const onLan = guarded.filter((g) => g.lan).map(({ tap }) => `"${tap}"`)
  const up = upRules(networks, attachments)
  const chain = (name: string, lines: string[]) => [`\tchain ${name} {`, ...lines.map((l) => `\t\t${l}`), '\t}']
  return [
    `add table bridge ${table}`,
    `delete table bridge ${table}`,
    `table bridge ${table} {`,
    ...guarded.flatMap(({ tap, mac, address, lan }) =>
      chain(`from-${tap}`, [
        `ether saddr != ${mac} drop`,
        // First of all: with a tag the rest is read as if there were none.
        'ether type != { arp, ip, ip6 } drop',
        `ether type arp arp saddr ether != ${mac} drop`,
        // 0.0.0.0 asks whether somebody has the address already (RFC 5227).
        ...(address === undefined ? [] : [`ether type arp arp saddr ip != { 0.0.0.0, ${address} } drop`]),
        'ether type arp accept',
        'ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept',
        ...(address === undefined ? [] : [`ip saddr != ${address} drop`]),
        'ether type ip udp sport 67 drop',
        'ether type ip accept',
        'icmpv6 type nd-router-advert drop',
        'ether type ip6 udp sport 547 drop',
        ...(lan ? [] : ['ip6 saddr != { ::, fe80::/10 } drop']),
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
    ...(up.length === 0 ? [] : chain('input', ['type filter hook input priority -300; policy accept', ...up])),
    // What others on the LAN say with a tag is not for these guests.
    ...(onLan.length === 0
      ? []
      : chain('postrouting', [
          'type filter hook postrouting priority 300; policy accept',
          `oifname { ${onLan.join(', ')} } ether type != { arp, ip, ip6 } drop`,
        ])),
    '}',
    '',
  ].join('\n')
}

/**
 * Table of family ip6. No network of ours offers IPv6, but the host's own loopback has it, which programs of a VM's user could reach;
 * and a bridge on which the host has an address carries it.
 */
export function renderIp6(table: string, uids: UidRange | undefined, networks: readonly BridgedNetwork[]): string {
  const chain = (name: string, rules: readonly string[]) =>
    rules.length === 0
      ? []
      : [
          `\tchain ${name} {`,
          `\t\ttype filter hook ${name === 'own' ? 'output' : 'input'} priority filter; policy accept`,
          ...rules.map((rule) => `\t\t${rule}`),
          '\t}',
        ]
  return [
    `add table ip6 ${table}`,
    `delete table ip6 ${table}`,
    `table ip6 ${table} {`,
    ...chain('own', uids === undefined ? [] : toHost(`meta skuid ${uids[0]}-${uids[1]} ct direction original`)),
    ...chain('input', markedRules(networks, 'ip6')),
    '}',
    '',
  ].join('\n')
}
