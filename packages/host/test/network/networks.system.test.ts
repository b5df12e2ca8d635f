import { createHash } from 'node:crypto'
import { chmod, readdir } from 'node:fs/promises'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { aliasOf, tapName } from '@wadah/host/network/naming'
import { createNetworks, type HostNetworks } from '@wadah/host/network/networks'
import type { NatNetwork } from '@wadah/host/network/links'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { HOST, LAN, Lab } from './lab.ts'

let lab: Lab
let networks: HostNetworks
const logged: string[] = []
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
const other: NatNetwork = {
  ...net,
  id: 'net-bbbbbbbbbb',
  name: 'other',
  subnet: '10.77.2.0/24',
  gateway: '10.77.2.1',
  bridge: 'wbr-bbbbbbbbbb',
  domain: 'other.internal',
}
function vm(name: string, n: number, extra: Partial<NetworkAttachment> = {}): NetworkAttachment {
  return {
    vm: `vm-${name.padEnd(10, 'a').slice(0, 10)}`,
    vm_name: name,
    nic: 'net0',
    network: net.id,
    uid: 70_000 + n,
    mac: `02:00:00:00:00:0${n}`,
    address: `10.77.1.${10 + n}`,
    publish: [],
    limits: {},
    ...extra,
  }
}
const open = (uids?: readonly [number, number]): HostNetworks =>
  createNetworks({
    ...(uids ? { uids } : {}),
    instance: 'default',
    dataDir: lab.dir,
    netns: lab.host,
    watch_ms: 0,
    log: (line) => logged.push(line),
  })

beforeEach(async () => {
  logged.length = 0
  lab = new Lab()
  await lab.open()
  networks = open()
})
afterEach(async () => {
  try {
    await networks.removeAll()
  } finally {
    await lab.close()
  }
})

test('a guest reaches DHCP and DNS of the host and nothing else of it, and can be nobody but itself', async () => {
  const [web, db, eve] = [vm('web', 1), vm('db', 2), vm('eve', 3)] as const
  await networks.apply([net], [web, db, eve], signal)
  const plug = (a: NetworkAttachment) => lab.guest(net.bridge, a.mac, tapName(a.vm, a.nic))
  const [g1, g2, ge] = [await plug(web), await plug(db), await plug(eve)]
  for (const [ns, a] of [
    [g1, web],
    [g2, db],
    [ge, eve],
  ] as const)
    expect(await lab.dhcp(ns)).toContain(`ip=${a.address}`)
  await lab.serve(g1, 80)
  await lab.serve(g2, 80)
  expect(await lab.tcp(ge, web.address ?? '', 80)).toBe(`from ${eve.address}`)

  // The host: names yes, its programs no, by none of its addresses; others and the host itself are not concerned.
  await lab.serve(lab.host, 7443)
  expect(await lab.resolve(ge, net.gateway, 'web')).toBe(web.address)
  for (const address of [net.gateway, HOST]) {
    expect(await lab.tcp(ge, address, 7443)).toMatch(/^error/)
    expect(await lab.udp(ge, address, 7443)).toMatch(/^error/)
  }
  expect(await lab.tcp(lab.lan, HOST, 7443)).toBe(`from ${LAN}`)
  expect(await lab.tcp(lab.host, web.address ?? '', 80)).toBe(`from ${net.gateway}`)
  await networks.apply([{ ...net, host_access: true }], [web, db, eve], signal)
  expect(await lab.tcp(ge, net.gateway, 7443)).toBe(`from ${eve.address}`)

  // Another's address in ARP: who knows better keeps what it knows.
  const known = async () =>
    (JSON.parse(await lab.in(g1, 'ip', '-json', 'neigh', 'show', db.address ?? '')) as { lladdr?: string }[])[0]?.lladdr
  expect(await lab.tcp(g1, db.address ?? '', 80)).toBe(`from ${web.address}`)
  expect(await known()).toBe(db.mac)
  const shout = ['arping', '-U', '-c', '2', '-w', '2', '-I', 'eth0', '-s', db.address ?? '', db.address ?? '']
  await lab.in(ge, 'busybox', ...shout).catch(() => '')
  expect(await known()).toBe(db.mac)

  // A DHCP answer: from the port of servers nothing leaves a guest; from another port it does.
  await lab.serve(g1, 68)
  const from = (port: number) =>
    lab.node(
      ge,
      `new Promise((ok, no) => { const u = require('dgram').createSocket('udp4'); u.on('message', (m) => ok(String(m)))
        u.bind(${port}, () => u.send('offer', 68, '${web.address}')); setTimeout(() => no({ code: 'SILENT' }), 1500) })`,
    )
  expect(await from(6767)).toBe(`from ${eve.address}`)
  expect(await from(67)).toBe('error SILENT')

  // Another's address in packets, another's MAC.
  await lab.in(ge, 'ip', 'addr', 'flush', 'dev', 'eth0')
  await lab.in(ge, 'ip', 'addr', 'add', `10.77.1.77/24`, 'dev', 'eth0')
  expect(await lab.tcp(ge, web.address ?? '', 80)).toMatch(/^error/)
  await lab.in(ge, 'ip', 'addr', 'flush', 'dev', 'eth0')
  await lab.in(ge, 'ip', 'addr', 'add', `${eve.address}/24`, 'dev', 'eth0')
  expect(await lab.tcp(ge, web.address ?? '', 80)).toBe(`from ${eve.address}`)
  await lab.in(ge, 'ip', 'link', 'set', 'eth0', 'address', '02:00:00:00:00:77')
  expect(await lab.tcp(ge, web.address ?? '', 80)).toMatch(/^error/)
})

