/**
 * The firewall of VMs as a table of its own in the bridge family: what comes from a tap is judged as it enters the bridge, what goes to it as
 * it leaves (after translation of addresses, so published ports are judged as well, and by the guest's own port). Pure: rules as text.
 *
 * It is stateful without nf_conntrack_bridge, which many kernels lack: connections that have passed are kept in sets of the table itself,
 * one per tap, family and direction in which they began, each of bounded size, so that nobody fills another's. The direction in which a
 * connection began is judged packet by packet (what is forbidden ends at once); answers pass as long as it is known.
 * The sets stay when rules change: chains are emptied and filled in one transaction.
 */
import type { NetworkAttachment, NicFirewall, NicRule } from '@wadah/ports/networks'
import { parseCidr } from '@wadah/api/cidr'
import { tapName } from './naming.ts'

/** Instances have no underscore in their names. */
export const firewallTable = (table: string): string => `${table}_fw`

/** Known connections of one tap, family and direction; about 10 MiB of kernel memory when full. */
const FLOWS = 32_768
const OTHERS = 1024
/** RFC 5382 (TCP: 2 h 4 min, 4 min while opening or closing), RFC 4787 (UDP), RFC 5508 (ICMP). */
const TCP = '2h4m'
const BRIEF = '4m'
const UDP = '3m'
const PING = '1m'
/** Fragments of a packet follow its first within moments (Linux waits 30 s). */
const FRAGMENTS = '30s'

type Direction = 'in' | 'out'
const OTHER = { in: 'out', out: 'in' } as const
type Family = 4 | 6
const FAMILIES = [4, 6] as const

/** Whether everything passes in a direction. */
const isOpen = (firewall: NicFirewall, direction: Direction): boolean =>
  firewall[direction] === 'accept' &&
  !firewall.rules.some((rule) => rule.direction === direction && rule.action === 'drop')

/** Address fields of a packet of a direction: the guest's, and the other side's. */
const sides = (direction: Direction) =>
  direction === 'out'
    ? { guest: 'saddr', remote: 'daddr', guestPort: 'sport', remotePort: 'dport' }
    : { guest: 'daddr', remote: 'saddr', guestPort: 'dport', remotePort: 'sport' }
const ip = (family: Family): string => (family === 4 ? 'ip' : 'ip6')

/** The same for both directions of a connection. */
function flowKey(family: Family, direction: Direction): string {
  const s = sides(direction)
  const f = ip(family)
  return `${f} ${s.guest} . ${f} ${s.remote} . meta l4proto . th ${s.guestPort} . th ${s.remotePort}`
}
function peerKey(family: Family, direction: Direction): string {
  const s = sides(direction)
  return `${ip(family)} ${s.guest} . ${ip(family)} ${s.remote} . meta l4proto`
}
const fragmentKey = (family: Family): string =>
  family === 4 ? 'ip saddr . ip daddr . ip protocol . ip id' : 'ip6 saddr . ip6 daddr . frag id'

type Names = {
  flows: (family: Family, began: Direction) => string
  peers: (family: Family, began: Direction) => string
  closing: (family: Family, began: Direction) => string
  fragments: (family: Family) => string
  judge: (direction: Direction) => string
  pass: (direction: Direction, began: Direction) => string
}
const namesOf = (tap: string): Names => ({
  flows: (family, began) => `flows${family}-${began}-${tap}`,
  peers: (family, began) => `peers${family}-${began}-${tap}`,
  closing: (family, began) => `closing${family}-${began}-${tap}`,
  fragments: (family) => `fragments${family}-${tap}`,
  judge: (direction) => `${direction}-${tap}`,
  pass: (direction, began) => `${direction}-of-${began}-${tap}`,
})

/** Without which nothing works, and what the host itself offers: passes whatever the rules say. */
const ALWAYS: Record<Direction, string[]> = {
  out: [
    'icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } return',
    'icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } return',
    'ether type ip udp sport 68 udp dport 67 return',
    'ether type ip6 udp sport 546 udp dport 547 return',
  ],
  in: [
    'icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } return',
    'icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } return',
    'ether type ip udp sport 67 udp dport 68 return',
    'ether type ip6 udp sport 547 udp dport 546 return',
  ],
}
/** Errors about packets of others: without them the size of packets can't be found out. What they are about is not looked at. */
const ERRORS = [
  'icmp type { destination-unreachable, time-exceeded, parameter-problem } return',
  'icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } return',
]

