/**
 * Our nftables table as text. It replaces the whole table in one transaction, so what is loaded is always exactly what is here.
 * Every rule names one of our bridges; policies are `accept`: what is not ours passes untouched. Pure.
 */
import type { NetworkAttachment } from '@wadah/ports/networks'
import { type UidRange, inputRules, markedRules, ownRules } from './guard.ts'
import type { BridgedNetwork, NatNetwork } from './links.ts'

const isLoopback = (address: string): boolean => address.startsWith('127.')

type Publish = NetworkAttachment['publish'][number]

function destination(publish: Publish): string {
  // Every address of this host, those to come included.
  return publish.address === '0.0.0.0' ? 'fib daddr type local' : `ip daddr ${publish.address}`
}

/** The table for these networks and attachments, ready for `nft -f -`. */
export function renderNft(
  table: string,
  networks: readonly BridgedNetwork[],
  attachments: NetworkAttachment[],
  uids?: UidRange,
): string {
  const sorted = networks.filter((n): n is NatNetwork => n.kind === 'nat').sort((a, b) => (a.id < b.id ? -1 : 1))
  const published = (network: NatNetwork) =>
    attachments
      .filter((a) => a.network === network.id && a.address !== undefined && a.publish.length > 0)
      .sort((a, b) => (`${a.vm} ${a.nic}` < `${b.vm} ${b.nic}` ? -1 : 1))
  const all = sorted.flatMap((n) => published(n).flatMap((a) => a.publish.map((p) => ({ p, to: a.address ?? '' }))))
  const dnat = ({ p, to }: { p: Publish; to: string }): string =>
    `${destination(p)} ${p.protocol} dport ${p.port} dnat to ${to}:${p.to}`
  const bridges = sorted.map((n) => `"${n.bridge}"`).join(', ')

  const guard =
    sorted.length === 0
      ? []
      : [
          // route_localnet is on for our bridges: without this a guest could reach what listens on 127.0.0.1.
          `iifname { ${bridges} } ip daddr 127.0.0.0/8 drop`,
          `iifname { ${bridges} } ip saddr 127.0.0.0/8 drop`,
        ]
  const source = sorted.flatMap((n) => [
    // The host by way of 127.0.0.1, and a guest by way of a published port of its own network: answers must come back through us.
    `oifname "${n.bridge}" ip saddr 127.0.0.0/8 masquerade`,
    `oifname "${n.bridge}" ip saddr ${n.subnet} ct status dnat masquerade`,
    `oifname != "${n.bridge}" ip saddr ${n.subnet} ip daddr != 224.0.0.0/4 masquerade`,
  ])
  const guests = sorted.flatMap((n) => published(n))
  const forward = sorted.flatMap((n) => {
    const mine = published(n).map((a) => `${a.address} : jump published-${a.address}`)
    return [
      // Guests among themselves: seen here only where br_netfilter hands bridged packets to IP rules.
      // (`ct status != dnat` would compare the whole word, and be true for nearly everything.)
      `iifname "${n.bridge}" oifname "${n.bridge}" ct status & dnat == 0 accept`,
      ...(mine.length === 0
        ? []
        : [`oifname "${n.bridge}" ct direction original ct status dnat ip daddr vmap { ${mine.join(', ')} }`]),
      `oifname "${n.bridge}" ct direction original ct status dnat drop`,
      `oifname "${n.bridge}" ct state established,related accept`,
      `oifname "${n.bridge}" drop`,
    ]
  })

  const chain = (name: string, hook: string | undefined, rules: string[]): string =>
    [
      `\tchain ${name} {`,
      ...(hook === undefined ? [] : [`\t\t${hook}; policy accept`]),
      ...rules.map((r) => `\t\t${r}`),
      '\t}',
    ].join('\n')
  return [
    // `add` first, so that `delete` finds it the first time too.
    `add table ip ${table}`,
    `delete table ip ${table}`,
    `table ip ${table} {`,
    ...guests.map((a) =>
      chain(
        `published-${a.address}`,
        undefined,
        // The port asked for is compared too: what is no longer published ends at once, connections that stand included.
        a.publish.map(
          (p) => `meta l4proto ${p.protocol} ct original proto-dst ${p.port} ${p.protocol} dport ${p.to} accept`,
        ),
      ),
    ),
    chain('guard', 'type filter hook prerouting priority raw', guard),
    chain(
      'prerouting',
      'type nat hook prerouting priority dstnat',
      all.filter(({ p }) => !isLoopback(p.address)).map(dnat),
    ),
    chain('output', 'type nat hook output priority -100', all.map(dnat)),
    chain('postrouting', 'type nat hook postrouting priority srcnat', source),
    chain('input', 'type filter hook input priority filter', [...inputRules(sorted), ...markedRules(networks, 'ip')]),
    ...(uids === undefined ? [] : [chain('own', 'type filter hook output priority filter', ownRules(uids, sorted))]),
    chain('forward', 'type filter hook forward priority filter', forward),
    '}',
    '',
  ].join('\n')
}

/** Takes our tables away, whether they are there or not. */
export function renderRemoval(table: string, walls: string): string {
  return [`ip ${table}`, `netdev ${table}`, `bridge ${table}`, `bridge ${walls}`]
    .map((of) => `add table ${of}\ndelete table ${of}\n`)
    .join('')
}
/** Apart: a kernel without IPv6 has no such tables. */
export const renderRemoval6 = (table: string) => `add table ip6 ${table}\ndelete table ip6 ${table}\n`

/** Bytes that may come at once above the rate: at least two of the largest packets a guest hands over (64 KiB, segmented later). */
export function burstBytes(bytes_per_s: number): number {
  return Math.max(128 * 1024, Math.ceil(bytes_per_s / 20))
}

/** The ceiling on what comes from the guest behind `tap`: what is above is dropped as it enters. `undefined` takes the ceiling away. */
export function renderFromGuest(table: string, tap: string, bytes_per_s: number | undefined): string {
  const gone = [`add table netdev ${table}`, `add chain netdev ${table} ${tap}`, `delete chain netdev ${table} ${tap}`]
  if (bytes_per_s === undefined) return `${gone.join('\n')}\n`
  return [
    ...gone,
    `add chain netdev ${table} ${tap} { type filter hook ingress device "${tap}" priority 0; policy accept; }`,
    `add rule netdev ${table} ${tap} limit rate over ${bytes_per_s} bytes/second burst ${burstBytes(bytes_per_s)} bytes drop`,
    '',
  ].join('\n')
}

/** The line for `tc -batch -` that shapes what goes to the guest (token bucket), or takes the shaping away. */
export function renderToGuest(tap: string, bytes_per_s: number | undefined): string {
  return bytes_per_s === undefined
    ? `qdisc del dev ${tap} root\n`
    : // tc's `bps` is bytes per second.
      `qdisc replace dev ${tap} root tbf rate ${bytes_per_s}bps burst ${burstBytes(bytes_per_s)} latency 100ms\n`
}