test('what a VM on a network of kind user sends comes to no program of the host', async () => {
  networks = open([70_000, 79_999])
  const web = vm('web', 1, { publish: [{ protocol: 'tcp', address: '127.0.0.1', port: 8081, to: 80 }] })
  await networks.apply([net, { id: 'net-cccccccccc', name: 'user', kind: 'user' }], [web], signal)
  await lab.serve(lab.host, 7443)
  await lab.serve(lab.lan, 7443)
  const g1 = await lab.guest(net.bridge, web.mac)
  await lab.dhcp(g1)
  await lab.serve(g1, 80)
  const ask = async (uid: number, address: string, port: number) =>
    (
      await lab
        .in(
          lab.host,
          ...['setpriv', `--reuid=${uid}`, '--clear-groups', 'busybox', 'nc', '-w', '2', address, String(port)],
        )
        .catch(() => 'error')
    ).trim()
  for (const address of ['127.0.0.1', HOST, net.gateway]) {
    expect(await ask(70_001, address, 7443)).toBe('error')
    expect(await ask(80_000, address, 7443)).toContain('from')
  }
  // Nor to what guests of other networks have not published; the host itself may.
  expect(await ask(70_001, web.address ?? '', 80)).toBe('error')
  expect(await ask(80_000, web.address ?? '', 80)).toContain('from')
  // The world, and what is published.
  expect(await ask(70_001, LAN, 7443)).toBe(`from ${HOST}`)
  expect(await ask(70_001, '127.0.0.1', 8081)).toContain('from')
})

