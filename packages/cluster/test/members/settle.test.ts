/** A host that joins with its VMs: what collides is settled or refused, and what comes of it fits together. */
import { globSync, readFileSync } from 'node:fs'
import { join as pathOf } from 'node:path'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { FATES, othersOf, type Raw } from '../../src/members/brought.ts'
import { copies, settle } from '../../src/members/settle.ts'
import { type HostRecord, indexKeys } from '../../src/records.ts'

const UIDS = { base: 5000, count: 100, from: 0 }
const H1 = 'host-aaaaaaaaaa'
const H2 = 'host-bbbbbbbbbb'
const host = (name = 'h2'): HostRecord => ({ schema: 1, id: H2, name, created_at: '' })
const named = (id: string, name: string) => ({ schema: 1, id, name, project: 'default', created_at: '' })

/** Records as a host's store has them, with their index. */
class Side {
  readonly records: Raw[] = []
  readonly host: string
  constructor(id: string) {
    this.host = id
  }
  put(kind: string, id: string, value: unknown, ...keys: string[]): this {
    this.records.push({ kind, id, value })
    for (const key of keys) this.records.push({ kind: 'index', id: key, value: { schema: 1, holder: id } })
    return this
  }
  network(id: string, name: string, over: object = {}): this {
    const value = { ...named(id, name), kind: 'nat', subnet: '10.1.0.0/24', gateway: '10.1.0.1', state: 'up', ...over }
    return this.put('network', id, value, indexKeys.name('network', 'default', name))
  }
  thing(noun: 'pool' | 'image' | 'firewall-group' | 'volume', id: string, name: string): this {
    return this.put(noun, id, { ...named(id, name), host: this.host }, indexKeys.name(noun, 'default', name))
  }
  vm(
    id: string,
    name: string,
    o: { uid: number; nics?: Nic[]; state?: string; labels?: Record<string, string> },
  ): this {
    const nics = o.nics ?? []
    const value = { ...named(id, name), labels: o.labels ?? {}, spec: { uid: o.uid, nics, disks: [] } }
    const keys = nics.flatMap((n) => [
      indexKeys.mac(n.mac),
      ...(n.address === undefined ? [] : [indexKeys.address(n.network, n.address)]),
    ])
    return this.put('vm/spec', id, value, indexKeys.name('vm', 'default', name), indexKeys.uid(o.uid), ...keys)
      .put('vm/placement', id, { schema: 1, host: this.host, epoch: 1 })
      .put('vm/status', id, { schema: 1, state: o.state ?? 'stopped' })
  }
  snapshot(id: string, vm: string, o: { uid: number; nics?: Nic[] }): this {
    const value = { ...named(id, 'before'), vm, spec: { uid: o.uid, nics: o.nics ?? [], disks: [] } }
    return this.put('snapshot', id, value, indexKeys.snapshot(vm, 'before'))
  }
  rule(id: string, name: string, over: { vms?: string[]; hosts?: string[]; selector?: string } = {}): this {
    const value = { ...named(id, name), kind: 'apart', strict: false, vms: [], hosts: [], ...over }
    return this.put('rule', id, value, indexKeys.name('rule', 'default', name))
  }
  user(id: string, name: string): this {
    return this.put('access/user', id, { schema: 1, name, password: id, scope: 'full', created_ms: 0 }).put(
      'access/user-name',
      name,
      { schema: 1, user: id },
    )
  }
  token(id: string, name: string): this {
    return this.put('access/token', id, { schema: 1, name, scope: 'full', hash: id, created_ms: 0 }).put(
      'access/token-name',
      name,
      { schema: 1, token: id },
    )
  }
}
type Nic = { name: string; network: string; mac: string; address?: string }
const nic = (network: string, n: number, address?: string): Nic => ({
  name: 'net0',
  network,
  mac: `52:54:00:00:00:${n.toString(16).padStart(2, '0')}`,
  ...(address === undefined ? {} : { address }),
})
const join = (there: Side, joining: Side, name?: string) => settle(host(name), joining.records, there.records, UIDS)
const find = (all: readonly Raw[], kind: string, id: string) => all.find((r) => r.kind === kind && r.id === id)?.value
const keys = (s: { index: Raw[] }) => s.index.map((r) => r.id).toSorted()

