import { describe, expect, test } from 'vitest'
import { type LanNetwork, defaultRoutes, planLan, strayVlans, uplinkOf, vlanLines } from '@wadah/host/network/lan'
import { type Link, planTap, portVlan } from '@wadah/host/network/links'
import { aliasOf, bridgeMac } from '@wadah/host/network/naming'
import { markedRules, renderBridgeGuard, renderIp6 } from '@wadah/host/network/guard'

const link = (name: string, over: Partial<Link> = {}): Link => ({
  name,
  kind: '',
  up: true,
  mac: '52:54:00:00:00:09',
  addresses: [],
  addresses6: [],
  loopback: false,
  ether: true,
  ...over,
})
const foreign: LanNetwork = { id: 'net-aaaaaaaaaa', name: 'office', kind: 'bridge', bridge: 'br0' }
const own: LanNetwork = { id: 'net-bbbbbbbbbb', name: 'lab', kind: 'bridge', bridge: 'wbr-bbbbbbbbbb', nic: 'eth1' }
const nic = {
  vm: 'vm-aaaaaaaaaa',
  vm_name: 'web',
  nic: 'net1',
  network: own.id,
  uid: 70_000,
  mac: '02:00:00:00:00:01',
  publish: [],
  limits: {},
}

describe('a VLAN', () => {
  const tagged = { ...own, vlan: 20 }
  const mine = aliasOf('default', { kind: 'vlan', network: own.id })
  test('on a NIC is an interface of ours in a bridge of ours, beside the host’s own address', () => {
    const eth1 = link('eth1', { addresses: ['192.0.2.1/24'], up: false })
    expect(planLan('default', [eth1], ['eth1'], tagged)).toEqual({
      ok: true,
      fresh: true,
      create: [
        `link add name ${own.bridge} address ${bridgeMac(own.id)} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
        `link set dev ${own.bridge} alias wadah:default:bridge:${own.id}`,
        'link add link eth1 name wvl-bbbbbbbbbb type vlan id 20',
        `link set dev wvl-bbbbbbbbbb alias wadah:default:vlan:${own.id}`,
      ],
      configure: [
        'link set dev wvl-bbbbbbbbbb addrgenmode none',
        'link set dev eth1 up',
        `link set dev wvl-bbbbbbbbbb master ${own.bridge} up`,
        `link set dev ${own.bridge} up`,
      ],
    })
    expect(planLan('default', [eth1], ['eth1'], own)).toMatchObject({ ok: false })
    expect(uplinkOf(tagged)).toBe('wvl-bbbbbbbbbb')
  })
  test('that is there needs nothing, one of a network that is no more goes, one of somebody else is refused', () => {
    const there = [
      link('eth1'),
      link('wvl-bbbbbbbbbb', { kind: 'vlan', alias: mine, master: own.bridge }),
      link(own.bridge, { kind: 'bridge', alias: aliasOf('default', { kind: 'bridge', network: own.id }) }),
    ]
    expect(planLan('default', there, [], tagged)).toMatchObject({ create: [], configure: [] })
    expect(strayVlans('default', there, [tagged])).toEqual([])
    expect(strayVlans('default', there, []).map((l) => l.name)).toEqual(['wvl-bbbbbbbbbb'])
    expect(planLan('default', [link('eth1'), link('wvl-bbbbbbbbbb')], [], tagged)).toMatchObject({ ok: false })
  })
  test('on a bridge that filters keeps the tap in it and in no other, before the tap is up', () => {
    const bridge = link('br0', { kind: 'bridge', vlan_filtering: true })
    const network = { ...foreign, vlan: 20 }
    expect(planLan('default', [bridge], [], network)).toMatchObject({ ok: true, create: [], configure: [] })
    expect(planLan('default', [{ ...bridge, vlan_filtering: false }], [], network)).toMatchObject({ ok: false })
    expect(portVlan(network)).toBe(20)
    expect(portVlan({ ...own, vlan: 20 })).toBeUndefined()
    const plan = planTap('default', [], network, { ...nic, network: network.id })
    expect(plan.ok && plan.lines.at(-1)).toMatch(/addrgenmode none master br0$/)
    expect(vlanLines('w1', 20)).toEqual([
      'vlan add dev w1 vid 20 pvid untagged',
      'vlan del dev w1 vid 1-19',
      'vlan del dev w1 vid 21-4094',
    ])
    expect(vlanLines('w1', 1)).toEqual(['vlan add dev w1 vid 1 pvid untagged', 'vlan del dev w1 vid 2-4094'])
    expect(vlanLines('w1', 4094)[1]).toBe('vlan del dev w1 vid 1-4093')
    expect(vlanLines('w1', 4094)).toHaveLength(2)
  })
})

test('what carries the host, an address of either family or its default route, is not taken', () => {
  const refused = (over: Partial<Link>, defaults: string[] = []) =>
    planLan('default', [link('eth1', over)], defaults, own).ok === false
  expect(refused({})).toBe(false)
  expect(refused({ addresses: ['192.0.2.1/24'] })).toBe(true)
  expect(refused({ addresses6: ['2001:db8::1/64'] })).toBe(true)
  expect(refused({}, ['eth1'])).toBe(true)
  expect(refused({ master: 'bond0' })).toBe(true)
  expect(refused({ kind: 'tun' })).toBe(true)
  expect(refused({ ether: false })).toBe(true)
  expect(refused({ alias: 'wadah:other:tap:a:b:c' })).toBe(true)
  expect(defaultRoutes('[{"dst":"default","dev":"eth0"}]', '[{"dev":"eth1"},{},null]', '')).toEqual(['eth0', 'eth1'])
})

test('guests on a bridge of the host are marked, those on a bridge of ours reach nothing of it', () => {
  const a = { ...nic, network: foreign.id }
  const marked = renderBridgeGuard('wadah', [foreign], [a])
  expect(marked).toContain('meta mark set meta mark | 0x08000000')
  expect(renderBridgeGuard('wadah', [{ ...foreign, host_access: true }], [a])).not.toContain('meta mark')
  expect(renderBridgeGuard('wadah', [own], [nic])).toMatch(/iifname \{ "eth1", "w\w+" \} drop/)
  expect(markedRules([foreign], 'ip').every((rule) => rule.startsWith('meta mark & 0x08000000 != 0 '))).toBe(true)
  expect(markedRules([own, { ...foreign, host_access: true }], 'ip')).toEqual([])
  expect(renderIp6('wadah', undefined, [own])).not.toContain('chain')
})
