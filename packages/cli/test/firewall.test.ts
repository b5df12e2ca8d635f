import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { refusal } from './refusal.ts'
import type { FirewallRule } from '@wadah/api/schema/firewall'
import { buildFirewall, mergeRules, namedFirewall, parseRule, ruleText } from '../src/text/firewall.ts'

describe('a rule', () => {
  it.each<[string, FirewallRule]>([
    ['ssh in accept', { name: 'ssh', direction: 'in', action: 'accept' }],
    [
      'web:  in accept tcp 80,8000-8100 from 10.0.0.0/8,office',
      {
        name: 'web',
        direction: 'in',
        action: 'accept',
        protocol: 'tcp',
        ports: '80,8000-8100',
        from: ['10.0.0.0/8', 'office'],
      },
    ],
    ['x out drop to fe80::/10', { name: 'x', direction: 'out', action: 'drop', to: ['fe80::/10'] }],
  ])('%s', (text, rule) => expect(parseRule(text)).toEqual(rule))
  it.each([
    ['', 'the name is missing'],
    ['ssh', 'the direction is missing'],
    ['ssh up accept', '"up" is neither in nor out'],
    ['ssh in allow', '"allow" is neither accept nor drop'],
    ['ssh in accept tcp 22 10.0.0.1', '"10.0.0.1" is not understood'],
    ['ssh in accept tcp from', 'an address or group is missing'],
    ['ssh in accept from a b', '"b" is too much'],
  ])('%j is refused', (text, why) => expect(refusal(() => parseRule(text))).toContain(why))
  it('is written as it is read', () => {
    const rule = fc
      .record(
        {
          name: fc.constantFrom('a', 'b-c'),
          direction: fc.constantFrom('in' as const, 'out' as const),
          action: fc.constantFrom('accept' as const, 'drop' as const),
          protocol: fc.constantFrom('tcp' as const, 'udp' as const, 'icmp' as const, 'any' as const),
          ports: fc.constantFrom('22', '1-2,3'),
          peers: fc.constantFrom(['10.0.0.0/8'], ['lan', '::1']),
        },
        { requiredKeys: ['name', 'direction', 'action', 'protocol'] },
      )
      .map(({ peers, ...r }) => (peers ? { ...r, [r.direction === 'in' ? 'from' : 'to']: peers } : r))
    fc.assert(
      fc.property(rule, (r) => {
        expect({ ...parseRule(ruleText(r as FirewallRule)) }).toEqual({ ...r })
      }),
    )
  })
})

describe('options', () => {
  const ssh = parseRule('ssh in accept tcp 22')
  const http = parseRule('http in accept tcp 80')
  it('replace a rule in its place, add and remove', () => {
    expect(mergeRules([ssh, http], ['ssh in drop', 'x out drop'], ['http']).map(ruleText)).toEqual([
      'ssh in drop any',
      'x out drop any',
    ])
    expect(refusal(() => mergeRules([ssh], [], ['y']))).toContain('there are ssh')
  })
  it('are laid over what is there', () => {
    const there = { in: 'drop' as const, out: 'accept' as const, groups: ['web'], rules: [ssh] }
    expect(buildFirewall(there, {})).toBeUndefined()
    expect(buildFirewall(there, { firewall: 'off' })).toBeNull()
    expect(buildFirewall(undefined, { firewall: 'on' })).toEqual({})
    expect(buildFirewall(there, { firewall: 'out=drop', firewallGroup: ['db'], removeFirewallGroup: ['web'] })).toEqual(
      {
        out: 'drop',
        groups: ['db'],
      },
    )
    expect(refusal(() => buildFirewall(there, { firewall: 'off', rule: ['x out drop'] }))).toContain('leave the others')
    expect(refusal(() => buildFirewall(there, { firewall: 'in=maybe' }))).toContain('in=drop,out=accept')
  })
  it('show groups by their names', () => {
    const groups = [{ id: 'grp-aaaaaaaaaa', name: 'web' }] as never
    const f = {
      in: 'drop' as const,
      out: 'accept' as const,
      groups: ['grp-aaaaaaaaaa'],
      rules: [{ ...ssh, from: ['grp-aaaaaaaaaa', '10.0.0.1'] }],
    }
    expect(namedFirewall(f, groups)).toMatchObject({ groups: ['web'], rules: [{ from: ['web', '10.0.0.1'] }] })
  })
})
