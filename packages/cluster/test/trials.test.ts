/** A host that comes to a shared pool later tries it with one that has it, and is told apart from those that passed. */
import { FakeClock } from '@wadah/store/testing/clock'
import { CachedView } from '@wadah/store/cache'
import { del, put, type Store } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Deps } from '../src/context.ts'
import { aliveKind, type FactsRecord, factsKind } from '../src/members/records.ts'
import { snapshotOf } from '../src/members/scheduling.ts'
import { hostKind, poolKind, type PoolRecord, type VmRecord, volumeKind } from '../src/records.ts'
import { findPool } from '../src/storage/find-pool.ts'
import { poolsProven, refusedOn, whyNot } from '../src/storage/proven.ts'
import { answerPool } from '../src/storage/shared.ts'
import { PoolTrials } from '../src/storage/trials.ts'
import { client, HOSTS, type Server, server } from './kit/shared-pool.ts'

const [A, B, C] = HOSTS as [string, string, string]
const ID = 'pool-aaaaaaaaaa'
const pool = (tried?: Record<string, string>): PoolRecord => ({
  schema: 1,
  id: ID,
  name: 'common',
  project: 'default',
  created_at: '2026-01-01T00:00:00.000Z',
  kind: 'dir',
  path: '/srv/common',
  overcommit: 1,
  direct_io: true,
  host: A,
  shared: true,
  mark: 'm',
  ...(tried ? { tried } : {}),
})

let store: Store
let s: Server
let clock: FakeClock
let ends: (() => Promise<void>)[]
beforeEach(() => {
  store = openMemoryStore()
  s = server()
  s.marks.set('pool', 'm')
  clock = new FakeClock()
  ends = []
})
afterEach(async () => {
  for (const end of ends) await end()
  await store.close()
})

const hosts = new Map<string, { deps: Deps; shared: ReturnType<typeof client> }>()
const silent = new Set<string>()
let asked: string[] = []
beforeEach(() => {
  hosts.clear()
  silent.clear()
  asked = []
})
const write = async (...writes: Parameters<Store['txn']>[1]) => {
  const done = await store.txn([], writes, `w${Math.random()}`)
  for (const { deps } of hosts.values()) if (done.ok) await deps.view.waitFor(done.revision)
}

/** A host of the cluster, with a client of the file system; its daemon begins with `begin`. */
async function host(id: string, shared = client(s)) {
  const view = await CachedView.open(store, {})
  const deps = {
    store,
    view,
    hostId: id,
    clock,
    randomBytes: (n: number) => crypto.getRandomValues(new Uint8Array(n)),
    machine: { volumes: { shared } },
    log: () => undefined,
    askHost: async (to: string, _path: string, body: unknown) => {
      asked.push(to)
      const there = hosts.get(to)
      if (!there || silent.has(to)) throw Object.assign(new Error(`${to} does not answer`))
      return await answerPool(there.deps, JSON.parse(JSON.stringify(body)))
    },
  } as unknown as Deps
  hosts.set(id, { deps, shared })
  await write(
    put(hostKind, id, { schema: 1, id, name: `h${HOSTS.indexOf(id) + 1}`, created_at: '' }),
    put(aliveKind, id, { schema: 1, host: id, since_ms: 0 }),
  )
  ends.push(() => view.close())
  return { deps, shared, begin: () => begin(deps) }
}

/** What the daemon does: looks now and then, and whenever there is news, and writes what it found into its facts. */
function begin(deps: Deps) {
  const over = new AbortController()
  let news = 0
  const trials = new PoolTrials(deps, over.signal, () => void news++)
  const look = async () => {
    const { pools, refused } = await trials.look()
    const facts = {
      schema: 1,
      pools,
      networks: [],
      ...(Object.keys(refused).length > 0 ? { pools_refused: refused } : {}),
    }
    await write(put(factsKind, deps.hostId, facts as unknown as FactsRecord))
    return pools.includes(ID)
  }
  ends.push(async () => over.abort())
  return {
    look,
    end: () => over.abort(),
    /** Looks until something came of what it tried. */
    async settled(): Promise<boolean> {
      const before = news
      await look()
      await expect.poll(() => news, { timeout: 5_000 }).toBeGreaterThan(before)
      return await look()
    },
  }
}
const recorded = async () => (await store.get(poolKind, ID))?.value.tried
const says = async (id: string) => {
  const { view } = (hosts.get(id) as { deps: Deps }).deps
  return whyNot(view, id, view.get(poolKind, ID)?.value as PoolRecord)
}

