/** Networks of kind `bridge`: real packets between a LAN, a host and guests, each a network namespace. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { tapName } from '@wadah/host/network/naming'
import type { LanNetwork } from '@wadah/host/network/lan'
import { createNetworks, type HostNetworks } from '@wadah/host/network/networks'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { HOST, LAN, Lab } from './lab.ts'

let lab: Lab
let networks: HostNetworks
const signal = AbortSignal.timeout(600_000)

const onBridge: LanNetwork = { id: 'net-aaaaaaaaaa', name: 'office', kind: 'bridge', bridge: 'br0' }
const onNic: LanNetwork = { id: 'net-bbbbbbbbbb', name: 'lab', kind: 'bridge', bridge: 'wbr-bbbbbbbbbb', nic: 'eth1' }

function vm(name: string, n: number, extra: Partial<NetworkAttachment> = {}): NetworkAttachment {
  return {
    vm: `vm-${name.padEnd(10, 'a').slice(0, 10)}`,
    vm_name: name,
    nic: 'net1',
    network: onBridge.id,
    uid: 70_000 + n,
    mac: `02:00:00:00:00:0${n}`,
    publish: [],
    limits: {},
    ...extra,
  }
}
/** A guest on a network, with an address of its own choice. */
async function plug(network: LanNetwork, a: NetworkAttachment, address: string): Promise<string> {
  const ns = await lab.guest(network.bridge, a.mac, tapName(a.vm, a.nic))
  await lab.in(ns, 'ip', 'addr', 'add', `${address}/24`, 'dev', 'eth0')
  return ns
}
/** A second cable to the LAN, without an address on the host's side. */
async function secondNic(): Promise<void> {
  await lab.in(lab.host, 'ip', 'link', 'add', 'eth1', 'type', 'veth', 'peer', 'name', 'eth1', 'netns', lab.lan)
  await lab.in(lab.lan, 'ip', 'addr', 'add', '203.0.113.2/24', 'dev', 'eth1')
  await lab.in(lab.lan, 'ip', 'link', 'set', 'eth1', 'up')
}
/** The host's own address moves to a bridge, as an administrator would do it. */
async function officeBridge(): Promise<void> {
  await lab.in(lab.host, 'ip', 'link', 'add', 'br0', 'type', 'bridge', 'forward_delay', '0')
  await lab.in(lab.host, 'ip', 'addr', 'flush', 'dev', 'eth0')
  await lab.in(lab.host, 'ip', 'link', 'set', 'eth0', 'master', 'br0')
  await lab.in(lab.host, 'ip', 'addr', 'add', `${HOST}/24`, 'dev', 'br0')
  await lab.in(lab.host, 'ip', 'link', 'set', 'br0', 'up')
}
const masterOf = async (nic: string): Promise<string | undefined> =>
  (JSON.parse(await lab.in(lab.host, 'ip', '-json', 'link', 'show', nic)) as { master?: string }[])[0]?.master

beforeEach(async () => {
  lab = new Lab()
  await lab.open()
  networks = createNetworks({ instance: 'default', dataDir: lab.dir, netns: lab.host, watch_ms: 0 })
})
afterEach(async () => {
  try {
    await networks.removeAll()
  } finally {
    await lab.close()
  }
})

