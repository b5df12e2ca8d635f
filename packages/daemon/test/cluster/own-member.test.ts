/** A host's member of etcd gets its vote, wherever its way there was cut off. */
import { fail } from '@wadah/api/fault'
import type { EtcdMember } from '@wadah/store/etcd/admin'
import { StoreError } from '@wadah/store/errors'
import { FakeClock } from '@wadah/store/testing/clock'
import { expect, test } from 'vitest'
import type { Identity } from '../../src/cluster/identity.ts'
import { nextStep, OwnMember } from '../../src/cluster/own-member.ts'
import { A, B } from './kit.ts'

const URL = 'https://192.0.2.2:7446'
const member = (over: Partial<EtcdMember> = {}): EtcdMember => ({
  id: '2',
  name: B,
  peer_urls: [URL],
  client_urls: [],
  learner: true,
  ...over,
})
const FIRST = member({ id: '1', name: A, peer_urls: ['https://192.0.2.1:7446'], learner: false })
const IDENTITY = {
  schema: 1,
  cluster: 'c',
  host: B,
  name: 'h2',
  address: '192.0.2.2',
  ports: { peer: 7444, etcd_client: 7445, etcd_peer: 7446 },
  endpoints: [],
} satisfies Identity
const OURS = { name: B, initial_cluster: `${A}=https://192.0.2.1:7446,${B}=${URL}`, initial_state: 'existing' as const }

/** What outlives a daemon: what etcd knows, what is on the disk, and whether etcd runs. `cut`: the daemon is killed before that. */
class World {
  members: EtcdMember[] = [FIRST]
  identity: Identity = IDENTITY
  runs = false
  lacksEtcd = false
  catchesUp = true
  cut: 'keep' | 'start' | 'promote' | undefined
  asked = 0
  silent = false
  readonly clock = new FakeClock()
  readonly said: string[] = []

  #before(what: World['cut']): void {
    if (this.cut === what) throw new Error('killed')
  }
  daemon(): OwnMember {
    return new OwnMember({
      clock: this.clock,
      log: (line) => this.said.push(line),
      signal: new AbortController().signal,
      etcdLog: '/var/etcd.log',
      identity: () => this.identity,
      keep: async (identity) => {
        this.#before('keep')
        this.identity = identity
      },
      start: async () => {
        this.#before('start')
        if (this.lacksEtcd)
          throw fail('host_lacks', 'etcd is not installed.', { remedy: 'apt-get install etcd-server' })
        // It starts with those that are members, and says its name to them.
        const known = this.identity.member?.initial_cluster.split(',').length
        if (!this.runs && known !== this.members.length) return
        this.runs = true
        this.members = this.members.map((m) => (m.peer_urls[0] === URL ? { ...m, name: B } : m))
      },
      admin: {
        members: async () => {
          this.asked += 1
          if (this.silent) throw new StoreError({ kind: 'timeout', detail: 'etcd did not answer in time' })
          return this.members
        },
        addLearner: async (url) => {
          const there = this.members.find((m) => m.peer_urls.includes(url))
          if (there) return there
          const made = member({ name: '', peer_urls: [url] })
          this.members = [...this.members, made]
          return made
        },
        promote: async (id) => {
          this.#before('promote')
          if (!this.runs || !this.catchesUp)
            throw new StoreError({ kind: 'timeout', detail: 'the new member of etcd did not catch up in 10 s' })
          this.members = this.members.map((m) => (m.id === id ? { ...m, learner: false } : m))
        },
      },
    })
  }
  get votes(): boolean {
    return this.members.some((m) => m.name === B && !m.learner)
  }
}

test.each([
  [false, undefined, 'add'],
  [false, member({ name: '' }), 'add'],
  [true, member({ name: '' }), 'start'],
  [true, member(), 'promote'],
  [true, member({ learner: false }), 'nothing'],
  [true, undefined, 'unknown'],
] as const)('of one that is written down (%s) and is so in etcd (%o) next comes %s', (written, mine, step) =>
  expect(nextStep(written, mine)).toBe(step),
)