test('made when its host was alone: who joins then tries it with that one, and may use it', async () => {
  const a = await host(A)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a' })))
  expect(await a.begin().settled()).toBe(true)
  expect(asked).toEqual([])
  const b = await host(B)
  const daemon = b.begin()
  expect(await daemon.look()).toBe(false)
  expect(await daemon.settled()).toBe(true)
  expect(new Set(asked)).toEqual(new Set([A]))
  expect(await recorded()).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
  expect(await says(B)).toBeUndefined()
  // Nothing is left behind, and looking on tries nothing more.
  expect([...s.marks.keys()]).toEqual(['pool'])
  asked = []
  await daemon.look()
  expect(asked).toEqual([])
})

test('whose locks do not hold gets no VM there, is told why, and what is mounted anew is tried again', async () => {
  const a = await host(A)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a' })))
  await a.begin().settled()
  const b = await host(B)
  a.shared.locks.seen = false
  const daemon = b.begin()
  expect(await daemon.settled()).toBe(false)
  expect(await says(B)).toMatchObject({
    detail: expect.stringMatching(
      /"common" was tried on h2 with h1, and may not be used there: A lock that h2 holds .* not seen on h1/,
    ),
    remedy: expect.stringMatching(/nolock.*wadah pool show common/),
  })
  const { view } = b.deps
  const record = view.get(poolKind, ID)?.value as PoolRecord
  expect(refusedOn(view, record).map((r) => r.host)).toEqual(['h2'])
  expect(() => findPool(b.deps, 'default', ID, '/pool')).toThrow(/not seen on h1/)
  const seen = snapshotOf(view, { now_ms: 0, memory_overcommit: 1 }).hosts
  expect(seen.map((h) => [h.name, h.pools.length, Object.keys(h.pools_refused ?? {})])).toEqual([
    ['h1', 1, []],
    ['h2', 0, [ID]],
  ])
  // Who had it goes on.
  expect(await says(A)).toBeUndefined()
  a.shared.locks.seen = true
  Object.assign(b.shared.at, { which: '2' })
  expect(await daemon.settled()).toBe(true)
  expect(await recorded()).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
})

test('what failed is tried again by itself', async () => {
  await host(A)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a' })))
  const b = await host(B, client(s, { length: true }))
  const daemon = b.begin()
  expect(await daemon.settled()).toBe(false)
  expect((await says(B))?.detail).toMatch(/a file as short as before/)
  delete b.shared.cache.length
  await expect.poll(() => clock.waiting).toBe(1)
  clock.advance(60_000)
  await expect.poll(recorded).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
})

test('one that does not answer is asked again later; until then the pool is not used', async () => {
  await host(A)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a' })))
  const b = await host(B)
  silent.add(A)
  const daemon = b.begin()
  expect(await daemon.settled()).toBe(false)
  expect((await says(B))?.detail).toMatch(/could not be tried on h2 yet .*h1/)
  expect(await recorded()).toEqual({ [A]: 'nfs a' })
  await write(del(aliveKind, A))
  asked = []
  await expect.poll(() => clock.waiting).toBe(1)
  clock.advance(2_000)
  await expect.poll(() => clock.next_ms()).toBe(4_000)
  expect(asked).toEqual([])
  expect(await daemon.look()).toBe(false)
  expect((await says(B))?.detail).toMatch(/h1: down/)
  silent.clear()
  await write(put(aliveKind, A, { schema: 1, host: A, since_ms: 0 }))
  clock.advance(4_000)
  await expect.poll(recorded).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
})

test('of two partners one that is wrong itself is not believed', async () => {
  await host(A, client(s, {}, false))
  await write(put(poolKind, ID, pool({ [A]: 'nfs a', [C]: 'nfs a' })))
  await host(C)
  const b = await host(B)
  expect(await b.begin().settled()).toBe(true)
})

test('a partner on which it is not mounted says nothing about the host that asks', async () => {
  const nothing = server()
  await host(A, client(nothing))
  const b = await host(B)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a', [B]: 'nfs a' })))
  expect(await b.begin().settled()).toBe(true)
  expect(await recorded()).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
  expect(asked).toContain(A)
})

