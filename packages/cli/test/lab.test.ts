import { spawnSync } from 'node:child_process'
import { expect, test } from 'vitest'
import { labNameOf } from '../src/demo/ground.ts'
import { forwardRules } from '../src/lab/forward.ts'
import { linkTools } from '../src/lab/net.ts'
import { bridgeOf, dhcpRange, gatewayOf, isGuestOf, linkOf, planLab } from '../src/lab/plan.ts'

const machine = { cpus: 2, memory_mib: 24_000 }
const plan = (name: string, hosts = 3) => planLab({ name, hosts, cache: '/c', machine })

test('hosts of a lab have names, networks and addresses of their own', () => {
  const lab = plan('demo')
  expect(lab.hosts.map((h) => h.name)).toEqual(['demo1', 'demo2', 'demo3'])
  expect(new Set(lab.hosts.flatMap((h) => [h.address, h.namespace, h.port, gatewayOf('demo')])).size).toBe(10)
  // Linux takes fifteen bytes.
  const long = plan('abcdefghij', 9)
  for (const name of [bridgeOf('abcdefghij'), ...long.hosts.map((h) => h.port)]) expect(name.length).toBeLessThan(16)
  const named = planLab({ name: 'demo', hosts: 2, cache: '/c', machine, instanceOf: (i) => (i === 1 ? 'x' : `x-${i}`) })
  expect(named.hosts.map((h) => h.instance)).toEqual(['x', 'x-2'])
})

test('a link that is asked for of a lab that is there takes the place of the one it has; what is not said stays', () => {
  const lab = planLab({ name: 'demo', hosts: 2, rate: '1gbit', delay: '1ms', cache: '/c', machine })
  expect(linkOf({ rate: '100mbit' }, lab.link)).toEqual({ rate: '100mbit', delay: '1ms' })
  expect(linkOf({ delay: '5ms' }, lab.link)).toEqual({ rate: '1gbit', delay: '5ms' })
  expect(linkOf({}, lab.link)).toEqual(lab.link)
  expect(linkOf({})).toEqual({})
  expect(() => linkOf({ rate: 'fast' }, lab.link)).toThrow(/--link fast: a rate is wanted/)
  expect(() => linkOf({ delay: '5' })).toThrow(/--delay 5: a time is wanted/)
})

test('both ends of every host get the link, in the place of what they have', () => {
  const lab = planLab({ name: 'demo', hosts: 2, rate: '1gbit', delay: '1ms', cache: '/c', machine })
  const tools = linkTools(lab).map((argv) => argv.join(' '))
  expect(tools).toEqual([
    'tc qdisc replace dev wdemop1 root netem delay 1ms rate 1gbit',
    'nsenter --net=/run/netns/wdemo1 -- tc qdisc replace dev eth0 root netem delay 1ms rate 1gbit',
    'tc qdisc replace dev wdemop2 root netem delay 1ms rate 1gbit',
    'nsenter --net=/run/netns/wdemo2 -- tc qdisc replace dev eth0 root netem delay 1ms rate 1gbit',
  ])
  expect(linkTools({ ...lab, link: {} })).toEqual([])
})

test('a guest is known by its address', () => {
  const [first, last] = dhcpRange('demo').split(',') as [string, string]
  expect([first, last].map((a) => isGuestOf('demo', a))).toEqual([true, true])
  const others = [gatewayOf('demo'), plan('demo').hosts[0]?.address ?? '', '127.0.0.1', '10.0.0.150', first + '0']
  expect(others.map((a) => isGuestOf('demo', a))).toEqual([false, false, false, false, false])
})

test('a demo’s lab is called as the demo is, where that can be a name', () => {
  expect(labNameOf({ name: 'demo' })).toBe('demo')
  const odd = ['my-demo', 'My_Demo', 'a-very-long-name-of-a-demo'].map((name) => labNameOf({ name }))
  expect(new Set(odd).size).toBe(3)
  for (const name of odd) expect(() => plan(name)).not.toThrow()
})

test('ports that lead into a lab are rules nftables takes', () => {
  const rules = forwardRules({
    name: 'demo',
    forwards: [
      { address: '127.0.0.1', port: 10_445, to: '10.1.2.101', to_port: 445 },
      { address: '0.0.0.0', port: 18_080, to: '10.1.2.102', to_port: 80 },
    ],
  })
  const [own, incoming] = [/chain own \{[^}]*\}/, /chain in \{[^}]*\}/].map((chain) => chain.exec(rules)?.[0] ?? '')
  expect(own).toContain('ip daddr 127.0.0.1 tcp dport 10445 dnat to 10.1.2.101:445')
  expect(own).toContain('fib daddr type local tcp dport 18080 dnat to 10.1.2.102:80')
  // What is published on 127.0.0.1 is for this machine alone.
  expect(incoming).not.toContain('10445')
  expect(incoming).toContain('18080')
  const checked = spawnSync('nft', ['--check', '-f', '-'], { input: rules, encoding: 'utf8' })
  if (checked.error === undefined && process.getuid?.() === 0) expect(checked.stderr).toBe('')
  expect(forwardRules({ name: 'demo', forwards: [] })).not.toContain('dnat')
})
