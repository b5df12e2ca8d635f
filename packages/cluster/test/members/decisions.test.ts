/** What is decided from the records of a cluster: who keeps the store, who carries out a request, who gets a new VM, who may join. */
import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { VmCreate } from '@wadah/api/schema/vm'
import type { EtcdMember } from '@wadah/store/etcd/admin'
import { jobKind } from '../../src/jobs/record.ts'
import { sameFacts } from '../../src/members/alive.ts'
import { aliveKind, type FactsRecord, factsKind, joinTokenKind } from '../../src/members/records.ts'
import { APART, hostFor, snapshotOf, TOGETHER } from '../../src/members/scheduling.ts'
import { addressOf, checkJoinSecret, checkJoinToken, hashOf, readToken } from '../../src/members/service.ts'
import {
  allVote,
  isMemberOf,
  membersFor,
  nextMember,
  notThere,
  unknownToEtcd,
  withoutVote,
} from '../../src/members/voters.ts'
import { whereIs } from '../../src/members/where.ts'
import {
  type HostRecord,
  hostKind,
  imageKind,
  indexKeys,
  indexKind,
  networkKind,
  placementKind,
  poolKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../../src/records.ts'
import { freeUid, uidsFrom } from '../../src/vms/allocate.ts'
import { type Given, record, viewOf } from './view.ts'

const [A, B, C] = ['host-aaaaaaaaaa', 'host-bbbbbbbbbb', 'host-cccccccccc'] as const
const thrown = (work: () => unknown) => {
  try {
    work()
  } catch (error) {
    return (error as { fault: { code: string; detail: string; remedy?: string } }).fault
  }
  throw new Error('nothing was thrown')
}
const named = (id: string, name: string) => ({ schema: 1, id, name, project: 'default', created_at: '' })
const index = (noun: 'vm' | 'pool' | 'image' | 'volume' | 'network', name: string, holder: string) =>
  record(indexKind, indexKeys.name(noun, 'default', name), { schema: 1, holder })

describe('who keeps a copy of the store', () => {
  test.each([
    [1, 1],
    [2, 1],
    [3, 3],
    [4, 3],
    [5, 5],
    [6, 5],
    [60, 5],
  ])('of %i hosts %i', (hosts, members) => expect(membersFor(hosts)).toBe(members))

  const host = (n: number, over: Partial<HostRecord> = {}): HostRecord => ({
    schema: 1,
    id: `host-aaaaaaaaa${'abcdefgh'[n]}`,
    name: `h${n}`,
    created_at: `2026-01-0${n + 1}T00:00:00.000Z`,
    address: `10.0.0.${n}`,
    ...over,
  })
  const all = () => true
  test('the oldest that is there and has none; nobody when there are enough', () => {
    const three = [host(2), host(0, { member: true }), host(1)]
    expect(nextMember(three, all)?.name).toBe('h1')
    expect(nextMember(three, (id) => id !== host(1).id)?.name).toBe('h2')
    expect(nextMember(three, () => false)).toBeUndefined()
    expect(nextMember(three.slice(0, 2), all)).toBeUndefined()
    expect(
      nextMember(
        [host(0)].map((h) => {
          const { address: _, ...alone } = h
          return alone
        }),
        all,
      ),
    ).toBeUndefined()
    expect(nextMember([host(1, { created_at: '' }), host(0, { created_at: '' })], all)?.name).toBe('h0')
  })
  test('one after the other it comes to what is wanted, and ends there', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 8 }), (n) => {
        const hosts = Array.from({ length: n }, (_, i) => host(i))
        for (;;) {
          const next = nextMember(hosts, all)
          if (!next) break
          hosts[hosts.indexOf(next)] = { ...next, member: true }
        }
        expect(hosts.filter((h) => h.member)).toHaveLength(membersFor(n))
      }),
    )
  })

  const ports = { peer: 7444, etcd_client: 7445, etcd_peer: 7446 }
  const member = (n: number, over: Partial<EtcdMember> = {}): EtcdMember => ({
    id: `${n}`,
    name: host(n).id,
    peer_urls: [`https://10.0.0.${n}:7446`],
    client_urls: [],
    learner: false,
    ...over,
  })
  test.each([
    ['all have their votes', [member(0), member(1)], true],
    ['one is a learner', [member(0), member(1, { learner: true })], false],
    ['one never started', [member(0), member(1, { name: '' })], false],
    ['one is to be added', [member(0)], false],
    ['a learner is no host of ours', [member(0), member(1), member(2, { learner: true })], false],
  ])('another gets one only when all have their votes: %s', (_what, members, all) =>
    expect(allVote([host(0, { member: true }), host(1, { member: true }), host(2)], members)).toBe(all),
  )
  test('a member that never started is known by its address, and named when it has no vote', () => {
    const [h1, h2] = [host(1, { ports }), host(2, { ports })]
    const mine = member(1, { name: '', learner: true })
    expect([isMemberOf(mine, h1), isMemberOf(mine, h2), isMemberOf(member(2), h2)]).toEqual([true, false, true])
    expect(withoutVote(mine, h1)).toMatch(
      /^h1 has no vote yet.*wadah host check --host h1; .*cluster remove h1 --lost$/,
    )
    expect(unknownToEtcd([{ ...h1, member: true }, h2], [])).toMatchObject([{ id: h1.id }])
    expect(unknownToEtcd([{ ...h1, member: true }], [mine])).toEqual([])
    expect(notThere(h1)).toMatch(/etcd knows no member of it yet/)
    expect(withoutVote(mine, undefined)).toContain('etcdctl member remove 1')
    expect(withoutVote(member(1), h1)).toBeUndefined()
  })
})