test('a store that is away for a while does not end the trial', async () => {
  await host(A)
  const b = await host(B)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a' })))
  const { store: whole } = b.deps
  let away = true
  Object.assign(b.deps, {
    store: new Proxy(whole, {
      get: (of, key) => {
        if (away && key === 'get') return async () => Promise.reject(new Error('the store is away'))
        const value = Reflect.get(of, key) as unknown
        return typeof value === 'function' ? value.bind(of) : value
      },
    }),
  })
  const daemon = b.begin()
  expect(await daemon.settled()).toBe(false)
  away = false
  clock.advance(4_000)
  expect(await daemon.settled()).toBe(true)
})

test('something else that is mounted is tried before it is used: before the first look, and at the start of a VM too', async () => {
  await host(A)
  const b = await host(B)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a', [B]: 'nfs a' })))
  const disk = { id: 'vol-aaaaaaaaaa', name: 'root', pool: ID, format: 'qcow2', size_bytes: 1 }
  await write(put(volumeKind, disk.id, disk as never))
  const vm = { name: 'web', spec: { disks: [{ name: 'root', volume: disk.id }] } } as unknown as VmRecord
  await poolsProven(b.deps, vm)
  Object.assign(b.shared.at, { what: 'nfs a nolock', which: '2' })
  await expect(poolsProven(b.deps, vm, 0)).rejects.toThrow(/was not tried on h2 with what is mounted there now/)
  // As after a start of the host: it is tried in a moment, and a start waits for that.
  const waits = poolsProven(b.deps, vm)
  const daemon = b.begin()
  expect(await daemon.look()).toBe(false)
  expect(await daemon.settled()).toBe(true)
  expect(await recorded()).toEqual({ [A]: 'nfs a', [B]: 'nfs a nolock' })
  clock.advance(1_000)
  await waits
})

test('a daemon that begins tries again what passed, and goes on meanwhile; what is wrong now is refused', async () => {
  await host(A)
  const b = await host(B)
  await write(put(poolKind, ID, pool({ [A]: 'nfs a', [B]: 'nfs a' })))
  b.shared.cache.anew = true
  const daemon = b.begin()
  expect(await daemon.look()).toBe(true)
  expect(await daemon.settled()).toBe(false)
  expect((await says(B))?.detail).toMatch(/with h1, and may not be used there/)
  daemon.end()
  // The next one says the same from the first moment.
  const next = b.begin()
  expect(await next.look()).toBe(false)
  expect((await says(B))?.detail).toMatch(/with h1, and may not be used there/)
})

test('a pool of before there were trials: who has it goes on, one of them counts, the others are tried with that one', async () => {
  const [a, b] = [await host(A), await host(B)]
  const facts = { schema: 1, pools: [ID], networks: [] } as unknown as FactsRecord
  await write(put(poolKind, ID, pool()), put(factsKind, A, facts), put(factsKind, B, facts))
  const late = b.begin()
  silent.add(A)
  expect(await late.settled()).toBe(true)
  expect(await recorded()).toBeUndefined()
  // It made it: nobody is asked.
  asked = []
  expect(await a.begin().settled()).toBe(true)
  expect(asked).toEqual([])
  expect(await recorded()).toEqual({ [A]: 'nfs a' })
  silent.clear()
  clock.advance(2_000)
  await expect.poll(recorded).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
})

test('a host of an earlier release is as before: it says what it reaches, and others are tried with it', async () => {
  await host(A)
  const facts = { schema: 1, pools: [ID], networks: [] } as unknown as FactsRecord
  await write(put(poolKind, ID, pool()), put(factsKind, A, facts))
  const b = await host(B)
  expect(await b.begin().settled()).toBe(true)
  expect(await recorded()).toEqual({ [B]: 'nfs a' })
  expect(await says(A)).toBeUndefined()
})

test('two that come at once with none before them are tried with one another, not each with itself', async () => {
  const [a, b] = [await host(A), await host(B)]
  // What both had mounted was mounted otherwise while all was off.
  await write(put(poolKind, ID, pool({ [A]: 'nfs old', [B]: 'nfs old' })))
  const [one, two] = [a.begin(), b.begin()]
  await Promise.all([one.look(), two.look()])
  await Promise.all([one.look(), two.look()])
  for (let i = 0; i < 6; i++) {
    await expect.poll(() => clock.waiting).toBeLessThanOrEqual(2)
    clock.advance(60_000)
    await Promise.all([one.look(), two.look()])
  }
  await expect.poll(recorded).toEqual({ [A]: 'nfs a', [B]: 'nfs a' })
  expect(asked.length).toBeGreaterThan(0)
})