test('what does not collide comes as it is, and belongs to the host', () => {
  const there = new Side(H1).network('net-aaaaaaaaaa', 'default')
  const joining = new Side(H2)
    .thing('pool', 'pool-bbbbbbbbbb', 'fast')
    .vm('vm-bbbbbbbbbb', 'web', { uid: 5001 })
    .put('vm/secret', 'vm-bbbbbbbbbb', { schema: 1, password: 'x' })
    .put('http/reply', 'r', {})
    .put('host', H2, host())
    .put('job', 'job-bbbbbbbbbb', { schema: 1, id: 'job-bbbbbbbbbb', state: 'done' })
  const done = join(there, joining)
  expect(done).toMatchObject({ refused: [], changes: [] })
  expect(done.records.map((r) => r.kind).toSorted()).toEqual([
    'pool',
    'vm/placement',
    'vm/secret',
    'vm/spec',
    'vm/status',
  ])
  expect(keys(done)).toEqual(['name/pool/default/fast', 'name/vm/default/web', 'uid/5001'])
})

test('the name of a VM, a MAC and an address are refused, each with the command that changes it', () => {
  const there = new Side(H1)
    .network('net-aaaaaaaaaa', 'default')
    .vm('vm-aaaaaaaaaa', 'web', { uid: 5000, nics: [nic('net-aaaaaaaaaa', 1, '10.1.0.11')] })
  const joining = new Side(H2)
    .network('net-bbbbbbbbbb', 'default')
    .vm('vm-bbbbbbbbbb', 'web', { uid: 5001, nics: [nic('net-bbbbbbbbbb', 1)] })
    .vm('vm-cccccccccc', 'db', { uid: 5002, nics: [nic('net-bbbbbbbbbb', 2, '10.1.0.11')] })
  const { refused } = join(there, joining)
  expect(refused.map((r) => r.what)).toEqual([
    'a VM called "web" is in the cluster already',
    'the MAC address 52:54:00:00:00:01 of VM "web" is in use in the cluster',
    'the address 10.1.0.11 of VM "db" is in use in the cluster',
  ])
  expect(refused.map((r) => r.remedy)).toEqual([
    'wadah vm edit web --name web-h2',
    'wadah vm edit web --remove-nic …; then --add-nic …',
    'wadah vm edit db --remove-nic …; then --add-nic …',
  ])
})

test.each(['running', 'paused', 'unknown', 'io-error'])(
  'a VM that is %s keeps its user id, or does not come',
  (state) => {
    const there = new Side(H1).vm('vm-aaaaaaaaaa', 'a', { uid: 5000 })
    const joining = new Side(H2).vm('vm-bbbbbbbbbb', 'b', { uid: 5000, state })
    expect(join(there, joining).refused).toEqual([
      {
        what: 'VM "b" runs as the user id 5000, which a VM of the cluster has',
        remedy: 'wadah vm shutdown b; it gets another when h2 joins, and can be started then',
      },
    ])
  },
)