describe('who carries out a request', () => {
  const view = viewOf([
    record(hostKind, A, { id: A, name: 'h1' }),
    record(hostKind, B, { id: B, name: 'h2' }),
    record(placementKind, 'vm-bbbbbbbbbb', { host: B, epoch: 1 }),
    index('vm', 'web', 'vm-bbbbbbbbbb'),
    record(poolKind, 'pool-bbbbbbbbbb', { ...named('pool-bbbbbbbbbb', 'fast'), host: B }),
    record(poolKind, 'pool-cccccccccc', { ...named('pool-cccccccccc', 'nfs'), host: B, shared: true }),
    index('pool', 'fast', 'pool-bbbbbbbbbb'),
    index('pool', 'nfs', 'pool-cccccccccc'),
    record(volumeKind, 'vol-aaaaaaaaaa', { ...named('vol-aaaaaaaaaa', 'v'), pool: 'pool-bbbbbbbbbb' }),
    record(volumeKind, 'vol-bbbbbbbbbb', {
      ...named('vol-bbbbbbbbbb', 'd'),
      pool: 'pool-cccccccccc',
      vm: 'vm-bbbbbbbbbb',
    }),
    record(volumeKind, 'vol-cccccccccc', { ...named('vol-cccccccccc', 's'), pool: 'pool-cccccccccc' }),
    record(imageKind, 'img-aaaaaaaaaa', { ...named('img-aaaaaaaaaa', 'deb'), volume: 'vol-aaaaaaaaaa' }),
    record(imageKind, 'img-bbbbbbbbbb', { ...named('img-bbbbbbbbbb', 'cd'), host: A }),
    index('image', 'deb', 'img-aaaaaaaaaa'),
    index('image', 'cd', 'img-bbbbbbbbbb'),
    record(jobKind, 'job-aaaaaaaaaa', { executor: { host: B } }),
  ])
  const where = (id: string, params: Record<string, string> = {}, query: object = {}, body?: unknown) =>
    whereIs(view, 'default', { id, params, query: query as Record<string, unknown>, body })
  test.each([
    ['vms.start', { vm: 'web' }, {}, undefined, B],
    ['vms.start', { vm: 'vm-bbbbbbbbbb' }, {}, undefined, B],
    ['vms.start', { vm: 'nobody' }, {}, undefined, undefined],
    ['vms.list', {}, {}, undefined, undefined],
    ['vms.get', { vm: 'web' }, {}, undefined, undefined],
    ['jobs.cancel', { job: 'job-aaaaaaaaaa' }, {}, undefined, B],
    ['jobs.get', { job: 'job-aaaaaaaaaa' }, {}, undefined, undefined],
    ['volumes.delete', { volume: 'vol-aaaaaaaaaa' }, {}, undefined, B],
    ['volumes.resize', { volume: 'vol-bbbbbbbbbb' }, {}, undefined, B],
    ['volumes.delete', { volume: 'vol-cccccccccc' }, {}, undefined, undefined],
    ['pools.delete', { pool: 'fast' }, {}, undefined, B],
    ['pools.delete', { pool: 'nfs' }, {}, undefined, undefined],
    ['images.delete', { image: 'deb' }, {}, undefined, B],
    ['images.delete', { image: 'cd' }, {}, undefined, A],
    ['volumes.create', {}, {}, { pool: 'fast' }, B],
    ['volumes.upload', {}, { pool: 'fast' }, undefined, B],
    ['images.template', {}, {}, { vm: 'web' }, B],
    ['networks.list', {}, { host: 'h2' }, undefined, B],
    ['vms.list', {}, { host: A }, undefined, A],
    ['volumes.create', {}, {}, { pool: 7 }, undefined],
    ['volumes.create', {}, {}, null, undefined],
  ])('%s %j %j %j: %s', (id, params, query, body, host) => expect(where(id, params as never, query, body)).toBe(host))
})