test('one that is not to have a member asks nothing', async () => {
  const world = new World()
  await world.daemon().see(false)
  expect([world.asked, world.members]).toEqual([0, [FIRST]])
})

test('a host that is given a member has a vote at once; one that has it is looked at once in the life of its daemon', async () => {
  const world = new World()
  await world.daemon().see(true)
  expect(world.votes).toBe(true)
  expect(world.identity.member).toEqual(OURS)
  expect(world.said).toEqual(['this host keeps a copy of the store'])
  const next = world.daemon()
  world.asked = 0
  for (let i = 0; i < 5; i++) await next.see(true)
  expect(world.asked).toBe(1)
  expect(world.said).toHaveLength(1)
})

test.each(['keep', 'start', 'promote'] as const)(
  'killed before %s it gets its vote from the next daemon',
  async (cut) => {
    const world = new World()
    world.cut = cut
    await world.daemon().see(true)
    expect(world.votes).toBe(false)
    world.cut = undefined
    await world.daemon().see(true)
    expect(world.votes).toBe(true)
  },
)

test('a learner of an earlier daemon is started and promoted', async () => {
  const world = new World()
  world.members = [FIRST, member()]
  world.identity = { ...IDENTITY, member: OURS }
  await world.daemon().see(true)
  expect([world.runs, world.votes]).toEqual([true, true])
})

test('one that never started begins with the members there are by then', async () => {
  const world = new World()
  world.cut = 'start'
  await world.daemon().see(true)
  const third = member({ id: '3', name: 'host-cccccccccc', peer_urls: ['https://192.0.2.3:7446'], learner: false })
  world.members = [...world.members, third]
  world.cut = undefined
  await world.daemon().see(true)
  expect(world.identity.member?.initial_cluster.split(',')).toHaveLength(3)
  expect(world.votes).toBe(true)
})

test('without etcd it is tried again, ever more seldom; what is wrong is said once, and shown when it lasts', async () => {
  const world = new World()
  world.lacksEtcd = true
  const own = world.daemon()
  const at: number[] = []
  const from_ms = world.clock.monotonic_ms()
  for (let s = 0; s <= 300; s += 5) {
    const before = world.asked
    await own.see(true)
    if (world.asked > before) at.push((world.clock.monotonic_ms() - from_ms) / 1000)
    if (s < 60) expect(own.trouble()).toBeUndefined()
    world.clock.advance(5_000)
  }
  expect(at).toEqual([0, 5, 15, 35, 75, 135, 195, 255])
  expect(world.said).toEqual(["this host's copy of the store has no vote yet: etcd is not installed."])
  expect(own.trouble()).toEqual({
    detail:
      'This host is to keep a copy of the store, and for 5 min it has no vote: etcd is not installed. It is tried again by itself.',
    remedy: 'apt-get install etcd-server',
  })
  world.lacksEtcd = false
  world.clock.advance(60_000)
  await own.see(true)
  expect(world.votes).toBe(true)
  expect(own.trouble()).toBeUndefined()
})

test('one that does not catch up in time gets its vote once it has', async () => {
  const world = new World()
  world.catchesUp = false
  const own = world.daemon()
  await own.see(true)
  world.clock.advance(65_000)
  await own.see(true)
  expect(own.trouble()).toMatchObject({
    detail: expect.stringContaining('did not catch up in 10 s'),
    remedy: 'less /var/etcd.log',
  })
  world.catchesUp = true
  world.clock.advance(60_000)
  await own.see(true)
  expect(world.votes).toBe(true)
})

test('of an etcd that does not answer nothing is said of a vote', async () => {
  const world = new World()
  world.silent = true
  world.identity = { ...IDENTITY, member: OURS }
  await expect(world.daemon().see(true)).rejects.toMatchObject({ kind: 'timeout' })
  expect(world.said).toEqual([])
})

test('one that etcd does not know is left alone, and said: its data are those of a member', async () => {
  const world = new World()
  world.identity = { ...IDENTITY, member: OURS }
  await world.daemon().see(true)
  expect(world.members).toEqual([FIRST])
  expect(world.said).toEqual([expect.stringContaining('etcd does not know')])
})