test('a VM that is stopped gets another user id: its spec, its index and its snapshots say the same one', () => {
  const there = new Side(H1).vm('vm-aaaaaaaaaa', 'a', { uid: 5000 }).vm('vm-dddddddddd', 'd', { uid: 5002 })
  const joining = new Side(H2)
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5000 })
    .snapshot('snap-bbbbbbbbbb', 'vm-bbbbbbbbbb', { uid: 5000 })
    .vm('vm-cccccccccc', 'c', { uid: 5001, state: 'running' })
  const done = join(there, joining)
  expect(done.refused).toEqual([])
  for (const [kind, id] of [
    ['vm/spec', 'vm-bbbbbbbbbb'],
    ['snapshot', 'snap-bbbbbbbbbb'],
  ] as const)
    expect(find(done.records, kind, id)).toMatchObject({ spec: { uid: 5003 } })
  expect(find(done.records, 'vm/spec', 'vm-cccccccccc')).toMatchObject({ spec: { uid: 5001 } })
  expect(find(done.index, 'index', 'uid/5003')).toMatchObject({ holder: 'vm-bbbbbbbbbb' })
  expect(keys(done)).not.toContain('uid/5000')
})

test('a network that is alike becomes the one of the cluster, with its NICs, its snapshots and its addresses', () => {
  const there = new Side(H1).network('net-aaaaaaaaaa', 'default')
  const joining = new Side(H2)
    .network('net-bbbbbbbbbb', 'default')
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1, '10.1.0.12')] })
    .snapshot('snap-bbbbbbbbbb', 'vm-bbbbbbbbbb', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1, '10.1.0.12')] })
  const done = join(there, joining)
  expect(done.refused).toEqual([])
  expect(done.records.some((r) => r.kind === 'network')).toBe(false)
  for (const [kind, id] of [
    ['vm/spec', 'vm-bbbbbbbbbb'],
    ['snapshot', 'snap-bbbbbbbbbb'],
  ] as const)
    expect(find(done.records, kind, id)).toMatchObject({ spec: { nics: [{ network: 'net-aaaaaaaaaa' }] } })
  expect(keys(done)).toContain('address/net-aaaaaaaaaa/10.1.0.12')
  expect(keys(done).filter((k) => k.includes('net-bbbbbbbbbb') || k.startsWith('name/network'))).toEqual([])
})

test('a network that collides is left out when nothing uses it, called otherwise when its addresses are its own, else refused', () => {
  const there = new Side(H1).network('net-aaaaaaaaaa', 'default')
  const other = { subnet: '10.2.0.0/24', gateway: '10.2.0.1' }
  const unused = join(there, new Side(H2).network('net-bbbbbbbbbb', 'default', other))
  expect(unused).toMatchObject({ refused: [], records: [], index: [] })
  expect(unused.changes).toEqual(['network "default" of h2, which no VM uses, is left out'])

  const vm = (s: Side) => s.vm('vm-bbbbbbbbbb', 'b', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1)] })
  const renamed = join(there, vm(new Side(H2).network('net-bbbbbbbbbb', 'default', other)))
  expect(renamed.refused).toEqual([])
  expect(find(renamed.records, 'network', 'net-bbbbbbbbbb')).toMatchObject({ name: 'default-h2', ...other })
  expect(keys(renamed)).toContain('name/network/default/default-h2')

  const wide = { subnet: '10.1.0.0/16', gateway: '10.1.0.1' }
  const overlapping = join(there, vm(new Side(H2).network('net-bbbbbbbbbb', 'lab', wide)))
  expect(overlapping.refused).toMatchObject([{ what: expect.stringContaining('have addresses in common') }])
  expect(join(there, new Side(H2).network('net-bbbbbbbbbb', 'lab', wide)).changes).toHaveLength(1)
})

test.each([
  ['10.1.0.0/24', '10.1.0.0/24', true],
  ['10.1.0.0/24', '10.1.0.128/25', true],
  ['10.1.0.128/25', '10.1.0.0/24', true],
  ['10.0.0.0/8', '10.255.255.0/24', true],
  ['10.1.0.0/24', '10.1.1.0/24', false],
  ['10.1.0.0/25', '10.1.0.128/25', false],
])('subnets %s and %s have addresses in common: %s', (a, b, common) => {
  const there = new Side(H1).network('net-aaaaaaaaaa', 'one', { subnet: a })
  const joining = new Side(H2)
    .network('net-bbbbbbbbbb', 'two', { subnet: b })
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1)] })
  expect(join(there, joining).refused.length > 0).toBe(common)
})

