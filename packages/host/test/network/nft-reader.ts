/**
 * Enough of nftables to carry out the text that the firewall is made of: it reads the script as the kernel would, statement by statement,
 * and knows nothing of what the rules are meant for. What it does not know it throws.
 */
import { parseCidr } from '@wadah/api/cidr'

export type Packet = {
  ether: 'arp' | 'ip' | 'ip6' | 'other'
  saddr: bigint
  daddr: bigint
  proto: number
  sport: number
  dport: number
  icmp: number
  flags: { syn: boolean; ack: boolean; fin: boolean; rst: boolean }
  /** In units of 8 bytes; a packet that is whole has 0 and false. */
  offset: number
  more: boolean
  id: number
  length: number
}

const ICMP: Record<string, number> = {
  'destination-unreachable': 3,
  'time-exceeded': 11,
  'parameter-problem': 12,
  'echo-request': 8,
  'echo-reply': 0,
}
const ICMP6: Record<string, number> = {
  'destination-unreachable': 1,
  'packet-too-big': 2,
  'time-exceeded': 3,
  'parameter-problem': 4,
  'echo-request': 128,
  'echo-reply': 129,
  'mld-listener-query': 130,
  'mld-listener-report': 131,
  'mld-listener-done': 132,
  'nd-router-solicit': 133,
  'nd-router-advert': 134,
  'nd-neighbor-solicit': 135,
  'nd-neighbor-advert': 136,
  'mld2-listener-report': 143,
}

/** The value of a field, or undefined where the packet has none: a rule that asks for it does not match (NFT_BREAK). */
function field(name: string, p: Packet): bigint | undefined {
  const of = (family: 'ip' | 'ip6', value: number | bigint) => (p.ether === family ? BigInt(value) : undefined)
  const whole = p.offset === 0
  const ports = (protos: number[], value: number) =>
    (p.ether === 'ip' || p.ether === 'ip6') && whole && protos.includes(p.proto) ? BigInt(value) : undefined
  const fragmented = p.ether === 'ip6' && (p.offset > 0 || p.more)
  switch (name) {
    case 'ip saddr':
      return of('ip', p.saddr)
    case 'ip daddr':
      return of('ip', p.daddr)
    case 'ip6 saddr':
      return of('ip6', p.saddr)
    case 'ip6 daddr':
      return of('ip6', p.daddr)
    case 'ip protocol':
      return of('ip', p.proto)
    case 'ip id':
      return of('ip', p.id)
    case 'ip length':
      return of('ip', p.length)
    case 'ip6 length':
      return of('ip6', p.length)
    case 'ip frag-off':
      return of('ip', (p.more ? 0x2000 : 0) + p.offset)
    case 'frag frag-off':
      return fragmented ? BigInt(p.offset) : undefined
    case 'frag more-fragments':
      return fragmented ? BigInt(p.more) : undefined
    case 'frag id':
      return fragmented ? BigInt(p.id) : undefined
    case 'meta l4proto':
      return p.ether === 'ip' || p.ether === 'ip6' ? BigInt(p.proto) : undefined
    case 'th sport':
      return ports([6, 17], p.sport)
    case 'th dport':
      return ports([6, 17], p.dport)
    case 'udp sport':
      return ports([17], p.sport)
    case 'udp dport':
      return ports([17], p.dport)
    case 'icmp type':
      return p.ether === 'ip' && whole && p.proto === 1 ? BigInt(p.icmp) : undefined
    case 'icmpv6 type':
      return p.ether === 'ip6' && whole && p.proto === 58 ? BigInt(p.icmp) : undefined
    default:
      throw new Error(`field ${name}?`)
  }
}

const PROTOCOLS: Record<string, number> = { tcp: 6, udp: 17 }

function value(name: string, text: string): [bigint, bigint] {
  if (name === 'icmp type') return [BigInt(ICMP[text] ?? -1), BigInt(ICMP[text] ?? -1)]
  if (name === 'icmpv6 type') return [BigInt(ICMP6[text] ?? -1), BigInt(ICMP6[text] ?? -1)]
  if (name.endsWith('addr')) {
    const cidr = parseCidr(text)
    if (cidr === undefined) throw new Error(`address ${text}?`)
    return [cidr.first, cidr.last]
  }
  const [first = '', last = first] = text.split('-')
  const number = (word: string) => BigInt(PROTOCOLS[word] ?? word)
  return [number(first), number(last)]
}

export class Nft {
  readonly chains = new Map<string, string[]>()
  readonly sets = new Map<string, Set<string>>()

  constructor(script: string) {
    for (const line of script.split('\n')) {
      const chain = /^add chain bridge \S+ (\S+)/.exec(line)
      const set = /^add set bridge \S+ (\S+) /.exec(line)
      const rule = /^add rule bridge \S+ (\S+) (.*)$/.exec(line)
      if (chain) this.chains.set(chain[1] ?? '', [])
      else if (set) this.sets.set(set[1] ?? '', new Set())
      else if (rule) this.chains.get(rule[1] ?? '')?.push(rule[2] ?? '')
      else if (!/^(add|flush|delete) (table|chain|set)|^$/.test(line)) throw new Error(`line ${line}?`)
    }
  }

