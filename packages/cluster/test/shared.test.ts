/** A pool that is said to be shared: what is found out before anything relies on it, and in which words it is refused. */
import type { WadahError } from '@wadah/api/fault'
import type { SharedPools } from '@wadah/ports/volumes'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { Deps } from '../src/context.ts'
import { aliveKind } from '../src/members/records.ts'
import { hostKind } from '../src/records.ts'
import { judgeLook, LAST_TURN, remedyOf, takeTurn } from '../src/storage/fresh.ts'
import { answerPool, checkShared, type PoolAnswer, seesShared } from '../src/storage/shared.ts'
import { type Cache, client, HOSTS, POOL, server } from './kit/shared-pool.ts'
import { record, viewOf } from './members/view.ts'

type Way = Parameters<typeof checkShared>[0]
/** A cluster of hosts with a client each; the first is asked for the pool. */
function cluster(clients: SharedPools[], asks?: (answer: PoolAnswer) => PoolAnswer) {
  const view = viewOf(
    clients.flatMap((_, i) => [
      record(hostKind, HOSTS[i] as string, { name: `h${i + 1}` }),
      record(aliveKind, HOSTS[i] as string, {}),
    ]),
  )
  const deps = clients.map((shared, i) => ({
    view,
    hostId: HOSTS[i] as string,
    randomBytes: (n: number) => new Uint8Array(n).fill(7),
    machine: { volumes: { shared } },
    askHost: async (host: string, _path: string, body: unknown) => {
      const answer = await answerPool(deps[HOSTS.indexOf(host)] as unknown as Deps, JSON.parse(JSON.stringify(body)))
      return asks ? asks(answer) : answer
    },
  }))
  return deps[0] as unknown as Way
}
const refusal = async (way: Way) =>
  await checkShared(way, POOL).then(
    () => undefined,
    (error: WadahError) => error.fault,
  )

test('hosts that read at once what others write: it is taken, with its mark and nothing else in it', async () => {
  const s = server()
  const clients = [client(s), client(s), client(s)]
  const way = cluster(clients)
  const { mark, tried } = await checkShared(way, POOL)
  expect(tried).toEqual(Object.fromEntries(HOSTS.map((h) => [h, 'nfs a'])))
  expect([...s.marks]).toEqual([['pool', mark]])
  expect(await seesShared(way, POOL, mark)).toBe(true)
  expect(s.files.size + s.locks.size).toBe(0)
  expect(clients.map((c) => c.open.size)).toEqual([0, 0, 0])
})

test.each<[string, Cache, number, RegExp]>([
  [
    'the file is open',
    { kept: true },
    1,
    /flushed is not read at once on h2, but what was there before \(by whoever has the file open already/,
  ],
  [
    'it is opened',
    { anew: true },
    1,
    /on h2, but what was there before \(by whoever opens the file then, fuse\.glusterfs there/,
  ],
  [
    'either',
    { kept: true, anew: true },
    2,
    /What h1 has written .* on h3, but what was there before \(whether the file is open/,
  ],
  ['this very host', { anew: true }, 0, /What h2 has written to a file in \/srv\/common .* not read at once on h1/],
  ['now and then', { kept: true, only_after: 7 }, 1, /not read at once on h2/],
  ['its length', { length: true }, 1, /on h2, but a file as short as before/],
])('a client that reads from a cache is refused: %s', async (_what, cache, which, words) => {
  const s = server()
  const clients = [0, 1, 2].map((i) => client(s, i === which ? cache : {}))
  const fault = await refusal(cluster(clients))
  expect(fault).toMatchObject({ code: 'wrong_state', effect: 'none', field: '/path' })
  expect(fault?.detail).toMatch(words)
  expect(fault?.remedy).toMatch(
    cache.length ? /stat-prefetch off; and mount .* attribute-timeout=0/ : /gluster volume set VOLUME group virt/,
  )
  expect(s.marks.size + s.files.size + s.locks.size).toBe(0)
  // The other closes what it has open by itself, within a minute.
  expect(clients[0]?.open.size).toBe(0)
})

test('a host that is of an earlier release, which knows no turns, is named', async () => {
  const s = server()
  const fault = await refusal(cluster([client(s), client(s)], ({ found, free }) => ({ found, free })))
  expect(fault?.detail).toMatch(/h2 runs a wadahd that can't try/)
  expect(s.marks.size).toBe(0)
})

test('locks that are not seen, and another folder, are refused before', async () => {
  const s = server()
  expect((await refusal(cluster([client(s), client(s, { kept: true }, false)])))?.detail).toMatch(
    /lock .* not seen on h2/,
  )
  expect((await refusal(cluster([client(s), client(server())])))?.detail).toMatch(/another folder on h2 than on h1/)
})

test('what is judged: whatever turn, only what that turn wrote is right', async () => {
  const seen = (length: number, ...texts: string[]) => ({ length, kept: texts, anew: texts, mounted: 'ext4' })
  fc.assert(
    fc.property(fc.nat({ max: LAST_TURN }), fc.nat({ max: LAST_TURN }), (turn, other) => {
      const wrong = judgeLook('m', turn, seen(other + 2, `m ${other}`, `m ${other}`))
      expect(wrong === undefined).toBe(turn === other)
    }),
  )
  expect(judgeLook('m', 3, seen(5, 'm 3', ''))).toMatchObject({ what: 'length' })
  expect(judgeLook('m', 3, seen(4, 'm 3', 'm 3'))).toMatchObject({ what: 'length', by: 'both' })
  expect(judgeLook('m', 3, { ...seen(5, 'm 3', 'm 3'), kept: ['m 2', 'm 3'] })).toMatchObject({
    by: 'kept',
    what: 'content',
  })
})

test('in the last turn it is looked only, and where something is old nothing is written', async () => {
  const s = server()
  s.marks.set('f', '')
  const [a, b] = [client(s), client(s, { kept: true })]
  expect(await takeTurn(a, POOL, 'f', 'm', 0)).toBeUndefined()
  await b.look(POOL, 'f', [0])
  expect(await takeTurn(a, POOL, 'f', 'm', 1)).toBeUndefined()
  const before = [...(s.files.get('f') ?? [])]
  expect(await takeTurn(b, POOL, 'f', 'm', 2)).toMatchObject({ by: 'kept' })
  expect(s.files.get('f')).toEqual(before)
})

test.each([
  ['nfs4', 'content', 'noac'],
  ['nfs', 'length', 'nocto'],
  ['fuse.sshfs', 'content', 'client caches neither contents nor attributes'],
] as const)('the remedy for %s', (mounted, what, words) => expect(remedyOf(mounted, what)).toContain(words))