test('a network that only a snapshot goes back to counts as used', () => {
  const there = new Side(H1).network('net-aaaaaaaaaa', 'default')
  const joining = new Side(H2)
    .network('net-bbbbbbbbbb', 'default', { subnet: '10.2.0.0/24' })
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5000 })
    .snapshot('snap-bbbbbbbbbb', 'vm-bbbbbbbbbb', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1)] })
  const done = join(there, joining)
  expect(find(done.records, 'network', 'net-bbbbbbbbbb')).toMatchObject({ name: 'default-h2' })
})

test('pools, images, groups and volumes are called otherwise, with their index', () => {
  const [there, joining] = [new Side(H1), new Side(H2)]
  for (const [noun, id] of [
    ['pool', 'pool'],
    ['image', 'img'],
    ['firewall-group', 'grp'],
    ['volume', 'vol'],
  ] as const) {
    there.thing(noun, `${id}-aaaaaaaaaa`, 'default')
    joining.thing(noun, `${id}-bbbbbbbbbb`, 'default')
  }
  const done = join(there, joining)
  expect(done.records.map((r) => (r.value as { name: string }).name)).toEqual(Array(4).fill('default-h2'))
  expect(keys(done)).toEqual([
    'name/firewall-group/default/default-h2',
    'name/image/default/default-h2',
    'name/pool/default/default-h2',
    'name/volume/default/default-h2',
  ])
  // Nobody calls volumes by their names.
  expect(done.changes).toHaveLength(3)
  expect(find(done.records, 'pool', 'pool-bbbbbbbbbb')).toMatchObject({ host: H2 })
})

test.each([
  ['node-7.Example.COM', 'default-node-7-example-com'],
  ['a'.repeat(63), `default-${'a'.repeat(50)}`],
])('a name made of the host %s can be given on a command line', (name, made) => {
  const there = new Side(H1).thing('pool', 'pool-aaaaaaaaaa', 'default')
  const joining = new Side(H2).thing('pool', 'pool-bbbbbbbbbb', 'default')
  expect(find(join(there, joining, name).records, 'pool', 'pool-bbbbbbbbbb')).toMatchObject({ name: made })
})

test('no new name is one that the host that joins has already', () => {
  const there = new Side(H1)
    .network('net-aaaaaaaaaa', 'lan', { subnet: '10.1.0.0/24' })
    .thing('pool', 'pool-aaaaaaaaaa', 'fast')
  const joining = new Side(H2)
    .network('net-bbbbbbbbbb', 'lan', { subnet: '10.2.0.0/24' })
    .network('net-cccccccccc', 'lan-h2', { subnet: '10.3.0.0/24' })
    .thing('pool', 'pool-bbbbbbbbbb', 'fast')
    .thing('pool', 'pool-cccccccccc', 'fast-h2')
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5000, nics: [nic('net-bbbbbbbbbb', 1), nic('net-cccccccccc', 2)] })
  const done = join(there, joining)
  expect(find(done.records, 'network', 'net-bbbbbbbbbb')).toMatchObject({ name: 'lan-h2-2' })
  expect(find(done.records, 'network', 'net-cccccccccc')).toMatchObject({ name: 'lan-h2' })
  expect(new Set(keys(done)).size).toBe(done.index.length)
})