/** Later fragments have no ports: they go the way of their first one. First ones too small to have them go nowhere (RFC 1858). */
function fragmentRules(n: Names): string[] {
  return [
    'ip frag-off & 0x3fff == 0x2000 ip length < 68 drop',
    `ip frag-off & 0x1fff != 0 ${fragmentKey(4)} @${n.fragments(4)} return`,
    'ip frag-off & 0x1fff != 0 drop',
    'frag more-fragments 1 frag frag-off 0 ip6 length < 512 drop',
    `frag frag-off != 0 ${fragmentKey(6)} @${n.fragments(6)} return`,
    'frag frag-off != 0 drop',
  ]
}

/** Answers to what began in the other direction. */
function answerRules(n: Names, direction: Direction): string[] {
  const began = OTHER[direction]
  return FAMILIES.flatMap((family) => {
    const pass = `goto ${n.pass(direction, began)}`
    const peers = `${peerKey(family, direction)} @${n.peers(family, began)} ${pass}`
    return [
      `meta l4proto { tcp, udp } ${flowKey(family, direction)} @${n.flows(family, began)} ${pass}`,
      family === 4 ? `icmp type echo-reply ${peers}` : `icmpv6 type echo-reply ${peers}`,
      `meta l4proto != { 1, 6, 17, 58 } ${peers}`,
    ]
  })
}

const PROTOCOLS = { tcp: 'meta l4proto tcp', udp: 'meta l4proto udp', icmp: 'meta l4proto { 1, 58 }', any: '' } as const

