/** The firewall as text decides as a plain reading of its rules does. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseCidr } from '@wadah/api/cidr'
import { firewallParts, parseTable, renderFirewall } from '@wadah/host/network/firewall'
import { tapName } from '@wadah/host/network/naming'
import type { NetworkAttachment, NicFirewall, NicRule } from '@wadah/ports/networks'
import { Nft, type Packet } from './nft-reader.ts'

const nic = (vm: string, firewall?: NicFirewall): NetworkAttachment => ({
  vm,
  vm_name: 'web',
  nic: 'net1',
  network: 'net-aaaaaaaaaa',
  uid: 70_000,
  mac: '02:00:00:00:00:01',
  publish: [],
  limits: {},
  ...(firewall ? { firewall } : {}),
})
const VM = 'vm-aaaaaaaaaa'
const TAP = tapName(VM, 'net1')
const NOTHING = { sets: [], chains: [] }

/** What is meant, said as plainly as it can be. */
class Reference {
  readonly #firewall: NicFirewall
  readonly #known = new Set<string>()
  constructor(firewall: NicFirewall) {
    this.#firewall = firewall
  }

  decide(direction: 'in' | 'out', p: Packet): 'accept' | 'drop' {
    const { rules } = this.#firewall
    const open = (d: 'in' | 'out') =>
      this.#firewall[d] === 'accept' && rules.every((r) => r.direction !== d || r.action === 'accept')
    if (open('in') && open('out')) return 'accept'
    const [guest, remote] = direction === 'out' ? [p.saddr, p.daddr] : [p.daddr, p.saddr]
    const [guestPort, remotePort] = direction === 'out' ? [p.sport, p.dport] : [p.dport, p.sport]
    const isIp = p.ether === 'ip' || p.ether === 'ip6'
    const icmp = p.proto === (p.ether === 'ip' ? 1 : 58)
    const first = p.offset === 0
    const flow =
      p.proto === 6 || p.proto === 17
        ? `${p.ether} ${guest} ${remote} ${p.proto} ${guestPort} ${remotePort}`
        : `${p.ether} ${guest} ${remote} ${p.proto}`
    const fragment = `fragment ${p.ether} ${p.saddr} ${p.daddr} ${p.ether === 'ip' ? p.proto : ''} ${p.id}`
    const other = direction === 'in' ? 'out' : 'in'
    const echo = { request: p.ether === 'ip' ? 8 : 128, reply: p.ether === 'ip' ? 0 : 129 }
    const foreign = ![1, 6, 17, 58].includes(p.proto)
    const mayAnswer = p.proto === 6 || p.proto === 17 || (icmp && p.icmp === echo.reply) || foreign
    const answers = isIp && first && mayAnswer && this.#known.has(`${other} ${flow}`)
    const pass = (): 'accept' => {
      if (!isIp) return 'accept'
      if (p.more && first) this.#known.add(fragment)
      const begins =
        (first && (p.proto === 6 || p.proto === 17)) || (first && icmp && p.icmp === echo.request) || foreign
      if (!answers && begins) this.#known.add(`${direction} ${flow}`)
      return 'accept'
    }
    if (open(direction)) return pass()
    if (p.ether === 'arp') return 'accept'
    if (!isIp) return this.#firewall[direction]
    if (!first) return this.#known.has(fragment) ? 'accept' : 'drop'
    if (p.more && p.length < (p.ether === 'ip' ? 68 : 512)) return 'drop'
    if (icmp && p.ether === 'ip6' && ALWAYS6[direction].includes(p.icmp)) return 'accept'
    if (icmp && (p.ether === 'ip' ? [3, 11, 12] : [1, 2, 3, 4]).includes(p.icmp)) return 'accept'
    const dhcp = p.ether === 'ip' ? [68, 67] : [546, 547]
    if (p.proto === 17 && guestPort === dhcp[0] && remotePort === dhcp[1]) return 'accept'
    if (answers) return pass()
    const rule = rules.find((r) => r.direction === direction && matches(r, p, remote))
    return (rule?.action ?? this.#firewall[direction]) === 'accept' ? pass() : 'drop'
  }
}
const ALWAYS6 = { in: [130, 131, 132, 133, 134, 135, 136, 143], out: [131, 132, 133, 135, 136, 143] }

function matches(rule: NicRule, p: Packet, remote: bigint): boolean {
  const protocols = { tcp: [6], udp: [17], icmp: [1, 58], any: undefined }[rule.protocol]
  if (protocols !== undefined && !protocols.includes(p.proto)) return false
  if (rule.ports !== undefined && !rule.ports.some(([first, last]) => p.dport >= first && p.dport <= last)) return false
  if (rule.peers === undefined) return true
  return rule.peers.some((peer) => {
    const cidr = parseCidr(peer)
    return cidr?.family === (p.ether === 'ip' ? 4 : 6) && remote >= cidr.first && remote <= cidr.last
  })
}

// A small world, so that packets meet rules and answers meet questions.
const four = ['10.0.0.1', '10.0.0.2', '10.1.0.9'].map((a) => parseCidr(a)?.first ?? 0n)
const six = ['fe80::1', 'fe80::2', '2001:db8::9'].map((a) => parseCidr(a)?.first ?? 0n)
const peers = fc.subarray(['10.0.0.0/24', '10.0.0.2/32', '10.1.0.9/32', 'fe80::/10', '2001:db8::/32'])
const ports = fc.constantFrom<[number, number][]>(
  [[22, 22]],
  [
    [80, 80],
    [8000, 8100],
  ],
  [[53, 67]],
)
const action = fc.constantFrom('accept' as const, 'drop' as const)
const direction = fc.constantFrom('in' as const, 'out' as const)
const rule: fc.Arbitrary<NicRule> = fc
  .record({
    direction,
    action,
    protocol: fc.constantFrom('tcp' as const, 'udp' as const, 'icmp' as const, 'any' as const),
    ports: fc.option(ports, { nil: undefined }),
    // nft takes no overlapping subnets in one list; the cluster has merged them.
    peers: fc.option(
      peers.map((list) => list.filter((p) => p !== '10.0.0.2/32' || !list.includes('10.0.0.0/24'))),
      {
        nil: undefined,
      },
    ),
  })
  .map(({ ports: p, peers: of, ...r }) => ({
    ...r,
    ...(p !== undefined && (r.protocol === 'tcp' || r.protocol === 'udp') ? { ports: p } : {}),
    ...(of === undefined ? {} : { peers: of }),
  }))
const firewall: fc.Arbitrary<NicFirewall> = fc.record({
  in: action,
  out: action,
  rules: fc.array(rule, { maxLength: 6 }),
})
const port = fc.constantFrom(22, 53, 67, 68, 80, 546, 547, 5000, 8050)
const packet: fc.Arbitrary<Packet> = fc
  .record({
    ether: fc.constantFrom(
      'arp' as const,
      'ip' as const,
      'ip' as const,
      'ip6' as const,
      'ip6' as const,
      'other' as const,
    ),
    from: fc.nat(2),
    to: fc.nat(2),
    proto: fc.constantFrom(1, 6, 6, 17, 17, 47, 58),
    sport: port,
    dport: port,
    icmp: fc.constantFrom(0, 1, 2, 3, 4, 8, 11, 128, 129, 130, 133, 134, 135, 136, 137, 143),
    flags: fc.record({ syn: fc.boolean(), ack: fc.boolean(), fin: fc.boolean(), rst: fc.boolean() }),
    part: fc.constantFrom('whole', 'whole', 'whole', 'first', 'later', 'last'),
    id: fc.nat(1),
    length: fc.constantFrom(40, 300, 1400),
  })
  .map(({ from, to, part, ...p }) => {
    const addresses = p.ether === 'ip6' ? six : four
    return {
      ...p,
      saddr: addresses[from] ?? 0n,
      daddr: addresses[to] ?? 0n,
      offset: part === 'later' || part === 'last' ? 100 : 0,
      more: part === 'first' || part === 'later',
    }
  })
/** A packet, and sometimes the answer to it. */
const step = fc.record({ direction, packet, answered: fc.boolean() })
const answer = (p: Packet): Packet => ({
  ...p,
  saddr: p.daddr,
  daddr: p.saddr,
  sport: p.dport,
  dport: p.sport,
  icmp: p.icmp === 8 ? 0 : p.icmp === 128 ? 129 : p.icmp,
  flags: { ...p.flags, syn: false, ack: true },
})

describe('the rules as text', () => {
  test('decide about any packet, in any order, as a plain reading of them does', () => {
    const seen = { accept: 0, drop: 0 }
    fc.assert(
      fc.property(firewall, fc.array(step, { minLength: 1, maxLength: 12 }), (f, steps) => {
        const nft = new Nft(renderFirewall('t', [nic(VM, f)], NOTHING))
        const reference = new Reference(f)
        const both = (way: 'in' | 'out', p: Packet) => {
          const wanted = reference.decide(way, p)
          seen[wanted] += 1
          const got = nft.chains.size === 0 ? 'accept' : nft.run(way === 'out' ? 'prerouting' : 'postrouting', TAP, p)
          expect([way, p, got]).toEqual([way, p, wanted])
        }
        for (const s of steps) {
          both(s.direction, s.packet)
          if (s.answered) both(s.direction === 'in' ? 'out' : 'in', answer(s.packet))
        }
      }),
      { numRuns: 600 },
    )
    expect(Math.min(seen.accept, seen.drop)).toBeGreaterThan(400)
  }, 60_000)

  test('a firewall that lets everything pass is none', () => {
    const open: NicFirewall = { in: 'accept', out: 'accept', rules: [] }
    expect(renderFirewall('t', [nic(VM, open), nic('vm-bbbbbbbbbb')], NOTHING)).toBe(
      'add table bridge t\ndelete table bridge t\n',
    )
  })

  test('what is no more wanted goes, and what is known of connections stays', () => {
    const f: NicFirewall = { in: 'drop', out: 'accept', rules: [] }
    const { sets, chains } = firewallParts([nic(VM, f)])
    const there = { sets: [...sets.keys(), 'flows4-in-wold'], chains: [...chains.keys(), 'in-wold'] }
    const text = renderFirewall('t', [nic(VM, f)], there)
    expect(text.match(/^delete .*/gm)).toEqual(['delete chain bridge t in-wold', 'delete set bridge t flows4-in-wold'])
    expect(text).not.toMatch(/delete table|flush set/)
    expect(text.split('\n').slice(0, 2)).toEqual(['add table bridge t', 'flush table bridge t'])
  })

  test('the list of a table is read, whatever else stands in it', () => {
    expect(
      parseTable('{"nftables":[{"metainfo":{}},{"set":{"name":"a"}},{"chain":{"name":"b"}},{"rule":{}}]}'),
    ).toEqual({
      sets: ['a'],
      chains: ['b'],
    })
    expect(parseTable('')).toEqual(NOTHING)
  })
})
