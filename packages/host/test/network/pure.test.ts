import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { checkAttachment, checkNetwork, usable } from '@wadah/host/network/check'
import { freeLeases, renderDnsmasq, renderHosts, renderReservations } from '@wadah/host/network/dnsmasq'
import { bridgesInRules, obstacles, parseChains, parseLegacy } from '@wadah/host/network/firewalls'
import {
  contains,
  formatAddress,
  formatSubnet,
  netmask,
  overlap,
  parseAddress,
  parseSubnet,
} from '@wadah/host/network/ipv4'
import {
  parseLinks,
  planBridge,
  planTap,
  lostTaps,
  strayBridges,
  type Link,
  type NatNetwork,
} from '@wadah/host/network/links'
import { renderBridgeGuard, renderIp6 } from '@wadah/host/network/guard'
import { aliasOf, bridgeMac, bridgeName, parseAlias, tableName, tapName } from '@wadah/host/network/naming'
import { burstBytes, renderFromGuest, renderNft, renderRemoval, renderToGuest } from '@wadah/host/network/nft'
import { chooseSubnet, routedSubnets } from '@wadah/host/network/propose'
import { userNetwork } from '@wadah/host/network/user'

const net: NatNetwork = {
  id: 'net-k3x4q2m7w5',
  name: 'default',
  kind: 'nat',
  subnet: '10.77.1.0/24',
  gateway: '10.77.1.1',
  bridge: 'wbr-k3x4q2m7w5',
  domain: 'wadah.internal',
}
const lab: NatNetwork = {
  ...net,
  id: 'net-aaaaaaaaaa',
  name: 'lab',
  subnet: '192.168.4.0/22',
  gateway: '192.168.4.1',
  bridge: 'wbr-aaaaaaaaaa',
  domain: 'lab',
}
const web: NetworkAttachment = {
  vm: 'vm-aaaaaaaaaa',
  vm_name: 'web',
  nic: 'net0',
  network: net.id,
  uid: 70001,
  mac: '02:00:00:00:00:01',
  address: '10.77.1.10',
  publish: [
    { protocol: 'tcp', address: '0.0.0.0', port: 8080, to: 80 },
    { protocol: 'udp', address: '192.0.2.2', port: 5353, to: 53 },
    { protocol: 'tcp', address: '127.0.0.1', port: 2222, to: 22 },
  ],
  limits: {},
}
const db: NetworkAttachment = {
  ...web,
  vm: 'vm-bbbbbbbbbb',
  vm_name: 'db',
  mac: '02:00:00:00:00:02',
  address: '10.77.1.11',
  publish: [],
}
const far: NetworkAttachment = {
  ...web,
  vm: 'vm-cccccccccc',
  vm_name: 'far',
  mac: '02:00:00:00:00:03',
  network: lab.id,
  address: '192.168.5.9',
  publish: [],
}