  /** What a base chain does to a packet of an interface. */
  run(hook: 'prerouting' | 'postrouting', device: string, p: Packet): 'accept' | 'drop' {
    return this.#chain(hook, device, p) === 'drop' ? 'drop' : 'accept'
  }

  #chain(name: string, device: string, p: Packet): 'drop' | 'accept' | 'return' {
    const rules = this.chains.get(name)
    if (rules === undefined) throw new Error(`chain ${name}?`)
    for (const rule of rules) {
      const verdict = this.#rule(rule, device, p)
      if (verdict === undefined) continue
      const [what, target = ''] = verdict.split(' ')
      if (what === 'drop' || what === 'accept' || what === 'return') return what
      const inner = this.#chain(target, device, p)
      if (inner !== 'return') return inner
      if (what === 'goto') return 'return'
    }
    return 'return'
  }

  /** The verdict, or undefined: it does not match, or says nothing. */
  #rule(rule: string, device: string, p: Packet): string | undefined {
    let rest = rule
    const take = (pattern: RegExp): RegExpExecArray | undefined => {
      const match = new RegExp(`^(?:${pattern.source})(?: |$)`).exec(rest)
      if (!match) return undefined
      rest = rest.slice(match[0].length)
      return match
    }
    const key = (text: string): string | undefined => {
      const values = text.split(' . ').map((name) => field(name, p))
      return values.includes(undefined) ? undefined : values.join('.')
    }
    while (rest !== '') {
      const vmap = take(/(?:iifname|oifname) vmap \{ (.*) \}/)
      if (vmap) {
        const entry = (vmap[1] ?? '').split(', ').find((e) => e.startsWith(`"${device}" : `))
        return entry?.split(' : ')[1]
      }
      const verdict = take(/(drop|accept|return|(?:goto|jump) \S+)/)
      if (verdict) {
        if (rest !== '') throw new Error(`after a verdict: ${rest}?`)
        return verdict[1]
      }
      const update = take(/update @(\S+) \{ (.*?) timeout \w+ \}/)
      if (update) {
        const k = key(update[2] ?? '')
        if (k === undefined) return undefined
        this.#set(update[1]).add(k)
        continue
      }
      const lookup = take(/((?:\w+ [\w-]+)(?: \. \w+ [\w-]+)+) @(\S+)/)
      if (lookup) {
        const k = key(lookup[1] ?? '')
        if (k === undefined || !this.#set(lookup[2]).has(k)) return undefined
        continue
      }
      const flags = take(/tcp flags & \((\w+) \| (\w+)\) (==|!=) (\w+)/)
      if (flags) {
        if (p.proto !== 6 || p.offset > 0 || (p.ether !== 'ip' && p.ether !== 'ip6')) return undefined
        const on = [flags[1], flags[2]].filter((f) => p.flags[f as 'syn'])
        const ok = flags[3] === '!=' ? on.length > 0 : on.length === 1 && on[0] === flags[4]
        if (!ok) return undefined
        continue
      }
      const ether = take(/ether type (!= )?(?:\{ (.*?) \}|(\w+))/)
      if (ether) {
        const listed = (ether[2] ?? ether[3] ?? '').split(', ').includes(p.ether)
        if (listed === (ether[1] !== undefined)) return undefined
        continue
      }
      const masked = take(/(ip frag-off) & (0x\w+) (==|!=) (0x\w+|0)/)
      if (masked) {
        const v = field(masked[1] ?? '', p)
        if (v === undefined) return undefined
        const same = (v & BigInt(masked[2] ?? '')) === BigInt(masked[4] ?? '')
        if (same !== (masked[3] === '==')) return undefined
        continue
      }
      const less = take(/(ip6? length) < (\d+)/)
      if (less) {
        const v = field(less[1] ?? '', p)
        if (v === undefined || v >= BigInt(less[2] ?? '')) return undefined
        continue
      }
      const plain = take(/(\w+ [\w-]+) (!= )?(?:\{ (.*?) \}|([\w-]+))/)
      if (!plain) throw new Error(`${rest}?`)
      const name = plain[1] ?? ''
      const v = field(name, p)
      if (v === undefined) return undefined
      const hit = (plain[3] ?? plain[4] ?? '').split(', ').some((text) => {
        const [first, last] = value(name, text)
        return v >= first && v <= last
      })
      if (hit === (plain[2] !== undefined)) return undefined
    }
    return undefined
  }

  #set(name: string | undefined): Set<string> {
    const set = this.sets.get(name ?? '')
    if (set === undefined) throw new Error(`set ${name}?`)
    return set
  }
}