test('a guest gets its promised address, names, a way out, and is reached by published ports', async () => {
  const web = vm('web', 1, {
    publish: [
      { protocol: 'tcp', address: '0.0.0.0', port: 8080, to: 80 },
      { protocol: 'udp', address: '0.0.0.0', port: 8080, to: 80 },
      { protocol: 'tcp', address: '127.0.0.1', port: 8081, to: 80 },
    ],
  })
  const db = vm('db', 2)
  expect(await networks.apply([net], [web, db], signal)).toEqual([{ id: net.id, state: 'up' }])
  expect(logged.join()).toContain('ip_forward')
  const g1 = await lab.guest(net.bridge, web.mac)
  const g2 = await lab.guest(net.bridge, db.mac)
  const stranger = await lab.guest(net.bridge, '02:00:00:00:00:99')

  // Addresses: promised ones only.
  const got = await lab.dhcp(g1)
  expect(got).toContain(`ip=${web.address} mask=24 router=${net.gateway} dns=${net.gateway}`)
  expect(got).toContain('search=wadah.internal')
  expect(got).toContain('hostname=web')
  expect(await lab.dhcp(g2)).toContain(`ip=${db.address}`)
  expect(await lab.dhcp(stranger)).toBeUndefined()

  // Names: from another guest, and from the host by asking the gateway. Nothing of the local domain goes upstream.
  expect(await lab.resolve(g2, net.gateway, 'web')).toBe(web.address)
  expect(await lab.resolve(g2, net.gateway, 'web.wadah.internal')).toBe(web.address)
  expect(await lab.resolve(lab.host, net.gateway, 'db.wadah.internal')).toBe(db.address)
  expect(await lab.resolve(g2, net.gateway, '11.1.77.10.in-addr.arpa', 'PTR')).toContain('web')
  expect(await lab.resolve(g2, net.gateway, 'nobody.wadah.internal')).toBe('error ENOTFOUND')

  // Out: the LAN sees the host's address. In: not by the guest's own address.
  await lab.serve(lab.lan, 9000)
  await lab.serve(g1, 80)
  expect(await lab.tcp(g1, LAN, 9000)).toBe(`from ${HOST}`)
  await lab.in(lab.lan, 'ip', 'route', 'add', net.subnet, 'via', HOST)
  expect(await lab.tcp(lab.lan, web.address ?? '', 80)).toBe('error SILENT')
  expect(await lab.tcp(g2, web.address ?? '', 80)).toBe(`from ${db.address}`)

  // Published: from another machine (its address is kept), from the host by LAN address and by loopback, from a guest (hairpin).
  expect(await lab.tcp(lab.lan, HOST, 8080)).toBe(`from ${LAN}`)
  expect(await lab.udp(lab.lan, HOST, 8080)).toBe(`from ${LAN}`)
  expect(await lab.tcp(lab.host, HOST, 8080)).toContain('from ')
  expect(await lab.udp(lab.host, HOST, 8080)).toContain('from ')
  expect(await lab.tcp(lab.host, '127.0.0.1', 8080)).toBe(`from ${net.gateway}`)
  expect(await lab.udp(lab.host, '127.0.0.1', 8080)).toBe(`from ${net.gateway}`)
  expect(await lab.tcp(lab.host, '127.0.0.1', 8081)).toBe(`from ${net.gateway}`)
  expect(await lab.tcp(lab.lan, HOST, 8081)).toBe('error ECONNREFUSED')
  expect(await lab.tcp(g2, HOST, 8080)).toBe(`from ${net.gateway}`)

  // What listens on the host's loopback is out of a guest's reach, although route_localnet is on.
  await lab.start(
    lab.host,
    `const u = require('dgram').createSocket('udp4'); let n = 0; u.on('message', () => (n += 1)); u.bind(7000, '127.0.0.1')
     require('net').createServer((c) => c.end(String(n))).listen(7001, '127.0.0.1', () => console.log('ready'))`,
  )
  for (const local of ['127.0.0.0/8', '127.0.0.1'])
    await lab.in(g1, 'ip', 'route', 'del', 'local', local, 'table', 'local')
  await lab.in(g1, 'ip', 'route', 'add', '127.0.0.1/32', 'via', net.gateway, 'src', web.address ?? '')
  await lab.udp(g1, '127.0.0.1', 7000)
  expect(await lab.tcp(lab.host, '127.0.0.1', 7001)).toBe('0')
  // The same without the guard arrives: it is the guard that holds.
  await lab.in(lab.host, 'nft', 'flush', 'chain', 'ip', 'wadah', 'guard')
  await lab.in(lab.host, 'nft', 'flush', 'chain', 'ip', 'wadah', 'input')
  await lab.udp(g1, '127.0.0.1', 7000)
  expect(await lab.tcp(lab.host, '127.0.0.1', 7001)).toBe('1')

  // A port that is no longer published ends, the connection that stands included.
  await lab.start(
    lab.lan,
    `const u = require('dgram').createSocket('udp4'); let n = 0; u.bind(5555)
     u.on('message', () => { n += 1; if (n === 1) console.log('ready') }); setInterval(() => u.send('x', 8080, '${HOST}'), 50)
     require('net').createServer((c) => c.end(String(n))).listen(5556)`,
  )
  await networks.apply([net], [{ ...web, publish: [] }, db], signal)
  expect(await lab.tcp(lab.lan, HOST, 8080)).toBe('error ECONNREFUSED')
  const before = Number(await lab.tcp(lab.lan, '127.0.0.1', 5556))
  await new Promise((done) => setTimeout(done, 300))
  expect(Number(await lab.tcp(lab.lan, '127.0.0.1', 5556)) - before).toBeLessThanOrEqual(1)
})