describe('nft', () => {
  test('the table of two networks, whole', async () => {
    await expect(renderNft('wadah', [net, lab], [web, db, far])).toMatchFileSnapshot('golden/two-networks.nft')
  })
  test('does not depend on the order of what it is given', () => {
    expect(renderNft('wadah', [lab, net], [far, db, web])).toBe(renderNft('wadah', [net, lab], [web, db, far]))
  })
  test('every rule of a base chain names a bridge or subnet of ours, or a published port', () => {
    const text = renderNft('wadah', [net, lab], [web, db, far])
    const rules = text.split('\n').filter((l) => l.startsWith('\t\t') && !l.includes('policy'))
    for (const rule of rules) expect(rule).toMatch(/wbr-|dport/)
    expect(text).not.toContain('policy drop')
  })
  test('what comes from the user ids of VMs reaches no program of the host, and of guests what is published', async () => {
    const text = renderNft('wadah', [net, lab], [web, db, far], [70_000, 70_999])
    const own = /chain own \{([^}]*\}?[^}]*)\n\t\}/.exec(text)?.[1] ?? ''
    await expect(`${own}\n${renderIp6('wadah', [70_000, 70_999], [])}`).toMatchFileSnapshot('golden/own.nft')
    expect(renderNft('wadah', [], [], [70_000, 70_999])).not.toContain('oifname')
  })
  test('the guard of bridges names only taps with an address of ours', () => {
    const { address: _, ...withoutAddress } = { ...web, vm: 'vm-bbbbbbbbbb' }
    const text = renderBridgeGuard('wadah', [net], [{ ...web, vm: 'vm-aaaaaaaaaa' }, withoutAddress])
    expect(text.match(/chain from-/g)).toHaveLength(1)
    expect(text).toContain(`iifname vmap { "${tapName('vm-aaaaaaaaaa', web.nic)}" : jump`)
    expect(renderBridgeGuard('wadah', [], [])).not.toContain('iifname')
  })
  test('removal works whether the tables are there or not', () => {
    expect(renderRemoval('wadah', 'wadah_fw')).toBe(
      ['ip wadah', 'netdev wadah', 'bridge wadah', 'bridge wadah_fw']
        .map((of) => `add table ${of}\ndelete table ${of}\n`)
        .join(''),
    )
  })
  test('limits', () => {
    expect(renderFromGuest('wadah', 'wtap', 1_000_000)).toContain(
      'limit rate over 1000000 bytes/second burst 131072 bytes drop',
    )
    expect(renderFromGuest('wadah', 'wtap', undefined)).not.toContain('limit')
    expect(renderToGuest('wtap', 125_000_000)).toBe(
      'qdisc replace dev wtap root tbf rate 125000000bps burst 6250000 latency 100ms\n',
    )
    expect(burstBytes(1)).toBe(128 * 1024)
  })
})

describe('dnsmasq', () => {
  const files = {
    conf: '/d/dnsmasq.conf',
    hosts: '/d/hosts',
    dhcp: '/d/reservations',
    leases: '/d/leases',
    pid: '/d/pid',
  }
  test('configuration, whole', async () => {
    await expect(renderDnsmasq(net, files, { user: 'dnsmasq', group: 'nogroup' })).toMatchFileSnapshot(
      'golden/dnsmasq.conf',
    )
    expect(renderDnsmasq(lab, files, { user: 'nobody', group: 'nogroup' })).toContain(
      'dhcp-range=192.168.4.0,static,255.255.252.0,1h',
    )
    expect(renderDnsmasq(lab, files, { user: 'nobody', group: 'nogroup' })).not.toContain('in-addr')
  })
  test('names and reservations of this network only', () => {
    expect(renderHosts(net, [db, web, far])).toBe(
      '10.77.1.1 gateway.wadah.internal gateway\n10.77.1.10 web.wadah.internal web\n10.77.1.11 db.wadah.internal db\n',
    )
    expect(renderReservations(net, [db, web, far])).toBe(
      '02:00:00:00:00:01,10.77.1.10,web,1h\n02:00:00:00:00:02,10.77.1.11,db,1h\n',
    )
    expect(renderReservations(net, [])).toBe('')
  })
  test('leases that stand in the way of a promise go, others stay', () => {
    const mine = `1900000000 ${web.mac} ${web.address} web *`
    const gone = '1900000000 02:00:00:00:00:77 10.77.1.50 old *'
    expect(freeLeases([mine, gone, ''].join('\n'), net, [web, db])).toBeUndefined()
    const inTheWay = `1900000000 02:00:00:00:00:77 ${db.address} old 01:02`
    const moved = `1900000000 ${db.mac} 10.77.1.99 db *`
    expect(freeLeases([mine, inTheWay, gone, moved, ''].join('\n'), net, [web, db])).toBe([mine, gone, ''].join('\n'))
    expect(freeLeases('', net, [web])).toBeUndefined()
  })
})

const eth = { addresses6: [], loopback: false, ether: true }