/** One line for each family that it names; none for a rule about nobody. */
function ruleLines(rule: NicRule, verdict: string): string[] {
  const list = (items: string[]) => `{ ${items.join(', ')} }`
  const ports = (rule.ports ?? []).map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`))
  const what = [PROTOCOLS[rule.protocol], ...(ports.length === 0 ? [] : [`th dport ${list(ports)}`]), verdict].filter(
    (part) => part !== '',
  )
  if (rule.peers === undefined) return [what.join(' ')]
  const cidrs = rule.peers.flatMap((peer) => parseCidr(peer) ?? [])
  return FAMILIES.flatMap((family) => {
    const of = cidrs.filter((c) => c.family === family).map((c) => c.text)
    return of.length === 0 ? [] : [`${ip(family)} ${sides(rule.direction).remote} ${list(of)} ${what.join(' ')}`]
  })
}

function judgeRules(n: Names, firewall: NicFirewall, direction: Direction): string[] {
  const pass = `goto ${n.pass(direction, direction)}`
  const verdict = (action: 'accept' | 'drop') => (action === 'accept' ? pass : 'drop')
  // An answer is no beginning of its own: else what is forbidden in the other direction would go on as an answer to it.
  if (isOpen(firewall, direction)) return [...answerRules(n, direction), pass]
  return [
    'ether type arp return',
    `ether type != { ip, ip6 } ${firewall[direction] === 'drop' ? 'drop' : 'return'}`,
    ...fragmentRules(n),
    ...ALWAYS[direction],
    ...ERRORS,
    ...answerRules(n, direction),
    ...firewall.rules.filter((r) => r.direction === direction).flatMap((r) => ruleLines(r, verdict(r.action))),
    verdict(firewall[direction]),
  ]
}

/** A packet has passed: what it belongs to is kept for a while. */
function passRules(n: Names, direction: Direction, began: Direction): string[] {
  return FAMILIES.flatMap((family) => {
    const key = flowKey(family, direction)
    const flows = (timeout: string) => `update @${n.flows(family, began)} { ${key} timeout ${timeout} }`
    const peers = (timeout: string) =>
      `update @${n.peers(family, began)} { ${peerKey(family, direction)} timeout ${timeout} }`
    const first = family === 4 ? 'ip frag-off & 0x3fff == 0x2000' : 'frag frag-off 0 frag more-fragments 1'
    return [
      `${first} update @${n.fragments(family)} { ${fragmentKey(family)} timeout ${FRAGMENTS} }`,
      `tcp flags & (fin | rst) != 0 update @${n.closing(family, began)} { ${key} timeout ${BRIEF} }`,
      `meta l4proto tcp ${key} @${n.closing(family, began)} ${flows(BRIEF)} return`,
      `tcp flags & (syn | ack) == syn ${flows(BRIEF)} return`,
      `meta l4proto tcp ${flows(TCP)} return`,
      `meta l4proto udp ${flows(UDP)} return`,
      ...(direction === began
        ? [
            `${family === 4 ? 'icmp' : 'icmpv6'} type echo-request ${peers(PING)} return`,
            `meta l4proto != { 1, 6, 17, 58 } ${peers(UDP)} return`,
          ]
        : []),
    ]
  })
}

export type FirewallParts = { sets: Map<string, string>; chains: Map<string, string[]> }

/** Sets and chains by their names, for all NICs with a firewall. */
export function firewallParts(attachments: readonly NetworkAttachment[]): FirewallParts {
  const parts: FirewallParts = { sets: new Map(), chains: new Map() }
  const jumps: Record<Direction, string[]> = { in: [], out: [] }
  const set = (name: string, key: string, size: number, timeout: string) =>
    parts.sets.set(name, `{ typeof ${key}; flags dynamic,timeout; size ${size}; timeout ${timeout}; }`)
  const taps = attachments.flatMap((a) => (a.firewall ? [{ tap: tapName(a.vm, a.nic), firewall: a.firewall }] : []))
  for (const { tap, firewall } of taps.sort((a, b) => (a.tap < b.tap ? -1 : 1))) {
    if (isOpen(firewall, 'in') && isOpen(firewall, 'out')) continue
    const n = namesOf(tap)
    for (const family of FAMILIES) {
      set(n.fragments(family), fragmentKey(family), OTHERS, FRAGMENTS)
      for (const began of ['in', 'out'] as const) {
        set(n.flows(family, began), flowKey(family, 'out'), FLOWS, BRIEF)
        set(n.closing(family, began), flowKey(family, 'out'), FLOWS, BRIEF)
        set(n.peers(family, began), peerKey(family, 'out'), OTHERS, PING)
      }
    }
    for (const direction of ['in', 'out'] as const) {
      for (const began of ['in', 'out'] as const)
        parts.chains.set(n.pass(direction, began), passRules(n, direction, began))
      parts.chains.set(n.judge(direction), judgeRules(n, firewall, direction))
      jumps[direction].push(`"${tap}" : jump ${n.judge(direction)}`)
    }
  }
  const base = (hook: string, priority: number, field: string, to: string[]) =>
    parts.chains.set(hook, [
      `{ type filter hook ${hook} priority ${priority}; policy accept; }`,
      ...(to.length === 0 ? [] : [`${field} vmap { ${to.join(', ')} }`]),
    ])
  // After the guard (-300): what is judged has the addresses it says.
  base('prerouting', -200, 'iifname', jumps.out)
  base('postrouting', 200, 'oifname', jumps.in)
  return parts
}

/** `there`: names of what the table has now. One transaction, in which no packet sees less than the old rules or the new ones. */
export function renderFirewall(
  table: string,
  attachments: readonly NetworkAttachment[],
  there: { sets: string[]; chains: string[] },
): string {
  const { sets, chains } = firewallParts(attachments)
  if (sets.size === 0) return `add table bridge ${table}\ndelete table bridge ${table}\n`
  const isBase = (name: string) => name === 'prerouting' || name === 'postrouting'
  return [
    `add table bridge ${table}`,
    `flush table bridge ${table}`,
    ...there.chains.filter((name) => !chains.has(name)).map((name) => `delete chain bridge ${table} ${name}`),
    ...there.sets.filter((name) => !sets.has(name)).map((name) => `delete set bridge ${table} ${name}`),
    ...[...sets].map(([name, spec]) => `add set bridge ${table} ${name} ${spec}`),
    ...[...chains].map(([name, [head]]) => `add chain bridge ${table} ${name}${isBase(name) ? ` ${head}` : ''}`),
    ...[...chains].flatMap(([name, rules]) =>
      (isBase(name) ? rules.slice(1) : rules).map((rule) => `add rule bridge ${table} ${name} ${rule}`),
    ),
    '',
  ].join('\n')
}

/** Reads `nft -j -t list table bridge …`: named sets and chains. */
export function parseTable(json: string): { sets: string[]; chains: string[] } {
  const parsed: unknown = json.trim() === '' ? {} : JSON.parse(json)
  const list = (parsed as { nftables?: { set?: { name: string }; chain?: { name: string } }[] }).nftables ?? []
  return {
    sets: list.flatMap((x) => (x.set === undefined ? [] : [x.set.name])),
    chains: list.flatMap((x) => (x.chain === undefined ? [] : [x.chain.name])),
  }
}