describe('tokens', () => {
  const text = { a: ['10.0.0.1:7444'], f: 'a'.repeat(64), s: 'tok-aaaaaaaaaa.secret' }
  const written = (value: unknown) => `wadah-join-${Buffer.from(JSON.stringify(value)).toString('base64url')}`
  test('what was written is read, with white space around it', () => {
    expect(readToken(`\n ${written(text)} \n`)).toEqual(text)
  })
  test.each([
    '',
    'wadah-join-',
    'wadah_abc',
    written({ ...text, f: 'A'.repeat(64) }),
    written({ ...text, a: [7] }),
    written({ ...text, s: undefined }),
    written(null),
    `${written(text)}x`.slice(0, -4),
  ])('%s is none', (wrong) => expect(thrown(() => readToken(wrong))).toMatchObject({ code: 'invalid' }))

  const SECRET = 'tok-aaaaaaaaaa.c2VjcmV0'
  const made = (over: object = {}) =>
    viewOf([
      record(joinTokenKind, 'tok-aaaaaaaaaa', {
        schema: 1,
        id: 'tok-aaaaaaaaaa',
        hash: hashOf('c2VjcmV0'),
        created_by: 'root',
        expires_ms: 1000,
        ...over,
      }),
    ]).list(joinTokenKind)
  const check = (list: ReturnType<typeof made>, secret: string, host: string = A, now = 999) =>
    checkJoinToken(list, secret, host, now)

  test('its own secret until its end, and after its use for that host alone', () => {
    expect(check(made(), SECRET).id).toBe('tok-aaaaaaaaaa')
    expect(check(made({ used_by: A }), SECRET).id).toBe('tok-aaaaaaaaaa')
    expect(thrown(() => check(made({ used_by: B }), SECRET)).detail).toMatch(/used already/)
    expect(thrown(() => check(made(), SECRET, A, 1001)).detail).toMatch(/ended at/)
    expect(thrown(() => check(made({ used_by: A }), SECRET, A, 1001)).detail).toMatch(/ended at/)
  })
  test.each([
    '',
    '.',
    'tok-aaaaaaaaaa',
    'tok-aaaaaaaaaa.',
    'tok-bbbbbbbbbb.c2VjcmV0',
    'tok-aaaaaaaaaa.c2VjcmV1',
    '.c2VjcmV0',
  ])('forged: "%s"', (secret) => {
    expect(thrown(() => check(made(), secret))).toMatchObject({ code: 'unauthenticated' })
    expect(thrown(() => checkJoinSecret(made(), secret, 0))).toMatchObject({ code: 'unauthenticated' })
  })
  test('that an unknown one is of another host is not said', () => {
    expect(thrown(() => check(made({ used_by: B }), 'tok-aaaaaaaaaa.x')).detail).toMatch(/unknown/)
  })
  test('before the body of a stranger is read, any host that could come with it will do', () => {
    expect(() => checkJoinSecret(made(), SECRET, 999)).not.toThrow()
    expect(() => checkJoinSecret(made({ used_by: B }), SECRET, 999)).not.toThrow()
    expect(thrown(() => checkJoinSecret(made(), SECRET, 1001)).detail).toMatch(/ended at/)
  })
  test.each([
    ['10.0.0.1', '10.0.0.1:7444'],
    ['2001:db8::1', '[2001:db8::1]:7444'],
    [undefined, undefined],
  ])('a host at %s is reached at %s', (address, wanted) => {
    const ports = { peer: 7444, etcd_client: 7445, etcd_peer: 7446 }
    const host = { schema: 1, id: A, name: 'h1', created_at: '', ports, ...(address ? { address } : {}) } as HostRecord
    expect(addressOf(host)).toBe(wanted)
  })
})

const facts = (over: Partial<FactsRecord> = {}): FactsRecord => ({
  schema: 1,
  version: '0.1.0',
  cpu_model: 'x',
  cpu_flags: ['sse2'],
  cpus: 4,
  memory_mib: 8192,
  memory_free_mib: 4096,
  accelerator: 'tcg',
  qemu_version: '7.2.0',
  firmware: ['bios'],
  tpm: false,
  pools: [],
  networks: [],
  at_ms: 1,
  ...over,
})