test('people: a user of the same name stays the one of the cluster; a token of the same name is called otherwise', () => {
  const there = new Side(H1).user('usr-a', 'ann').token('tok-a', 'ci')
  const joining = new Side(H2)
    .user('usr-b', 'ann')
    .user('usr-c', 'bob')
    .token('tok-b', 'ci')
    .token('tok-c', 'ci-h2')
    .token('tok-d', 'backup')
  const done = join(there, joining)
  expect(done.records.map((r) => [r.id, (r.value as { name: string }).name])).toEqual([
    ['usr-c', 'bob'],
    ['tok-b', 'ci-h2-2'],
    ['tok-c', 'ci-h2'],
    ['tok-d', 'backup'],
  ])
  // By these they are found: who logs in says a name.
  expect(done.index).toEqual([
    { kind: 'access/user-name', id: 'bob', value: { schema: 1, user: 'usr-c' } },
    { kind: 'access/token-name', id: 'ci-h2-2', value: { schema: 1, token: 'tok-b' } },
    { kind: 'access/token-name', id: 'ci-h2', value: { schema: 1, token: 'tok-c' } },
    { kind: 'access/token-name', id: 'backup', value: { schema: 1, token: 'tok-d' } },
  ])
  expect(done.changes).toEqual([
    'the user "ann" of h2 is the cluster\'s "ann" from now on',
    // Who comes along is said, with what they may.
    'the user "bob" of h2 may do all there is in the cluster from now on',
    'token "ci" of h2 is called "ci-h2-2" from now on',
    'the token "ci-h2-2" of h2 may do all there is in the cluster from now on',
    'the token "ci-h2" of h2 may do all there is in the cluster from now on',
    'the token "backup" of h2 may do all there is in the cluster from now on',
  ])
})

test('a name that the cluster gave is no leftover of an earlier try, though the joining host has the same', () => {
  const there = new Side(H1).user('usr-a', 'ann').token('tok-a', 'ci')
  const joining = new Side(H2).user('usr-b', 'ann').token('tok-b', 'ci')
  expect(othersOf(joining.records, there.records)).toEqual(there.records)
  const tried = new Side(H2).user('usr-b', 'ann').rule('rule-b', 'near')
  expect(othersOf(tried.records, [...there.records, ...tried.records])).toEqual(there.records)
})

test('rules come along with their members; one of the same name is called otherwise', () => {
  const there = new Side(H1).rule('rule-aaaaaaaaaa', 'spread')
  const joining = new Side(H2)
    .vm('vm-bbbbbbbbbb', 'web', { uid: 5001 })
    .rule('rule-bbbbbbbbbb', 'spread', { vms: ['vm-bbbbbbbbbb'] })
    .rule('rule-cccccccccc', 'licence', { vms: ['vm-bbbbbbbbbb'], hosts: [H2] })
  const done = join(there, joining)
  expect(done.refused).toEqual([])
  expect(find(done.records, 'rule', 'rule-bbbbbbbbbb')).toMatchObject({ name: 'spread-h2', vms: ['vm-bbbbbbbbbb'] })
  expect(find(done.records, 'rule', 'rule-cccccccccc')).toMatchObject({ name: 'licence', hosts: [H2] })
  expect(find(done.index, 'index', 'name/rule/default/spread-h2')).toMatchObject({ holder: 'rule-bbbbbbbbbb' })
  expect(done.changes).toEqual(['rule "spread" of h2 is called "spread-h2" from now on'])
})

test('a rule that chooses VMs by their labels, and finds some of the other side, is named', () => {
  const labels = { role: 'web' }
  const there = new Side(H1)
    .rule('rule-aaaaaaaaaa', 'all', { selector: 'role=web' })
    .vm('vm-aaaaaaaaaa', 'a', { uid: 5000, labels })
  const joining = new Side(H2)
    .rule('rule-bbbbbbbbbb', 'mine', { selector: 'role=web' })
    .rule('rule-cccccccccc', 'other', { selector: 'role=db' })
    .vm('vm-bbbbbbbbbb', 'b', { uid: 5001, labels })
    .vm('vm-cccccccccc', 'c', { uid: 5002 })
  expect(join(there, joining).changes).toEqual([
    'the rule "mine" of h2 is for VMs of the cluster too from now on: a',
    'the cluster\'s rule "all" is for VMs of h2 too from now on: b',
  ])
})