test('guests of different networks reach each other by published ports only', async () => {
  const web = vm('web', 1, { publish: [{ protocol: 'tcp', address: HOST, port: 8080, to: 80 }] })
  const far = vm('far', 2, { network: other.id, address: '10.77.2.12' })
  await networks.apply([net, other], [web, far], signal)
  const g1 = await lab.guest(net.bridge, web.mac)
  const g2 = await lab.guest(other.bridge, far.mac)
  expect(await lab.dhcp(g1)).toContain(web.address)
  expect(await lab.dhcp(g2)).toContain(far.address)
  await lab.serve(g1, 80)
  expect(await lab.tcp(g2, web.address ?? '', 80)).toBe('error SILENT')
  expect(await lab.tcp(g2, HOST, 8080)).toContain('from ')
  expect(await lab.resolve(g2, other.gateway, 'web')).toContain('error')
  expect(await lab.tcp(lab.host, '127.0.0.1', 8080)).toBe('error ECONNREFUSED')
})

test('doing it twice changes nothing, strangers are left alone, and taking away leaves nothing', async () => {
  await lab.in(
    lab.host,
    'nft',
    'add table inet theirs; add chain inet theirs c { type filter hook forward priority 5; policy accept; }',
  )
  const rulesBefore = await lab.nft()
  const linksBefore = await lab.in(lab.host, 'ip', '-br', 'link')
  const web = vm('web', 1, { publish: [{ protocol: 'tcp', address: '0.0.0.0', port: 8080, to: 80 }] })
  const fingerprint = async (): Promise<string> => {
    const text = [
      await lab.nft(),
      await lab.in(lab.host, 'ip', '-d', 'addr'),
      JSON.stringify(await lab.dnsmasqs()),
    ].join('\n')
    // Whether a bridge has a carrier, and nobody the address, is found out a moment after it is made.
    return createHash('sha256')
      .update(text.replace(/_timer +\S+| state \S+|<[A-Z,_-]+>| tentative/g, ''))
      .digest('hex')
  }
  await networks.apply([net, other], [web], signal)
  const once = await fingerprint()
  await networks.apply([net, other], [web], signal)
  expect(await fingerprint()).toBe(once)

  // Another instance of the daemon, after a restart: the same dnsmasq, the same bridge.
  networks.close()
  networks = open()
  await networks.apply([net, other], [web], signal)
  expect(await fingerprint()).toBe(once)

  const [a, b] = await Promise.all([networks.apply([net], [web], signal), networks.apply([net], [web], signal)])
  expect(a).toEqual(b)
  expect(await lab.in(lab.host, 'ip', '-br', 'link')).not.toContain(other.bridge)
  expect((await lab.dnsmasqs()).length).toBe(1)

  await networks.attach(net, web, signal)
  await networks.removeAll()
  await networks.removeAll()
  expect(await lab.nft()).toBe(rulesBefore)
  expect(await lab.in(lab.host, 'ip', '-br', 'link')).toBe(linksBefore)
  expect(await lab.dnsmasqs()).toEqual([])
  expect(await readdir(`${lab.dir}/networks`)).toEqual([])
})

test('names and addresses follow the attachments without a restart of dnsmasq, a reused address included', async () => {
  const web = vm('web', 1)
  await networks.apply([net], [web], signal)
  const [first] = await lab.dnsmasqs()
  const g1 = await lab.guest(net.bridge, web.mac)
  expect(await lab.dhcp(g1)).toContain(web.address)

  const db = vm('db', 2)
  await networks.apply([net], [web, db], signal)
  expect((await lab.dnsmasqs())[0]?.pid).toBe(first?.pid)
  await vi.waitFor(async () => expect(await lab.resolve(lab.host, net.gateway, 'db')).toBe(db.address))
  const g2 = await lab.guest(net.bridge, db.mac)
  expect(await lab.dhcp(g2)).toContain(db.address)

  // `web` is deleted with its lease still standing; its address goes to another.
  const next = vm('next', 3, { address: web.address ?? '' })
  await networks.apply([net], [db, next], signal)
  const g3 = await lab.guest(net.bridge, next.mac)
  expect(await lab.dhcp(g3)).toContain(`ip=${web.address}`)
  expect(await lab.resolve(lab.host, net.gateway, 'web')).toContain('error')
  expect(await lab.resolve(lab.host, net.gateway, 'next')).toBe(web.address)
})