test('facts are news when something but a little memory differs', () => {
  const before = facts()
  expect(sameFacts(undefined, before)).toBe(false)
  expect(sameFacts(before, facts({ at_ms: 99, memory_free_mib: 4096 + 255 }))).toBe(true)
  expect(sameFacts(before, facts({ memory_free_mib: 4096 - 256 }))).toBe(false)
  expect(sameFacts(before, facts({ pools: ['pool-aaaaaaaaaa'] }))).toBe(false)
  expect(sameFacts(before, facts({ version: '0.2.0' }))).toBe(false)
  // As a store gives it back.
  expect(sameFacts(JSON.parse(JSON.stringify(before)) as FactsRecord, facts({ at_ms: 5 }))).toBe(true)
})

describe('where a new VM goes', () => {
  const NET = 'net-aaaaaaaaaa'
  const host = (
    id: string,
    name: string,
    o: { up?: boolean; maintenance?: boolean; facts?: Partial<FactsRecord> } = {},
  ) => [
    record(hostKind, id, { schema: 1, id, name, created_at: '', ...(o.maintenance ? { maintenance: true } : {}) }),
    record(factsKind, id, facts({ networks: [NET], pools: [`pool-${id.slice(5)}`, 'pool-ssssssssss'], ...o.facts })),
    record(poolKind, `pool-${id.slice(5)}`, { ...named(`pool-${id.slice(5)}`, `p-${name}`), host: id }),
    index('pool', `p-${name}`, `pool-${id.slice(5)}`),
    ...(o.up === false ? [] : [record(aliveKind, id, { schema: 1, host: id, since_ms: 0 })]),
  ]
  const vm = (id: string, on: string, over: { memory_mib?: number; labels?: Record<string, string> } = {}): Given[] => [
    record(vmKind, id, {
      ...named(id, id),
      labels: over.labels ?? {},
      spec: { memory_mib: over.memory_mib ?? 1024, cpus: 1, disks: [], nics: [] },
    }),
    record(placementKind, id, { host: on, epoch: 1 }),
    record(statusKind, id, { schema: 1, state: 'running', accelerator: 'tcg', qemu_version: '7.2.0' }),
  ]
  const shared = [
    record(networkKind, NET, { ...named(NET, 'default'), kind: 'nat' }),
    record(poolKind, 'pool-ssssssssss', { ...named('pool-ssssssssss', 'nfs'), host: A, shared: true }),
    index('pool', 'nfs', 'pool-ssssssssss'),
    index('network', 'default', NET),
  ]
  const three = [...shared, ...host(A, 'h1'), ...host(B, 'h2'), ...host(C, 'h3')]
  const go = (all: Given[], body: Partial<VmCreate> = {}, own: string = A) =>
    hostFor(viewOf(all), 'default', { name: 'new', ...body } as VmCreate, { now_ms: 0, memory_overcommit: 1, own })

  test('to the one that is named, by name or id', () => {
    expect(go(three, { host: 'h2' })).toBe(B)
    expect(go(three, { host: C })).toBe(C)
  })
  test.each([
    [[...shared, ...host(A, 'h1')], 'h9', 'not_found'],
    [[...shared, ...host(A, 'h1'), ...host(B, 'h2', { up: false })], 'h2', 'wrong_state'],
    [[...shared, ...host(A, 'h1'), ...host(B, 'h2', { maintenance: true })], 'h2', 'wrong_state'],
    [[...shared, ...host(A, 'h1', { maintenance: true })], 'h1', 'wrong_state'],
  ])('one that is not there, down or in maintenance is refused (%#)', (all, named, code) => {
    expect(thrown(() => go(all, { host: named }))).toMatchObject({ code, field: '/host' })
  })
  test('a host that does not see its own lease yet is no reason to refuse it itself', () => {
    expect(go([...shared, ...host(A, 'h1', { up: false }), ...host(B, 'h2')], { host: 'h1' })).toBe(A)
  })
  test('of a single host nothing is known, and it is taken; one in maintenance is not', () => {
    expect(go([])).toBe(A)
    expect(go([...shared, ...host(A, 'h1')])).toBe(A)
    expect(thrown(() => go([...shared, ...host(A, 'h1', { maintenance: true })])).code).toBe('no_room')
    expect(thrown(() => go([...shared, ...host(B, 'h2', { up: false })])).code).toBe('no_room')
  })
  test('to where most room is; not to one that is down or in maintenance', () => {
    const loaded = [
      ...three,
      ...vm('vm-aaaaaaaaaa', A, { memory_mib: 6000 }),
      ...vm('vm-bbbbbbbbbb', B, { memory_mib: 2000 }),
    ]
    expect(go(loaded)).toBe(C)
    const without = [
      ...shared,
      ...host(A, 'h1'),
      ...host(B, 'h2', { maintenance: true }),
      ...host(C, 'h3', { up: false }),
    ]
    expect(go([...without, ...vm('vm-aaaaaaaaaa', A, { memory_mib: 6000 })])).toBe(A)
  })
  test('to where its image lies, when that is in the pool of one host', () => {
    const image = [
      record(imageKind, 'img-aaaaaaaaaa', { ...named('img-aaaaaaaaaa', 'deb'), volume: 'vol-aaaaaaaaaa' }),
      record(volumeKind, 'vol-aaaaaaaaaa', { ...named('vol-aaaaaaaaaa', 'v'), pool: 'pool-bbbbbbbbbb', size_bytes: 1 }),
      index('image', 'deb', 'img-aaaaaaaaaa'),
    ]
    const loaded = [...three, ...image, ...vm('vm-bbbbbbbbbb', B, { memory_mib: 3000 })]
    expect(go(loaded, { image: 'deb' })).toBe(B)
    expect(go(loaded, { image: 'img-aaaaaaaaaa' })).toBe(B)
    const full = [...three, ...image, ...vm('vm-bbbbbbbbbb', B, { memory_mib: 7500 })]
    expect(thrown(() => go(full, { image: 'deb' }))).toMatchObject({
      code: 'no_room',
      detail: expect.stringContaining('h2'),
    })
  })
  test('a pool that is named counts', () => {
    expect(go(three, { pool: 'p-h3' })).toBe(C)
    expect(go(three, { disks: [{ size: '1GiB', pool: 'p-h2' }] } as never)).toBe(B)
  })
  test('to where a volume lies that is to be its disk', () => {
    const data = { ...named('vol-dddddddddd', 'data'), pool: 'pool-cccccccccc', size_bytes: 1 }
    const there = [...three, record(volumeKind, 'vol-dddddddddd', data), index('volume', 'data', 'vol-dddddddddd')]
    expect(go(there, { disks: [{ volume: 'data' }] })).toBe(C)
  })
  test('VMs that are kept apart, and together', () => {
    const labels = { [APART]: 'db:strict' }
    const apart = [...three, ...vm('vm-aaaaaaaaaa', A, { labels }), ...vm('vm-bbbbbbbbbb', C, { labels })]
    expect(go(apart, { labels })).toBe(B)
    const full = [...apart, ...vm('vm-cccccccccc', B, { labels })]
    expect(thrown(() => go(full, { labels })).code).toBe('no_room')
    const soft = { [APART]: 'db' }
    const busy = [A, B, C].flatMap((h, i) => vm(`vm-${'abc'[i]?.repeat(10)}`, h, { labels: soft }))
    expect([A, B, C]).toContain(go([...three, ...busy], { labels: soft }))
    const together = { [TOGETHER]: 'app:strict' }
    expect(go([...three, ...vm('vm-aaaaaaaaaa', C, { labels: together })], { labels: together })).toBe(C)
  })
  test('every host of the records that has said what it has is in what the scheduler sees', () => {
    const { hosts } = snapshotOf(viewOf([...three, record(hostKind, 'host-dddddddddd', { name: 'h4' })]), {
      now_ms: 0,
      memory_overcommit: 1,
    })
    expect(hosts.map((h) => [h.name, h.state])).toEqual([
      ['h1', 'up'],
      ['h2', 'up'],
      ['h3', 'up'],
    ])
  })
})

describe('user ids', () => {
  test('a host begins somewhere of its own, within what there is, always at the same place', () => {
    const hosts = Array.from({ length: 200 }, () => `host-${randomBytes(5).toString('hex')}`)
    const from = hosts.map((h) => uidsFrom(h, 10_000))
    expect(hosts.map((h) => uidsFrom(h, 10_000))).toEqual(from)
    expect(from.every((n) => Number.isInteger(n) && n >= 0 && n < 10_000)).toBe(true)
    expect(new Set(from).size).toBeGreaterThan(180)
  })
  test('the first that is free from there on and around; never one that is taken, never one outside', () => {
    expect(freeUid((n) => n >= 5008, 5000, 10, 8)).toBe(5000)
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(9), { maxLength: 9 }), fc.nat(9), (taken, from) => {
        const uid = freeUid((n) => taken.includes(n - 5000), 5000, 10, from)
        expect(uid >= 5000 && uid < 5010 && !taken.includes(uid - 5000)).toBe(true)
      }),
    )
    expect(thrown(() => freeUid(() => true, 5000, 10, 3)).code).toBe('no_room')
  })
})