test('a key whose record does not come is not taken', () => {
  const there = new Side(H1).vm('vm-aaaaaaaaaa', 'web', { uid: 5000 })
  const stale = [indexKeys.name('rule', 'default', 'gone'), indexKeys.name('vm', 'default', 'web'), indexKeys.uid(5000)]
  const joining = new Side(H2).put('network/down', `net-b/${H2}`, {}, ...stale)
  for (const r of joining.records) if (r.kind === 'index') r.value = { schema: 1, holder: 'vm-gone' }
  expect(join(there, joining)).toEqual({ refused: [], changes: [], index: [], records: [] })
})

test('records of a kind that is not known here stay behind, and that is said once', () => {
  const joining = new Side(H2)
    .put('quota', 'quo-b', named('quo-b', 'x'), 'name/quota/default/x')
    .put('quota', 'quo-c', named('quo-c', 'y'))
  expect(join(new Side(H1), joining)).toEqual({
    refused: [],
    changes: ['the cluster does not know records of the kind "quota": 2 of h2 stay behind'],
    index: [],
    records: [],
  })
})

test('of each kind of record it is written down what becomes of it when its host joins', () => {
  const root = pathOf(import.meta.dirname, '../../..')
  const kinds: string[] = []
  for (const file of globSync('*/src/**/*.ts', { cwd: root })) {
    if (file.includes('testing')) continue
    const text = readFileSync(pathOf(root, file), 'utf8')
    for (const [, name, is = ''] of text.matchAll(/const (\w+): Kind<.+> = (.*)/g)) {
      const kind = /^\{ name: '([^']+)'/.exec(is)?.[1]
      // Another name for a kind that is declared elsewhere.
      if (kind === undefined) expect(is, `${file}: ${name} is a kind that this test can't read`).toMatch(/^\w+Kind$/)
      else kinds.push(kind)
    }
  }
  expect(kinds.toSorted()).toEqual([...FATES.keys()].toSorted())
})

test('a job that is under way is waited for first', () => {
  const job = { schema: 1, id: 'job-bbbbbbbbbb', name: 'vm.create', state: 'running' }
  expect(join(new Side(H1), new Side(H2).put('job', job.id, job)).refused).toEqual([
    { what: 'the job job-bbbbbbbbbb (vm.create) is under way', remedy: 'wadah job wait job-bbbbbbbbbb' },
  ])
})

test('the copy of a VM or pool that another host has is refused; what an earlier try of the same host wrote is not', () => {
  const there = new Side(H1).thing('pool', 'pool-aaaaaaaaaa', 'p').vm('vm-aaaaaaaaaa', 'web', { uid: 5000 })
  expect(copies(H2, there.records, there.records).map((r) => r.what)).toEqual([
    `the pool "p" (pool-aaaaaaaaaa) is in the cluster already, on the host ${H1}: this host has a copy of its record`,
    `the VM "web" (vm-aaaaaaaaaa) is in the cluster already, on the host ${H1}: this host has a copy of its record`,
  ])
  expect(copies(H1, there.records, there.records)).toEqual([])
  expect(copies(H2, new Side(H2).vm('vm-bbbbbbbbbb', 'web', { uid: 5000 }).records, there.records)).toEqual([])
})

// ---- properties

