/** Firewalls of VMs and security groups: what is kept, what is refused, and what the host is told. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { FirewallRule } from '@wadah/api/schema/firewall'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { attachments } from '../src/resolve.ts'
import { caller, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})
const refused = (work: Promise<unknown>, fault: object) => expect(work).rejects.toMatchObject({ fault })
const ssh: FirewallRule = { name: 'ssh', direction: 'in', action: 'accept', protocol: 'tcp', ports: '22' }
const group = (name: string, rules: FirewallRule[] = []) => r.firewallGroups.create(caller, { name, rules })
const told = (vm: string): NetworkAttachment['firewall'] =>
  attachments(r.cluster.deps).find((a) => a.vm_name === vm)?.firewall
const edit = (vm: string, firewall: object | null) => r.vms.edit(caller, vm, { firewall }, undefined)

test('a VM has none, or one with its defaults; an edit changes what it names', async () => {
  await r.done(r.vms.create(caller, { name: 'web' }))
  expect(r.vms.firewall(caller, 'web')).toEqual({ enabled: false, in: 'accept', out: 'accept', rules: [] })
  expect(told('web')).toBeUndefined()
  await edit('web', {})
  expect(told('web')).toEqual({ in: 'drop', out: 'accept', rules: [] })
  await edit('web', { rules: [ssh] })
  await edit('web', { out: 'drop' })
  expect(r.vms.get(caller, 'web').spec.firewall).toEqual({ in: 'drop', out: 'drop', groups: [], rules: [ssh] })
  expect(r.vms.get(caller, 'web').status.pending_restart).toEqual([])
  await edit('web', null)
  expect(r.vms.get(caller, 'web').spec).not.toHaveProperty('firewall')
})

test('own rules come first, then those of its groups, and the host is told all in order, live', async () => {
  await group('admins')
  await group('web', [{ name: 'http', direction: 'in', action: 'accept', protocol: 'tcp', ports: '443,80,80-81' }])
  const from = ['10.0.0.7/8', '10.1.0.0/16', 'admins', 'fe80::1']
  await r.done(r.vms.create(caller, { name: 'boss', firewall: { groups: ['admins'] } }))
  await r.done(
    r.vms.create(caller, { name: 'site', firewall: { groups: ['web'], rules: [{ ...ssh, from: [...from] }] } }),
  )
  const boss = r.vms.get(caller, 'boss').addresses[0]?.address ?? ''
  expect(told('site')).toEqual({
    in: 'drop',
    out: 'accept',
    rules: [
      // Subnets that lie in another are left out; the group is the address of its VM, which lies in one here.
      {
        direction: 'in',
        action: 'accept',
        protocol: 'tcp',
        ports: [[22, 22]],
        peers: ['10.0.0.0/8', 'fe80:0:0:0:0:0:0:1/128'],
      },
      {
        direction: 'in',
        action: 'accept',
        protocol: 'tcp',
        ports: [
          [80, 81],
          [443, 443],
        ],
      },
    ],
  })
  await edit('site', { rules: [{ ...ssh, from: ['admins'] }] })
  expect(r.vms.firewall(caller, 'site').rules).toMatchObject([
    { name: 'ssh', from: ['admins'], addresses: [`${boss}/32`] },
    { name: 'http', group: 'web' },
  ])
  // Another group, other rules: for all of its VMs.
  await r.firewallGroups.edit(caller, 'web', { rules: [] }, undefined)
  expect(told('site')?.rules).toHaveLength(1)
  await edit('boss', null)
  // Nobody is in the group: the rule is about nobody, not about everybody.
  expect(told('site')?.rules[0]?.peers).toEqual([])
  expect(r.vms.firewall(caller, 'site').rules[0]?.addresses).toEqual([])
})

test('what can not be is refused by field', async () => {
  await r.done(r.vms.create(caller, { name: 'web' }))
  const rule = (over: object) => edit('web', { rules: [{ ...ssh, ...over }] })
  await refused(rule({ ports: '0' }), { code: 'invalid', field: '/firewall/rules/0/ports' })
  await refused(rule({ ports: '90-80' }), { field: '/firewall/rules/0/ports' })
  await refused(rule({ protocol: 'icmp' }), { field: '/firewall/rules/0/ports' })
  await refused(rule({ to: ['10.0.0.1'] }), { field: '/firewall/rules/0/to' })
  await refused(rule({ from: ['10.0.0.999'] }), { code: 'invalid', field: '/firewall/rules/0/from/0' })
  await refused(rule({ from: ['10.0.0.1/33'] }), { field: '/firewall/rules/0/from/0' })
  await refused(rule({ from: ['nowhere'] }), { code: 'not_found', field: '/firewall/rules/0/from/0' })
  await refused(edit('web', { rules: [ssh, ssh] }), { field: '/firewall/rules/1/name' })
  await refused(edit('web', { groups: ['nowhere'] }), {
    field: '/firewall/groups/0',
    remedy: 'wadah firewall group list',
  })
  await group('g')
  await refused(edit('web', { groups: ['g', 'g'] }), { field: '/firewall/groups/1' })
})

test('on a network of kind user there is none, whichever comes first', async () => {
  const user = [{ network: 'user' }]
  await refused(r.vms.create(caller, { name: 'web', nics: user, firewall: {} }), {
    code: 'invalid',
    field: '/firewall',
  })
  await r.done(r.vms.create(caller, { name: 'web', firewall: {} }))
  await refused(r.vms.edit(caller, 'web', { add_nics: user }, undefined), { field: '/firewall' })
  await r.vms.edit(caller, 'web', { add_nics: user, firewall: null }, undefined)
  await refused(edit('web', {}), { field: '/firewall' })
})

describe('a group', () => {
  test('in use, as rules or as a side of one, is not deleted; renamed it stays the same', async () => {
    await group('a')
    await group('b', [{ name: 'x', direction: 'out', action: 'drop', to: ['a'] }])
    await refused(r.firewallGroups.delete(caller, 'a', undefined), { code: 'in_use' })
    await r.done(r.vms.create(caller, { name: 'web', firewall: { groups: ['b'] } }))
    await refused(r.firewallGroups.delete(caller, 'b', undefined), { code: 'in_use' })
    const own = await group('own', [{ name: 'x', direction: 'in', action: 'accept', from: ['own'] }])
    expect(own.rules[0]?.from).toEqual(['own'])
    await r.firewallGroups.delete(caller, 'own', undefined)
    const renamed = await r.firewallGroups.edit(caller, 'a', { name: 'c' }, undefined)
    expect(r.firewallGroups.get(caller, 'b').rules[0]?.to).toEqual(['c'])
    await refused(r.firewallGroups.create(caller, { name: 'c' }), { code: 'name_taken' })
    await refused(r.firewallGroups.edit(caller, 'c', { name: 'd' }, renamed.generation + 1), {
      code: 'precondition_failed',
    })
    expect(r.firewallGroups.get(caller, 'b').vms).toMatchObject([{ name: 'web' }])
    await edit('web', { groups: [] })
    await r.firewallGroups.delete(caller, 'b', undefined)
    await r.firewallGroups.delete(caller, 'c', undefined)
    expect(r.firewallGroups.list(caller, {}).items).toEqual([])
  })

  test('given to a VM at the moment it is deleted is either there or not taken', async () => {
    await r.done(r.vms.create(caller, { name: 'web' }))
    for (let i = 0; i < 10; i++) {
      await group('g')
      const [taken, gone] = await Promise.allSettled([
        edit('web', { groups: ['g'] }),
        r.firewallGroups.delete(caller, 'g', undefined),
      ])
      expect([taken.status, gone.status].filter((s) => s === 'fulfilled').length).toBeLessThanOrEqual(1)
      await edit('web', { groups: [] })
      await r.firewallGroups.delete(caller, 'g', undefined).catch(() => {})
    }
  })

  test('a clone has the firewall of its source', async () => {
    await group('g', [ssh])
    await r.done(r.vms.create(caller, { name: 'web', firewall: { groups: ['g'] } }))
    await r.done(r.vms.clone(caller, 'web', { name: 'twin' }))
    expect(told('twin')?.rules).toHaveLength(1)
  })
})