test('on a bridge of the host guests are on its LAN, and reach nothing of the host but DHCP and DNS', async () => {
  await officeBridge()
  const [web, eve] = [vm('web', 1), vm('eve', 2, { address: '198.51.100.12' })]
  expect(await networks.apply([onBridge], [web, eve], signal)).toEqual([{ id: onBridge.id, state: 'up' }])
  const g1 = await plug(onBridge, web, '198.51.100.11')
  const g2 = await plug(onBridge, eve, '198.51.100.12')
  await lab.serve(lab.lan, 9000)
  await lab.serve(lab.host, 7443)
  await lab.serve(lab.host, 53)
  await lab.serve(g1, 80)

  // The LAN, both ways, with the guest's own address; and each other.
  expect(await lab.tcp(g1, LAN, 9000)).toBe('from 198.51.100.11')
  expect(await lab.tcp(lab.lan, '198.51.100.11', 80)).toBe(`from ${LAN}`)
  expect(await lab.tcp(g2, '198.51.100.11', 80)).toBe('from 198.51.100.12')
  // The host: it asks guests, and the LAN asks it; guests get DNS and nothing else.
  expect(await lab.tcp(lab.host, '198.51.100.11', 80)).toBe(`from ${HOST}`)
  expect(await lab.tcp(lab.lan, HOST, 7443)).toBe(`from ${LAN}`)
  expect(await lab.tcp(g1, HOST, 7443)).toMatch(/^error/)
  expect(await lab.udp(g1, HOST, 7443)).toMatch(/^error/)
  expect(await lab.tcp(g1, HOST, 53)).toBe('from 198.51.100.11')
  // By IPv6 as well.
  const [link] = JSON.parse(await lab.in(lab.host, 'ip', '-json', '-6', 'addr', 'show', 'dev', 'br0')) as [
    { addr_info: { local: string }[] },
  ]
  const host6 = `${link.addr_info[0]?.local ?? ''}%eth0`
  await lab.start(
    lab.host,
    `require('net').createServer((c) => c.end('six')).listen(7444, '::', () => console.log('ready'))`,
  )
  expect(await lab.tcp(lab.lan, host6, 7444)).toBe('six')
  expect(await lab.tcp(g1, host6, 7444)).toMatch(/^error/)
  await networks.apply([{ ...onBridge, host_access: true }], [web, eve], signal)
  expect(await lab.tcp(g1, HOST, 7443)).toBe('from 198.51.100.11')
  expect(await lab.tcp(g1, host6, 7444)).toBe('six')

  // Without an address any is right; with one, only that. The MAC is never free.
  const readdress = async (ns: string, address: string) => {
    await lab.in(ns, 'ip', '-4', 'addr', 'flush', 'dev', 'eth0')
    await lab.in(ns, 'ip', 'addr', 'add', `${address}/24`, 'dev', 'eth0')
  }
  await readdress(g1, '198.51.100.77')
  expect(await lab.tcp(g1, LAN, 9000)).toBe('from 198.51.100.77')
  await readdress(g2, '198.51.100.78')
  expect(await lab.tcp(g2, LAN, 9000)).toMatch(/^error/)
  await lab.in(g1, 'ip', 'link', 'set', 'eth0', 'address', '02:00:00:00:00:66')
  expect(await lab.tcp(g1, LAN, 9000)).toMatch(/^error/)

  // Taken away: the bridge, its NIC and the host's address are as they were.
  await networks.apply([], [], signal)
  expect(await masterOf('eth0')).toBe('br0')
  expect(await lab.in(lab.host, 'ip', 'addr', 'show', 'br0')).toContain(HOST)
  expect(await lab.nft()).not.toContain('wadah')
})

test('a guest answers no DHCP on the LAN, sends no router advertisement and no VLAN tag', async () => {
  await officeBridge()
  const web = vm('web', 1)
  await networks.apply([onBridge], [web], signal)
  const g1 = await plug(onBridge, web, '198.51.100.11')
  // A sniffer on the LAN counts what it sees of a kind.
  const sniff = (filter: string) =>
    `import socket,sys,time
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3));s.bind(('eth0',0));s.settimeout(2.5);n=0;print('ready',flush=True)
t=time.time()
while time.time()-t<2.5:
  try: p=s.recv(2000)
  except Exception: break
  if ${filter}: n+=1
print(n,flush=True)`
  const send = (frames: string) =>
    lab.in(
      g1,
      'python3',
      '-c',
      `import socket
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind(('eth0',0))
B=b'\\xff'*6;M=bytes.fromhex('020000000001')
def ip(p,pay,src='198.51.100.11',dst='255.255.255.255'):
  h=bytes.fromhex('4500')+(20+len(pay)).to_bytes(2,'big')+bytes.fromhex('0001000040')+bytes([p])+b'\\0\\0'+socket.inet_aton(src)+socket.inet_aton(dst)
  c=sum(int.from_bytes(h[i:i+2],'big') for i in range(0,20,2));c=(c>>16)+(c&0xffff);c=(~(c+(c>>16)))&0xffff
  return h[:10]+c.to_bytes(2,'big')+h[12:]+pay
def udp(s,d,pay=b'x'*20): return s.to_bytes(2,'big')+d.to_bytes(2,'big')+(8+len(pay)).to_bytes(2,'big')+b'\\0\\0'+pay
def ra(): return bytes.fromhex('6000000000103aff')+socket.inet_pton(10,'fe80::1')+socket.inet_pton(10,'ff02::1')+bytes.fromhex('8600000040000708')+b'\\0'*8
for f in [${frames}]:
  s.send(f)`,
    )
  const { promise, resolve } = Promise.withResolvers<string>()
  const { spawn } = await import('node:child_process')
  const watch = spawn('ip', [
    'netns',
    'exec',
    lab.lan,
    'python3',
    '-c',
    sniff(
      "p[6:12] in (bytes.fromhex('020000000001'),bytes.fromhex('020000000009')) and (p[12:14]!=b'\\x86\\xdd' or p[54]==134)",
    ),
  ])
  let out = ''
  const ready = new Promise<void>((go) => watch.stdout.on('data', (d) => ((out += String(d)), go())))
  watch.on('close', () => resolve(out.split('\n')[1] ?? ''))
  await ready
  await send(
    [
      "B+M+b'\\x08\\x00'+ip(17,udp(67,68))", // a DHCP answer
      "B+M+b'\\x86\\xdd'+ra()", // a router advertisement
      "B+M+bytes.fromhex('8100001408')+b'\\0'+ip(17,udp(68,67),'0.0.0.0')", // a DHCP question into VLAN 20
      "B+M+bytes.fromhex('88cc')+b'x'*60", // LLDP
      "B+bytes.fromhex('020000000009')+b'\\x08\\x00'+ip(17,udp(68,67))", // another's MAC
      "B+M+b'\\x08\\x00'+ip(17,udp(68,67),'0.0.0.0')", // a DHCP question: this one passes
      "B+M+b'\\x08\\x00'+ip(17,udp(9,9))", // and this
    ].join(','),
  )
  expect(await promise).toBe('2')
})

