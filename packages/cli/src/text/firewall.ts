/** Firewall rules as people type and read them: `ssh in accept tcp 22,80 from 10.0.0.0/8,office`. Pure. */
import { fail } from '@wadah/api/fault'
import type { Firewall, FirewallGroup, FirewallInput, FirewallRule } from '@wadah/api/schema/firewall'

const FORM = '"NAME in|out accept|drop [tcp|udp|icmp|any] [PORTS] [from|to ADDRESS,GROUP…]"'
const EXAMPLE = '"ssh in accept tcp 22 from 10.0.0.0/8"'

export function parseRule(text: string): FirewallRule {
  const words = text.trim().split(/\s+/)
  const wrong = (what: string) =>
    fail('invalid', `--rule: ${what} in "${text}"; write ${FORM}, for example ${EXAMPLE}`, { field: '--rule' })
  const take = (what: string): string => {
    const word = words.shift()
    if (word === undefined || word === '') throw wrong(`${what} is missing`)
    return word
  }
  const name = take('the name').replace(/:$/, '')
  const direction = take('the direction')
  if (direction !== 'in' && direction !== 'out') throw wrong(`"${direction}" is neither in nor out`)
  const action = take('the action')
  if (action !== 'accept' && action !== 'drop') throw wrong(`"${action}" is neither accept nor drop`)
  const rule: FirewallRule = { name, direction, action }
  const [protocol] = words
  if (protocol === 'tcp' || protocol === 'udp' || protocol === 'icmp' || protocol === 'any') {
    rule.protocol = protocol
    words.shift()
  }
  if (words[0] !== undefined && /^\d/.test(words[0])) rule.ports = words.shift() as string
  if (words.length > 0) {
    const side = take('from or to')
    if (side !== 'from' && side !== 'to') throw wrong(`"${side}" is not understood`)
    rule[side] = take('an address or group')
      .split(',')
      .filter((peer) => peer !== '')
  }
  if (words.length > 0) throw wrong(`"${words[0]}" is too much`)
  return rule
}

/** What `parseRule` reads. */
export function ruleText(rule: FirewallRule): string {
  const side = rule.from ? `from ${rule.from.join(',')}` : rule.to ? `to ${rule.to.join(',')}` : ''
  return [rule.name, rule.direction, rule.action, rule.protocol ?? 'any', rule.ports ?? '', side]
    .filter((word) => word !== '')
    .join(' ')
}

/** Those of a name that is there are replaced in their place, others come after. */
export function mergeRules(
  before: readonly FirewallRule[],
  texts: readonly string[] = [],
  remove: readonly string[] = [],
): FirewallRule[] {
  for (const name of remove) {
    if (!before.some((rule) => rule.name === name))
      throw fail('invalid', `There is no rule "${name}"; there are ${before.map((r) => r.name).join(', ') || 'none'}`, {
        field: '--remove-rule',
      })
  }
  const rules = before.filter((rule) => !remove.includes(rule.name))
  for (const rule of texts.map(parseRule)) {
    const at = rules.findIndex((r) => r.name === rule.name)
    if (at < 0) rules.push(rule)
    else rules[at] = rule
  }
  return rules
}

export type FirewallOptions = {
  firewall?: string
  rule?: string[]
  removeRule?: string[]
  firewallGroup?: string[]
  removeFirewallGroup?: string[]
}

/** `in=drop,out=accept`; `on` is the defaults; `off` takes the firewall away. */
function parseDefaults(text: string): Pick<FirewallInput, 'in' | 'out'> {
  if (text === 'on') return {}
  const parsed: Pick<FirewallInput, 'in' | 'out'> = {}
  for (const part of text.split(',')) {
    const match = /^(in|out)=(accept|drop)$/.exec(part.trim())
    if (!match)
      throw fail('invalid', `--firewall: "${part}" is not understood; write in=drop,out=accept, or on, or off`, {
        field: '--firewall',
      })
    parsed[match[1] as 'in'] = match[2] as 'accept'
  }
  return parsed
}

/** The change, laid over what the VM has; undefined when nothing was said about it. */
export function buildFirewall(before: Firewall | undefined, o: FirewallOptions): FirewallInput | null | undefined {
  const said = [o.firewall, o.rule, o.removeRule, o.firewallGroup, o.removeFirewallGroup]
  if (said.every((option) => option === undefined)) return undefined
  if (o.firewall === 'off') {
    if (said.slice(1).some((option) => option !== undefined))
      throw fail('invalid', '--firewall off takes it away with all of its rules: leave the others out', {
        field: '--firewall',
      })
    return null
  }
  const input: FirewallInput = o.firewall === undefined ? {} : parseDefaults(o.firewall)
  if (o.rule ?? o.removeRule) input.rules = mergeRules(before?.rules ?? [], o.rule, o.removeRule)
  if (o.firewallGroup ?? o.removeFirewallGroup) {
    const gone = o.removeFirewallGroup ?? []
    const kept = (before?.groups ?? []).filter((group) => !gone.includes(group))
    input.groups = [...kept, ...(o.firewallGroup ?? []).filter((group) => !kept.includes(group))]
  }
  return input
}

/** Ids of groups → their names, in rules too; what `wadah apply` and `vm export` compare and write. */
export function namedFirewall(firewall: Firewall, groups: readonly FirewallGroup[]): Firewall {
  const nameOf = (peer: string) => groups.find((g) => g.id === peer)?.name ?? peer
  return {
    ...firewall,
    groups: firewall.groups.map(nameOf),
    rules: firewall.rules.map((rule) => ({
      ...rule,
      ...(rule.from ? { from: rule.from.map(nameOf) } : {}),
      ...(rule.to ? { to: rule.to.map(nameOf) } : {}),
    })),
  }
}