const NETS = ['10.1.0.0/24', '10.2.0.0/24', '10.1.0.0/16']
const NAMES = ['a', 'a-h2', 'b', 'default']
/** A store that fits together: names, MACs, addresses and user ids are each held once. */
const side = (id: string, letter: string) =>
  fc
    .record({
      networks: fc.uniqueArray(fc.record({ name: fc.constantFrom(...NAMES), subnet: fc.constantFrom(...NETS) }), {
        selector: (n) => n.name,
        maxLength: 3,
      }),
      things: fc.uniqueArray(
        fc.record({
          noun: fc.constantFrom('pool' as const, 'image' as const, 'firewall-group' as const, 'volume' as const),
          name: fc.constantFrom(...NAMES),
        }),
        { selector: (t) => t.noun + t.name, maxLength: 6 },
      ),
      users: fc.uniqueArray(fc.constantFrom('ann', 'bob', `${letter}`), { maxLength: 3 }),
      tokens: fc.uniqueArray(fc.constantFrom('ci', 'ci-h2', `${letter}`), { maxLength: 3 }),
      rules: fc.uniqueArray(
        fc.record({
          name: fc.constantFrom('spread', 'spread-h2', 'near'),
          vms: fc.array(fc.nat(2), { maxLength: 2 }),
          selector: fc.option(fc.constantFrom('role=web', 'role=db'), { nil: undefined }),
          here: fc.boolean(),
        }),
        { selector: (r) => r.name, maxLength: 3 },
      ),
      vms: fc.uniqueArray(
        fc.record({
          role: fc.constantFrom('web', 'db', 'none'),
          name: fc.constantFrom(`${letter}1`, `${letter}2`, 'same'),
          uid: fc.integer({ min: 5000, max: 5004 }),
          mac: fc.integer({ min: 0, max: 40 }),
          network: fc.nat(5),
          address: fc.option(fc.integer({ min: 20, max: 24 }), { nil: undefined }),
          state: fc.constantFrom('stopped', 'running', 'absent'),
          snapshot: fc.boolean(),
        }),
        { selector: (v) => v.uid, maxLength: 3 },
      ),
    })
    .map(({ networks, things, vms, users, tokens, rules }) => {
      const s = new Side(id)
      const text = (n: number) => `${letter.repeat(9)}${'abcdefghij'[n]}`
      networks.forEach((n, i) => s.network(`net-${text(i)}`, n.name, { subnet: n.subnet }))
      const prefix = { pool: 'pool', image: 'img', 'firewall-group': 'grp', volume: 'vol' }
      things.forEach((t, i) => s.thing(t.noun, `${prefix[t.noun]}-${text(i)}`, t.name))
      users.forEach((name, i) => s.user(`usr-${text(i)}`, name))
      tokens.forEach((name, i) => s.token(`tok-${text(i)}`, name))
      const taken = new Set<string>()
      const made: string[] = []
      vms.forEach((v, i) => {
        const on = networks.length === 0 ? undefined : v.network % networks.length
        const n =
          on === undefined ? undefined : nic(`net-${text(on)}`, v.mac, v.address ? `10.1.0.${v.address}` : undefined)
        const wanted = [v.name, n?.mac ?? '', `${n?.network} ${n?.address}`].filter((x) => x !== '')
        if (wanted.some((w) => taken.has(w))) return
        for (const w of wanted) taken.add(w)
        const nics = n ? [n] : []
        s.vm(`vm-${text(i)}`, v.name, { uid: v.uid, nics, state: v.state, labels: { role: v.role } })
        made.push(`vm-${text(i)}`)
        if (v.snapshot) s.snapshot(`snap-${text(i)}`, `vm-${text(i)}`, { uid: v.uid, nics })
      })
      rules.forEach((r, i) =>
        s.rule(`rule-${text(i)}`, r.name, {
          vms: r.vms.flatMap((n) => made[n] ?? []),
          hosts: r.here ? [id] : [],
          ...(r.selector === undefined ? {} : { selector: r.selector }),
        }),
      )
      return s
    })