test('a NIC of the host goes into a bridge of ours, back at deletion, and in again after a reboot', async () => {
  await secondNic()
  const web = vm('web', 1, { network: onNic.id })
  expect(await networks.judge(onNic)).toBeUndefined()
  expect(await networks.apply([onNic], [web], signal)).toEqual([{ id: onNic.id, state: 'up' }])
  expect(await masterOf('eth1')).toBe(onNic.bridge)
  const g1 = await plug(onNic, web, '203.0.113.11')
  await lab.serve(lab.lan, 9000)
  await lab.serve(lab.host, 7443)
  expect(await lab.tcp(g1, '203.0.113.2', 9000)).toBe('from 203.0.113.11')
  // The host has no address there, and answers for none of its others.
  await lab.in(g1, 'ip', 'route', 'add', `${HOST}/32`, 'dev', 'eth0')
  await lab.in(lab.host, 'sh', '-c', 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done')
  await lab.in(lab.host, 'ip', 'route', 'add', '203.0.113.0/24', 'dev', onNic.bridge)
  expect(await lab.tcp(g1, HOST, 7443)).toMatch(/^error/)
  await lab.in(lab.host, 'nft', 'flush', 'chain', 'bridge', 'wadah', 'input')
  expect(await lab.tcp(g1, HOST, 7443)).toBe('from 203.0.113.11')

  // As after a reboot: nothing of ours is there, and the NIC is free.
  await lab.in(lab.host, 'ip', 'link', 'del', onNic.bridge)
  await lab.in(lab.host, 'nft', 'flush', 'ruleset')
  expect(await masterOf('eth1')).toBeUndefined()
  expect(await networks.apply([onNic], [web], signal)).toEqual([{ id: onNic.id, state: 'up' }])
  expect(await masterOf('eth1')).toBe(onNic.bridge)
  await networks.apply([], [], signal)
  expect(await masterOf('eth1')).toBeUndefined()
  expect(await lab.in(lab.host, 'ip', '-br', 'link')).not.toContain('wbr-')
})

test('what can not be bridged is refused, with the reason and the way out', async () => {
  await secondNic()
  await lab.in(lab.host, 'ip', 'link', 'add', 'br1', 'type', 'bridge')
  const judge = (over: Partial<LanNetwork>) => networks.judge({ ...onNic, ...over })
  expect((await judge({ nic: 'eth9' }))?.reason).toContain('no interface eth9')
  expect((await judge({ nic: 'lo' }))?.reason).toContain('loopback')
  expect(await judge({ nic: 'eth0' })).toMatchObject({
    reason: expect.stringContaining(`own address ${HOST}/24`),
    remedy: expect.stringContaining('--vlan'),
  })
  expect(await judge({ nic: 'br1' })).toMatchObject({ remedy: '--bridge br1' })
  const foreign = { id: onBridge.id, name: 'x', kind: 'bridge' } as const
  expect((await networks.judge({ ...foreign, bridge: 'br9' }))?.reason).toContain('no interface br9')
  expect((await networks.judge({ ...foreign, bridge: 'br1' }))?.reason).toContain('is down')
  await lab.in(lab.host, 'ip', 'link', 'set', 'br1', 'up')
  expect(await networks.judge({ ...foreign, bridge: 'br1' })).toBeUndefined()
  expect(await networks.judge({ ...foreign, bridge: 'br1', vlan: 20 })).toMatchObject({
    remedy: expect.stringContaining('vlan_filtering 1'),
  })
  expect((await networks.judge({ ...foreign, bridge: 'eth1' }))?.remedy).toContain('--nic eth1')
  // An address that came later takes the network down, not the host.
  await lab.in(lab.host, 'ip', 'addr', 'add', '203.0.113.1/24', 'dev', 'eth1')
  const [state] = await networks.apply([onNic], [], signal)
  expect(state).toMatchObject({ state: 'down', reason: expect.stringContaining('203.0.113.1/24') })
  expect(await masterOf('eth1')).toBeUndefined()
  await lab.in(lab.host, 'ip', 'addr', 'del', '203.0.113.1/24', 'dev', 'eth1')
  await lab.in(lab.host, 'ip', 'link', 'set', 'eth1', 'master', 'br1')
  expect((await judge({}))?.remedy).toContain('--bridge br1')
  await lab.in(lab.host, 'ip', 'link', 'set', 'eth1', 'nomaster')
  await networks.apply([onNic], [], signal)
  expect((await judge({ id: 'net-cccccccccc', bridge: 'wbr-cccccccccc' }))?.reason).toContain('already')
})