test('a killed dnsmasq and a flushed table come back', async () => {
  networks.close()
  networks = createNetworks({
    instance: 'default',
    dataDir: lab.dir,
    netns: lab.host,
    watch_ms: 50,
    log: (line) => logged.push(line),
  })
  await networks.apply([net], [vm('web', 1)], signal)
  const [first] = await lab.dnsmasqs()
  process.kill(first?.pid ?? 0, 'SIGKILL')
  await vi.waitFor(async () => expect((await lab.dnsmasqs()).length).toBe(1), 10_000)
  expect((await lab.dnsmasqs())[0]?.pid).not.toBe(first?.pid)
  await lab.in(lab.host, 'nft', 'flush ruleset')
  await vi.waitFor(async () => expect(await lab.nft()).toContain('table ip wadah'), 10_000)
  expect(logged.join('\n')).toContain('was not running')
})

test('an interface, an address or a port of somebody else is refused, not taken', async () => {
  await lab.in(lab.host, 'ip', 'link', 'add', net.bridge, 'type', 'bridge')
  const [state] = await networks.apply([net, other], [], signal)
  expect(state).toMatchObject({ id: net.id, state: 'down' })
  expect(state?.reason).toContain('did not make')
  await networks.removeAll()
  expect(await lab.in(lab.host, 'ip', '-br', 'link')).toContain(net.bridge)
  await lab.in(lab.host, 'ip', 'link', 'del', net.bridge)

  await lab.start(
    lab.host,
    `const u = require('dgram').createSocket('udp4'); u.bind(53, '0.0.0.0', () => console.log('ready'))`,
  )
  const [taken] = await networks.apply([net], [], signal)
  expect(taken?.state).toBe('down')
  expect(taken?.reason).toContain('port 53')
  expect(await networks.portFree('udp', '0.0.0.0', 53)).toBe(false)
  expect(await networks.portFree('tcp', '0.0.0.0', 53)).toBe(true)
})

test('a folder that dnsmasq cannot pass through is said, with the remedy', async () => {
  await chmod(lab.dir, 0o700)
  const [state] = await networks.apply([net], [], signal)
  expect(state).toMatchObject({ state: 'down', reason: expect.stringContaining(`chmod o+x ${lab.dir}`) })
  await chmod(lab.dir, 0o711)
  expect(await networks.apply([net], [], signal)).toEqual([{ id: net.id, state: 'up' }])
})

test('taps: made once, owned by their uid, found again, taken away', async () => {
  const web = vm('web', 1)
  await expect(networks.attach(net, web, signal)).rejects.toMatchObject({ fault: { code: 'unavailable' } })
  await networks.apply([net], [web], signal)
  // Another VM had the address, and the host remembers its MAC.
  const former = `${web.address} lladdr 02:00:00:00:00:99 nud reachable dev ${net.bridge}`
  await lab.in(lab.host, 'ip', 'neigh', 'replace', ...former.split(' '))
  const { ifname } = await networks.attach(net, web, signal)
  expect(await lab.in(lab.host, 'ip', 'neigh', 'show', web.address ?? '')).not.toContain('lladdr')
  expect(await networks.attach(net, web, signal)).toEqual({ ifname })
  expect(await networks.taps()).toEqual([{ ifname, vm: web.vm, nic: web.nic }])
  const shown = await lab.in(lab.host, 'ip', '-d', 'link', 'show', ifname)
  expect(shown).toContain('user 70001')
  expect(shown).toContain('vnet_hdr on')
  expect(shown).toContain(`master ${net.bridge}`)
  // The bridge is lost and comes back: so do its ports.
  await lab.in(lab.host, 'ip', 'link', 'del', net.bridge)
  await networks.apply([net], [web], signal)
  expect(await lab.in(lab.host, 'ip', 'link', 'show', ifname)).toContain(`master ${net.bridge}`)
  await networks.attach(net, { ...web, uid: 70_005 }, signal)
  expect(await lab.in(lab.host, 'ip', '-d', 'link', 'show', ifname)).toContain('user 70005')
  await networks.detach(web.vm, web.nic)
  await networks.detach(web.vm, web.nic)
  expect(await networks.taps()).toEqual([])
})

test('a proposed subnet collides with nothing this host routes', async () => {
  const first = await networks.propose('net-cccccccccc', [])
  await lab.in(lab.host, 'ip', 'route', 'add', first.subnet, 'via', LAN)
  const second = await networks.propose('net-cccccccccc', [])
  expect(second.subnet).not.toBe(first.subnet)
  const third = await networks.propose('net-cccccccccc', [second.subnet])
  expect(new Set([first.subnet, second.subnet, third.subnet]).size).toBe(3)
  expect(await networks.support()).toMatchObject({ nat: true })
})