describe('links', () => {
  const bridge: Link = {
    ...eth,
    name: net.bridge,
    kind: 'bridge',
    up: true,
    mac: bridgeMac(net.id),
    alias: aliasOf('default', { kind: 'bridge', network: net.id }),
    addresses: ['10.77.1.1/24'],
  }
  test('a bridge that is not there is made; one that is right needs nothing', () => {
    expect(planBridge('default', [], net)).toEqual({
      ok: true,
      fresh: true,
      create: [
        `link add name ${net.bridge} address ${bridgeMac(net.id)} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
        `link set dev ${net.bridge} alias wadah:default:bridge:${net.id}`,
      ],
      configure: [`addr add 10.77.1.1/24 brd + dev ${net.bridge}`, `link set dev ${net.bridge} up`],
    })
    expect(planBridge('default', [bridge], net)).toMatchObject({ ok: true, create: [], configure: [] })
  })
  test('one that is ours and wrong is put right', () => {
    const wrong = { ...bridge, up: false, mac: '02:11:11:11:11:11', addresses: ['10.9.9.1/24'] }
    expect(planBridge('default', [wrong], net)).toMatchObject({
      configure: [
        `link set dev ${net.bridge} address ${bridgeMac(net.id)}`,
        `addr del 10.9.9.1/24 dev ${net.bridge}`,
        `addr add 10.77.1.1/24 brd + dev ${net.bridge}`,
        `link set dev ${net.bridge} up`,
      ],
    })
  })
  test('one that is not ours is refused', () => {
    const { alias: _, ...unmarked } = bridge
    for (const foreign of [
      unmarked,
      { ...bridge, alias: 'wadah:other:bridge:net-k3x4q2m7w5' },
      { ...bridge, kind: 'dummy' },
    ]) {
      expect(planBridge('default', [foreign], net)).toMatchObject({
        ok: false,
        reason: expect.stringContaining('did not make'),
      })
    }
    const eth0: Link = { ...eth, name: 'eth0', kind: '', up: true, mac: '', addresses: ['10.77.1.1/16'] }
    expect(planBridge('default', [eth0], net)).toMatchObject({ ok: false, reason: expect.stringContaining('eth0') })
  })
  test('a subnet that the host lives in is refused for a new bridge, and no reason to take an old one down', () => {
    const eth0: Link = { ...eth, name: 'eth0', kind: '', up: true, mac: '', addresses: ['10.77.1.200/24'] }
    expect(planBridge('default', [eth0], net)).toMatchObject({
      ok: false,
      reason: expect.stringContaining('10.77.1.200/24'),
    })
    expect(planBridge('default', [eth0, bridge], net)).toMatchObject({ ok: true })
  })
  test('bridges of networks that are no more, and taps that lost theirs', () => {
    const tap: Link = {
      ...eth,
      name: 'wt',
      kind: 'tun',
      up: true,
      mac: '',
      alias: aliasOf('default', { kind: 'tap', vm: 'vm-a', nic: 'net0', network: net.id }),
      addresses: [],
    }
    expect(strayBridges('default', [bridge, tap], [])).toEqual([bridge])
    expect(strayBridges('default', [bridge, tap], [net])).toEqual([])
    expect(strayBridges('other', [bridge, tap], [])).toEqual([])
    expect(lostTaps('default', [bridge, tap], [net])).toEqual([{ tap: 'wt', network: net }])
    expect(lostTaps('default', [bridge, { ...tap, master: net.bridge }], [net])).toEqual([])
    expect(lostTaps('default', [bridge, tap], [])).toEqual([])
  })
  test('taps', () => {
    const name = tapName(web.vm, web.nic)
    const alias = aliasOf('default', { kind: 'tap', vm: web.vm, nic: web.nic, network: net.id })
    const tap: Link = {
      ...eth,
      name,
      kind: 'tun',
      up: true,
      mac: '',
      alias,
      master: net.bridge,
      uid: web.uid,
      addresses: [],
    }
    const make = [
      `tuntap add dev ${name} mode tap user 70001 vnet_hdr`,
      `link set dev ${name} alias ${alias}`,
      `link set dev ${name} addrgenmode none master ${net.bridge} up`,
      `neigh replace ${web.address} nud failed dev ${net.bridge}`,
    ]
    const { alias: _, ...halfMade } = tap
    expect(planTap('default', [], net, web)).toEqual({ ok: true, lines: make })
    expect(planTap('default', [tap], net, web)).toEqual({ ok: true, lines: [] })
    expect(planTap('default', [{ ...tap, uid: 1 }], net, web)).toEqual({
      ok: true,
      lines: [`link del dev ${name}`, ...make],
    })
    expect(planTap('default', [halfMade], net, web)).toEqual({ ok: true, lines: [`link del dev ${name}`, ...make] })
    expect(planTap('default', [{ ...tap, kind: 'veth', alias: 'mine' }], net, web)).toMatchObject({ ok: false })
  })
  test('nonsense from ip is no interface', () => {
    expect(parseLinks('')).toEqual([])
    expect(
      parseLinks('[{}, null, 3, {"ifname":"x","linkinfo":null,"addr_info":[{"family":"inet6","scope":"link"}]}]'),
    ).toEqual([
      { name: 'x', kind: '', up: false, mac: '', addresses: [], addresses6: [], loopback: false, ether: false },
    ])
  })
})

describe('names', () => {
  const id = fc.stringMatching(/^[a-z2-7]{10}$/)
  test('fit an interface, are the same each time, and come back from the alias', () => {
    fc.assert(
      fc.property(id, fc.stringMatching(/^[a-z][a-z0-9-]{0,20}$/), (text, nic) => {
        const tap = tapName(`vm-${text}`, nic)
        expect(tap).toMatch(/^[a-z][a-z0-9-]{0,14}$/)
        expect(tapName(`vm-${text}`, nic)).toBe(tap)
        expect(bridgeName(`net-${text}`).length).toBeLessThanOrEqual(15)
        expect(bridgeMac(`net-${text}`)).toMatch(/^02(:[0-9a-f]{2}){5}$/)
        const owned = { kind: 'tap', vm: `vm-${text}`, nic, network: `net-${text}` } as const
        expect(parseAlias('default', aliasOf('default', owned))).toEqual(owned)
        expect(parseAlias('other', aliasOf('default', owned))).toBeUndefined()
      }),
    )
    expect(tapName('vm-aaaaaaaaaa', 'net0')).not.toBe(tapName('vm-aaaaaaaaaa', 'net1'))
    expect(
      [undefined, '', 'eth', 'wadah:default', 'wadah:default:bridge', 'wadah:default:tap:a', 'wadah:default:x:a'].map(
        (a) => parseAlias('default', a),
      ),
    ).toEqual(Array(7).fill(undefined))
    expect([tableName('default'), tableName('lab-1')]).toEqual(['wadah', 'wadah-lab-1'])
  })
})

describe('addresses', () => {
  test('are read and written', () => {
    fc.assert(fc.property(fc.ipV4(), (text) => formatAddress(parseAddress(text) ?? -1) === text))
    for (const bad of ['', '1.2.3', '1.2.3.4.5', '256.1.1.1', '01.2.3.4', 'a.b.c.d', '1.2.3.-4'])
      expect(parseAddress(bad)).toBeUndefined()
    for (const bad of ['10.0.0.0/33', '10.0.0.0/', '10.0.0.0/8/8', 'x/8', 'fe80::/64'])
      expect(parseSubnet(bad)).toBeUndefined()
    expect(formatSubnet(parseSubnet('10.1.2.3/24') ?? { base: 0, prefix: 0 })).toBe('10.1.2.0/24')
    expect([netmask(0), netmask(22), netmask(32)]).toEqual(['0.0.0.0', '255.255.252.0', '255.255.255.255'])
  })
  test('overlap is being in one another', () => {
    const subnet = fc
      .record({ a: fc.ipV4(), p: fc.integer({ min: 0, max: 32 }) })
      .map(({ a, p }) => parseSubnet(`${a}/${p}`) ?? { base: 0, prefix: 0 })
    fc.assert(
      fc.property(subnet, subnet, (a, b) => {
        expect(overlap(a, b)).toBe(contains(a, b.base) || contains(b, a.base))
        expect(overlap(a, b)).toBe(overlap(b, a))
      }),
    )
  })
})

describe('choosing a subnet', () => {
  test('avoids what is routed, slirp’s own net, and what is taken', () => {
    const used: string[] = routedSubnets(
      '[{"dst":"default"},{"dst":"10.64.0.0/11"},{"dst":"192.168.0.0/17"},{"dst":"192.168.200.7"},{}]',
    )
    expect(used).toEqual(['10.64.0.0/11', '192.168.0.0/17', '192.168.200.7'])
    const first = parseSubnet(chooseSubnet('net-aaaaaaaaaa', used) ?? '')
    expect(first).toBeDefined()
    const seen = [...used]
    for (let i = 0; i < 300; i += 1) {
      const next = chooseSubnet('net-aaaaaaaaaa', seen)
      expect(next).toBeDefined()
      for (const other of [...seen, userNetwork().subnet]) {
        const [a, b] = [parseSubnet(next ?? ''), parseSubnet(other)]
        if (a !== undefined && b !== undefined) expect(overlap(a, b)).toBe(false)
      }
      seen.push(next ?? '')
    }
    expect(chooseSubnet('net-aaaaaaaaaa', ['10.0.0.0/8', '192.168.0.0/16'])).toBeUndefined()
  })
})

describe('other firewalls', () => {
  const chain = (family: string, table: string, name: string, hook?: string, policy?: string): object => ({
    chain: { family, table, name, handle: 1, ...(hook === undefined ? {} : { type: 'filter', hook, prio: 0, policy }) },
  })
  const said = (chains: object[], bridges = ['wbr-x']): string[] =>
    obstacles(parseChains(JSON.stringify({ nftables: [{ metainfo: {} }, ...chains] })), 'wadah', bridges).map(
      (o) => o.remedy,
    )
  test('nothing in the way', () => {
    expect(said([])).toEqual([])
    expect(
      said([
        chain('ip', 'wadah', 'forward', 'forward', 'drop'),
        chain('inet', 'filter', 'forward', 'forward', 'accept'),
        chain('ip6', 'filter', 'FORWARD', 'forward', 'drop'),
      ]),
    ).toEqual([])
    expect(parseChains('')).toEqual([])
  })
  test('Docker, ufw, firewalld and a plain policy each have their remedy', () => {
    expect(said([chain('ip', 'filter', 'FORWARD', 'forward', 'drop'), chain('ip', 'filter', 'DOCKER-USER')])).toEqual([
      'iptables -I DOCKER-USER -i wbr-x -j ACCEPT; iptables -I DOCKER-USER -o wbr-x -j ACCEPT',
    ])
    expect(
      said([
        chain('ip', 'filter', 'FORWARD', 'forward', 'drop'),
        chain('ip', 'filter', 'INPUT', 'input', 'drop'),
        chain('ip', 'filter', 'ufw-user-forward'),
      ]),
    ).toEqual(['ufw allow in on wbr-x; ufw route allow in on wbr-x; ufw route allow out on wbr-x'])
    expect(said([chain('inet', 'firewalld', 'filter_FORWARD', 'forward', 'accept')])).toEqual([
      'firewall-cmd --permanent --zone=trusted --add-interface=wbr-x; firewall-cmd --reload',
    ])
    expect(said([chain('inet', 'mine', 'in', 'input', 'drop')], ['a', 'b'])[0]).toMatch(
      /insert rule inet mine in iifname a .*; nft insert rule inet mine in iifname b/,
    )
  })
  test('the old iptables interface is read too', () => {
    const chains = parseLegacy(
      '-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n',
    )
    expect(obstacles(chains, 'wadah', ['wbr-x']).map((o) => o.text)).toEqual([expect.stringContaining('Docker')])
  })
  test('a bridge named in somebody else’s rules counts as let through', () => {
    const rules =
      'table ip wadah {\n\tiifname "wbr-a"\n}\ntable ip filter {\n\tiifname "wbr-b" accept\n}\n-A DOCKER-USER -i wbr-c -j ACCEPT'
    expect([...bridgesInRules(rules, 'wadah', ['wbr-a', 'wbr-b', 'wbr-c'])]).toEqual(['wbr-b', 'wbr-c'])
  })
})

describe('the last look', () => {
  test('good ones pass', () => {
    expect([net, lab].map(checkNetwork)).toEqual([undefined, undefined])
    expect([web, db, far].map(checkAttachment)).toEqual([undefined, undefined, undefined])
  })
  test('nothing that could end a line or a word gets into a file or batch', () => {
    const nasty = fc.constantFrom('\n', ' ', '"', ';', '\0', '#', '/', ',', '{', '-')
    fc.assert(
      fc.property(
        fc.constantFrom('id', 'name', 'subnet', 'gateway', 'bridge', 'domain'),
        fc.string(),
        nasty,
        fc.string(),
        (key, a, bad, b) => {
          if (checkNetwork({ ...net, [key]: `${a}${bad}${b}` }) === undefined)
            expect(`${a}${bad}${b}`).toMatch(/^[A-Za-z0-9._/-]+$/)
        },
      ),
    )
    for (const key of ['vm', 'vm_name', 'nic', 'network', 'mac', 'address']) {
      for (const value of ['a\nb', 'a b', 'a,b', 'a"b', '', '#'])
        expect(checkAttachment({ ...web, [key]: value }), key).toBeDefined()
    }
    const publish = (p: object) =>
      checkAttachment({ ...web, publish: [{ protocol: 'tcp', address: '0.0.0.0', port: 1, to: 1, ...p } as never] })
    expect(publish({})).toBeUndefined()
    for (const p of [{ protocol: 'sctp' }, { address: 'any' }, { port: 0 }, { port: 65_536 }, { to: 1.5 }])
      expect(publish(p)).toBeDefined()
    const firewall = (rule: object, defaults = {}) =>
      checkAttachment({
        ...web,
        firewall: {
          in: 'drop',
          out: 'accept',
          ...defaults,
          rules: [{ direction: 'in', action: 'accept', protocol: 'tcp', ports: [[22, 22]], ...rule } as never],
        },
      })
    expect(firewall({ peers: ['10.0.0.0/8', 'fe80::/10'] })).toBeUndefined()
    for (const r of [
      { direction: 'up' },
      { action: 'accept\ndrop' },
      { protocol: 'sctp' },
      { ports: [[2, 1]] },
      { ports: [[0, 1]] },
      { ports: [['22 }', 22]] },
      { peers: ['10.0.0.0/8 }'] },
      { peers: ['web'] },
    ])
      expect(firewall(r)).toBeDefined()
    expect(firewall({}, { in: 'return' })).toBeDefined()
    expect(checkAttachment({ ...web, limits: { in_bytes_per_s: 0 } })).toBeDefined()
    expect(checkAttachment({ ...web, uid: -1 })).toBeDefined()
  })
  test('one address for one NIC', () => {
    const notes: string[] = []
    expect(
      usable([web, { ...db, address: web.address ?? '' }, { ...far, address: web.address ?? '' }], (_, text) =>
        notes.push(text),
      ).map((a) => a.vm_name),
    ).toEqual(['web', 'far'])
    expect(notes).toHaveLength(1)
  })
})