function check(all: readonly Raw[]): void {
  const index = all.filter((r) => r.kind === 'index')
  expect(new Set(index.map((r) => r.id)).size).toBe(index.length)
  const of = new Map(all.filter((r) => r.kind !== 'index').map((r) => [r.id, r]))
  for (const { id: key, value } of index) {
    const holder = (value as { holder: string }).holder
    const record = all.find((r) => r.id === holder && (r.value as { name?: string }).name !== undefined)
    expect(record, `${key} is held by ${holder}`).toBeDefined()
    if (key.startsWith('name/'))
      expect(key.split('/').at(-1)).toBe((record?.value as { name: string } | undefined)?.name)
    if (key.startsWith('uid/')) expect(record?.value).toMatchObject({ spec: { uid: Number(key.slice(4)) } })
  }
  const held = new Set(index.map((r) => r.id))
  const nouns = {
    pool: 'pool',
    image: 'image',
    'firewall-group': 'firewall-group',
    volume: 'volume',
    network: 'network',
    rule: 'rule',
  }
  checkPeople(all)
  for (const { kind, value } of all) {
    const v = value as { name: string; vm: string; spec: { uid: number; nics: Nic[] } }
    if (kind in nouns) expect(held).toContain(indexKeys.name(kind as 'pool', 'default', v.name))
    if (kind === 'rule') {
      const { vms, hosts } = value as { vms: string[]; hosts: string[] }
      expect(vms.filter((vm) => of.get(vm)?.kind === undefined)).toEqual([])
      expect(hosts.filter((id) => id !== H1 && id !== H2)).toEqual([])
    }
    if (kind !== 'vm/spec' && kind !== 'snapshot') continue
    for (const n of v.spec.nics) expect(of.get(n.network)?.kind, n.network).toBe('network')
    if (kind === 'snapshot')
      expect(all.find((r) => r.kind === 'vm/spec' && r.id === v.vm)?.value).toMatchObject({ spec: { uid: v.spec.uid } })
    if (kind !== 'vm/spec') continue
    expect(held).toContain(indexKeys.uid(v.spec.uid))
    for (const n of v.spec.nics) {
      expect(held).toContain(indexKeys.mac(n.mac))
      if (n.address !== undefined) expect(held).toContain(indexKeys.address(n.network, n.address))
    }
  }
}

/** Each has its name, each name has the one whose it is, and none is given twice. */
function checkPeople(all: readonly Raw[]): void {
  for (const of of ['user', 'token'] as const) {
    const records = all.filter((r) => r.kind === `access/${of}`)
    const names = all.filter((r) => r.kind === `access/${of}-name`)
    const pairs = (list: (string | undefined)[][]) => list.map((p) => p.join(' ')).toSorted()
    expect(pairs(names.map((n) => [n.id, (n.value as Record<string, string>)[of]]))).toEqual(
      pairs(records.map((r) => [(r.value as { name: string }).name, r.id])),
    )
    expect(new Set(names.map((n) => n.id)).size).toBe(names.length)
  }
}

/** What did not come along though it should: all but networks, and users that the cluster has. A rule is what it was, but for its name. */
function missing(joining: readonly Raw[], there: readonly Raw[], now: readonly Raw[]): string[] {
  const [after, before] = [now, there].map((all) => new Map(all.map((r) => [`${r.kind}/${r.id}`, r.value])))
  const but = (value: unknown) => JSON.stringify({ ...(value as object), name: '' })
  return joining.flatMap(({ kind, id, value }) => {
    const is = after?.get(`${kind}/${id}`)
    const { name } = value as { name: string }
    if (['network', 'index', 'access/user-name', 'access/token-name'].includes(kind)) return []
    if (kind === 'access/user' && before?.has(`access/user-name/${name}`)) return []
    return is === undefined || (kind === 'rule' && but(is) !== but(value)) ? [`${kind} ${id}`] : []
  })
}

test('whatever two stores hold, what comes of a join that is not refused fits together; a second try makes the same', () => {
  fc.assert(
    fc.property(side(H1, 'c'), side(H2, 'd'), (there, joining) => {
      check(there.records)
      check(joining.records)
      const first = join(there, joining)
      if (first.refused.length > 0) return
      const now = [...there.records, ...first.index, ...first.records]
      check(now)
      const others = othersOf(joining.records, now)
      expect(settle(host(), joining.records, others, UIDS)).toEqual(first)
      expect(missing(joining.records, there.records, now)).toEqual([])
      expect(copies(H2, joining.records, now)).toEqual([])
    }),
    { numRuns: 1000 },
  )
})