test('limits hold in both directions, change, and go away', async () => {
  const web = vm('web', 1)
  await networks.apply([net], [web], signal)
  const guest = await lab.guest(net.bridge, web.mac)
  // The stand-in's port takes the place of the tap: known, as a tap is, by its alias.
  const port = tapName(web.vm, web.nic)
  await lab.in(lab.host, 'ip', 'link', 'set', 'veth0', 'down')
  await lab.in(lab.host, 'ip', 'link', 'set', 'veth0', 'name', port)
  const alias = aliasOf('default', { kind: 'tap', vm: web.vm, nic: web.nic, network: net.id })
  await lab.in(lab.host, 'ip', 'link', 'set', port, 'up', 'alias', alias)
  expect(await lab.dhcp(guest)).toContain(web.address)

  // Bytes that arrive within a second, the first moments (the burst) left out.
  const sink = `require('net').createServer((c) => { let n = 0; let from = 0; c.on('data', (d) => (n += d.length)); c.on('error', () => {})
    setTimeout(() => (from = n), 700); setTimeout(() => { c.end(String(n - from)) }, 1700) }).listen(9100, '0.0.0.0', () => console.log('ready'))`
  await lab.start(lab.lan, sink)
  await lab.start(guest, sink)
  const source = (to: string): string =>
    `new Promise((ok, no) => { let s = ''; const c = require('net').connect(9100, '${to}'); const chunk = Buffer.alloc(65536)
      const more = () => { while (c.writable && c.write(chunk)); }; c.on('drain', more); c.on('connect', more)
      c.on('data', (d) => (s += d)); c.on('end', () => ok(s)); c.on('error', no); setTimeout(() => no({ code: 'SILENT' }), 8000) })`
  const fromGuest = async (): Promise<number> => Number(await lab.node(guest, source(LAN)))
  const toGuest = async (): Promise<number> => Number(await lab.node(lab.host, source(web.address ?? '')))

  const free = { from: await fromGuest(), to: await toGuest() }
  await networks.limit(web.vm, web.nic, { in_bytes_per_s: 1_000_000, out_bytes_per_s: 2_000_000 })
  const bound = { from: await fromGuest(), to: await toGuest() }
  expect(bound.from).toBeGreaterThan(100_000)
  expect(bound.to).toBeGreaterThan(100_000)
  expect(free.from / bound.from).toBeGreaterThan(10)
  expect(free.to / bound.to).toBeGreaterThan(10)
  await networks.limit(web.vm, web.nic, {})
  await networks.limit(web.vm, web.nic, {})
  expect((await fromGuest()) / bound.from).toBeGreaterThan(10)
  expect((await toGuest()) / bound.to).toBeGreaterThan(10)
  await expect(networks.limit(web.vm, 'net9', {})).rejects.toMatchObject({ fault: { code: 'not_found' } })
})

test('a firewall in the way is named with its remedy, until a rule of its administrator lets the bridge through', async () => {
  await networks.apply([net], [], signal)
  await lab.in(
    lab.host,
    'nft',
    'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add chain ip filter DOCKER-USER',
  )
  const { nat, notes } = await networks.support()
  expect(nat).toBe(true)
  expect(JSON.stringify(notes)).toContain(`iptables -I DOCKER-USER -i ${net.bridge} -j ACCEPT`)
  await lab.in(lab.host, 'nft', `add rule ip filter DOCKER-USER iifname ${net.bridge} accept`)
  expect(JSON.stringify((await networks.support()).notes)).not.toContain('DOCKER-USER')
})

test('one attachment that cannot be carried out does not keep the others from their network', async () => {
  const web = vm('web', 1)
  const bad = vm('bad', 2, { mac: '02:00:00:00:00:02\ndhcp-script=/tmp/x' })
  const twice = vm('twice', 3, { address: web.address ?? '' })
  expect(await networks.apply([net], [web, bad, twice], signal)).toEqual([{ id: net.id, state: 'up' }])
  expect(logged.join('\n')).toContain('promised twice')
  await expect(networks.attach(net, bad, signal)).rejects.toMatchObject({ fault: { code: 'invalid' } })
  expect(await lab.resolve(lab.host, net.gateway, 'web')).toBe(web.address)
})
