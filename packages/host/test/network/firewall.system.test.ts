/** The firewall of VMs with real packets: a LAN, a host and guests, each a network namespace; veth ends stand in for taps. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import type { NatNetwork } from '@wadah/host/network/links'
import { tapName } from '@wadah/host/network/naming'
import { createNetworks, type HostNetworks } from '@wadah/host/network/networks'
import type { NetworkAttachment, NicFirewall, NicRule } from '@wadah/ports/networks'
import { HOST, LAN, Lab } from './lab.ts'

let lab: Lab
let networks: HostNetworks
const signal = AbortSignal.timeout(600_000)
const net: NatNetwork = {
  id: 'net-aaaaaaaaaa',
  name: 'default',
  kind: 'nat',
  subnet: '10.77.1.0/24',
  gateway: '10.77.1.1',
  bridge: 'wbr-aaaaaaaaaa',
  domain: 'wadah.internal',
}
function vm(
  name: string,
  n: number,
  firewall?: NicFirewall,
  extra: Partial<NetworkAttachment> = {},
): NetworkAttachment {
  return {
    vm: `vm-${name.padEnd(10, 'a').slice(0, 10)}`,
    vm_name: name,
    nic: 'net1',
    network: net.id,
    uid: 70_000 + n,
    mac: `02:00:00:00:00:0${n}`,
    address: `10.77.1.${10 + n}`,
    publish: [],
    limits: {},
    ...(firewall ? { firewall } : {}),
    ...extra,
  }
}
const tcpIn = (port: number, more: Partial<NicRule> = {}): NicRule => ({
  direction: 'in',
  action: 'accept',
  protocol: 'tcp',
  ports: [[port, port]],
  ...more,
})
async function plug(a: NetworkAttachment): Promise<string> {
  const ns = await lab.guest(net.bridge, a.mac, tapName(a.vm, a.nic))
  await lab.in(ns, 'ip', 'addr', 'add', `${a.address}/24`, 'dev', 'eth0')
  await lab.in(ns, 'ip', 'route', 'add', 'default', 'via', net.gateway)
  return ns
}
const ping = async (ns: string, to: string, ...more: string[]) =>
  await lab.in(ns, 'busybox', 'ping', '-c', '1', '-W', '1', ...more, to).then(
    () => true,
    () => false,
  )

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

test('in: drop, out: accept — the guest asks and is answered, nobody asks it but who may, published ports included', async () => {
  const publish = [
    { protocol: 'tcp' as const, address: '0.0.0.0', port: 8080, to: 80 },
    { protocol: 'tcp' as const, address: '0.0.0.0', port: 8081, to: 81 },
  ]
  const wall = (...rules: NicRule[]): NicFirewall => ({ in: 'drop', out: 'accept', rules })
  const web = (...rules: NicRule[]) => vm('web', 1, wall(...rules), { publish })
  const db = vm('db', 2)
  const closed = web()
  await networks.apply([net], [closed, db], signal)
  const [g1, g2] = [await plug(closed), await plug(db)]
  for (const port of [80, 81]) await lab.serve(g1, port)
  await lab.serve(g2, 80)
  await lab.serve(lab.lan, 9000)
  const address = closed.address ?? ''

  // Asked by the guest: other guests, the LAN, names, DHCP, ping; TCP and UDP.
  expect(await lab.dhcp(g1)).toContain(`ip=${address}`)
  expect(await lab.resolve(g1, net.gateway, 'db')).toBe(db.address)
  expect(await lab.tcp(g1, LAN, 9000)).toBe(`from ${HOST}`)
  expect(await lab.udp(g1, LAN, 9000)).toBe(`from ${HOST}`)
  expect(await lab.tcp(g1, db.address ?? '', 80)).toBe(`from ${address}`)
  expect(await ping(g1, LAN)).toBe(true)
  // Asked of the guest: by a neighbour, by the host, from the LAN by a published port.
  for (const [ns, to, port] of [
    [g2, address, 80],
    [lab.host, address, 80],
    [lab.lan, HOST, 8080],
  ] as const)
    expect(await lab.tcp(ns, to, port)).toBe('error SILENT')
  expect(await lab.udp(g2, address, 80)).toBe('error SILENT')
  expect(await ping(g2, address)).toBe(false)

  // A rule opens its port, by the guest's own number, and no other; the next call takes it away again.
  await networks.apply([net], [web(tcpIn(80)), db], signal)
  expect(await lab.tcp(lab.lan, HOST, 8080)).toBe(`from ${LAN}`)
  expect(await lab.tcp(g2, address, 80)).toBe(`from ${db.address}`)
  expect(await lab.tcp(lab.lan, HOST, 8081)).toBe('error SILENT')
  expect(await lab.udp(g2, address, 80)).toBe('error SILENT')
  await networks.apply([net], [web(tcpIn(80, { peers: [`${LAN}/32`] })), db], signal)
  expect(await lab.tcp(lab.lan, HOST, 8080)).toBe(`from ${LAN}`)
  expect(await lab.tcp(g2, address, 80)).toBe('error SILENT')
  // The first rule that matches decides.
  await networks.apply([net], [web(tcpIn(80, { action: 'drop', peers: [`${LAN}/32`] }), tcpIn(80)), db], signal)
  expect(await lab.tcp(lab.lan, HOST, 8080)).toBe('error SILENT')
  expect(await lab.tcp(g2, address, 80)).toBe(`from ${db.address}`)
  // Without a firewall all is as before, and nothing is left of it.
  await networks.apply([net], [vm('web', 1, undefined, { publish }), db], signal)
  expect(await lab.tcp(lab.lan, HOST, 8081)).toBe(`from ${LAN}`)
  expect(await lab.nft()).not.toContain('wadah_fw')
})

test('out: drop — the guest reaches what it may, answers who asks it, and gets its address', async () => {
  const out = (more: Partial<NicRule>): NicRule => ({ direction: 'out', action: 'accept', protocol: 'any', ...more })
  const wall = (...rules: NicRule[]): NicFirewall => ({ in: 'accept', out: 'drop', rules })
  const web = vm('web', 1, wall())
  const db = vm('db', 2)
  await networks.apply([net], [web, db], signal)
  const [g1, g2] = [await plug(web), await plug(db)]
  await lab.serve(g1, 80)
  await lab.serve(g2, 80)
  await lab.serve(lab.lan, 9000)
  expect(await lab.dhcp(g1)).toContain(`ip=${web.address}`)
  expect(await lab.tcp(g1, LAN, 9000)).toBe('error SILENT')
  expect(await lab.resolve(g1, net.gateway, 'db')).toMatch(/^error/)
  expect(await ping(g1, LAN)).toBe(false)
  expect(await lab.tcp(g2, web.address ?? '', 80)).toBe(`from ${db.address}`)
  expect(await lab.udp(g2, web.address ?? '', 80)).toBe(`from ${db.address}`)
  expect(await ping(g2, web.address ?? '')).toBe(true)
  const rules = [out({ protocol: 'udp', ports: [[53, 53]] }), out({ protocol: 'tcp', peers: [`${LAN}/24`] })]
  await networks.apply([net], [vm('web', 1, wall(...rules)), db], signal)
  expect(await lab.tcp(g1, LAN, 9000)).toBe(`from ${HOST}`)
  expect(await lab.tcp(g1, db.address ?? '', 80)).toBe('error SILENT')
  expect(await lab.resolve(g1, net.gateway, 'db')).toBe(db.address)
})

test('connections: those that are still allowed stand through every change, those that are not end at once', async () => {
  const wall = (...rules: NicRule[]): NicFirewall => ({ in: 'drop', out: 'accept', rules })
  const [web, db] = [vm('web', 1, wall(tcpIn(7000))), vm('db', 2)]
  await networks.apply([net], [web, db], signal)
  const [g1, g2] = [await plug(web), await plug(db)]
  // Echoes, and counts: the guest is asked by db, and itself asks db.
  const echo = `require('net').createServer((c) => { c.on('error', () => {}); c.pipe(c) }).listen(7000, '0.0.0.0', () => console.log('ready'))`
  await lab.start(g1, echo)
  await lab.start(g2, echo)
  const talker = (to: string) => `
    let n = 0; const c = require('net').connect(7000, '${to}', () => { console.log('ready'); setInterval(() => c.write('x'), 40) })
    c.on('data', (d) => (n += d.length)); c.on('error', () => {})
    require('net').createServer((s) => s.end(String(n))).listen(7001)`
  await lab.start(g2, talker(web.address ?? ''))
  await lab.start(g1, talker(db.address ?? ''))
  const heard = async (ns: string) => Number(await lab.tcp(ns, '127.0.0.1', 7001))
  const goesOn = async (ns: string) => {
    const before = await heard(ns)
    await new Promise((done) => setTimeout(done, 300))
    return (await heard(ns)) > before
  }
  for (let i = 0; i < 5; i++) {
    await networks.apply([net], [vm('web', 1, wall(tcpIn(7000), tcpIn(8000 + i))), db], signal)
    expect([await goesOn(g2), await goesOn(g1)]).toEqual([true, true])
  }
  await networks.apply([net], [vm('web', 1, wall()), db], signal)
  await new Promise((done) => setTimeout(done, 100))
  expect([await goesOn(g2), await goesOn(g1)]).toEqual([false, true])
  // All rules of the host are flushed, as by a restart of nftables: what the guest itself asks goes on once they are back.
  await lab.in(lab.host, 'nft', 'flush', 'ruleset')
  await networks.apply([net], [vm('web', 1, wall()), db], signal)
  await vi.waitFor(async () => expect(await goesOn(g1)).toBe(true), 5000)
  await lab.serve(g1, 80)
  expect(await lab.tcp(g2, web.address ?? '', 80)).toBe('error SILENT')
})

test('IPv6: neighbours are found, the rest goes by the rules; large packets pass in their parts', async () => {
  const wall = (...rules: NicRule[]): NicFirewall => ({ in: 'drop', out: 'drop', rules })
  const icmp: NicRule = { direction: 'in', action: 'accept', protocol: 'icmp', peers: ['fe80::/10', '10.77.1.0/24'] }
  const [web, db] = [vm('web', 1, wall()), vm('db', 2)]
  await networks.apply([net], [web, db], signal)
  const [g1, g2] = [await plug(web), await plug(db)]
  const [shown] = JSON.parse(await lab.in(g1, 'ip', '-json', '-6', 'addr', 'show', 'dev', 'eth0')) as [
    { addr_info: { local: string }[] },
  ]
  const six = `${shown.addr_info[0]?.local ?? ''}%eth0`
  await new Promise((done) => setTimeout(done, 2000)) // Duplicate address detection.
  expect(await ping(g2, six)).toBe(false)
  expect(await lab.in(g2, 'ip', '-6', 'neigh', 'show', 'dev', 'eth0')).toContain(web.mac)
  await networks.apply([net], [vm('web', 1, wall(icmp)), db], signal)
  for (const size of ['56', '4000']) {
    const heard = [
      await ping(g2, six, '-s', size),
      await ping(g2, web.address ?? '', '-s', size),
      await ping(g1, db.address ?? '', '-s', size),
    ]
    expect([size, ...heard]).toEqual([size, true, true, false])
  }
  expect(await lab.tcp(g2, six, 80)).toMatch(/^error/)
})

test('a VM whose firewall is not loaded gets no tap', async () => {
  const web = vm('web', 1, { in: 'drop', out: 'accept', rules: [] })
  await networks.apply([net], [vm('web', 1)], signal)
  await expect(networks.attach(net, web, signal)).rejects.toMatchObject({ fault: { code: 'host_lacks' } })
  await networks.apply([net], [web], signal)
  await networks.attach(net, web, signal)
})
