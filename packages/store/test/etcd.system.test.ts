/** The store in a real etcd: what every back end must do, and what becomes of it when members die, hang, or are held. */
import { randomUUID } from 'node:crypto'
import { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import { systemClock } from '@wadah/store/clock'
import { EtcdAdmin } from '@wadah/store/etcd/admin'
import { EtcdClient } from '@wadah/store/etcd/client'
import { StoreError } from '@wadah/store/errors'
import { type EtcdStore, openEtcdStore, openOver } from '@wadah/store/etcd/etcd-store'
import type { RangeReply } from '@wadah/store/etcd/wire'
import { absent, del, exists, type Kind, put } from '@wadah/store/store'
import { committed, storeConformance } from '@wadah/store/testing/conformance'
import { changesUpTo } from '@wadah/store/testing/read'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Etcd } from './etcd-kit.ts'
import { MemberNet } from './etcd-net.ts'

/** Real time, in which a process can be made to stand still: what is due then comes late. */
class HeldClock implements Clock {
  #held = false
  #late: (() => void)[] = []
  now_ms = () => systemClock.now_ms()
  monotonic_ms = () => systemClock.monotonic_ms()
  timer(fn: () => void, after_ms: number): () => void {
    let off = false
    const stop = systemClock.timer(() => (this.#held ? this.#late.push(() => off || fn()) : fn()), after_ms)
    return () => {
      off = true
      stop()
    }
  }
  async standStill(ms: number): Promise<void> {
    this.#held = true
    await new Promise((resolve) => setTimeout(resolve, ms))
    this.#held = false
    for (const fn of this.#late.splice(0)) fn()
  }
}

const alone = new Etcd()
let made = 0
beforeAll(() => alone.start())
afterAll(() => alone.stop())

async function subject(shared: boolean) {
  const clock = new HeldClock()
  const store = await openEtcdStore({ endpoints: alone.endpoints, clock, prefix: `/t${(made += 1)}`, shared })
  const client = new EtcdClient({ endpoints: alone.endpoints, clock })
  const soon = () => clock.monotonic_ms() + 5_000
  return {
    store,
    compact: async () => {
      // The present revision itself is never forgotten.
      const noise = { name: 'noise' }
      committed(await store.txn([], [put(noise, 'n', 1)], randomUUID()))
      committed(await store.txn([], [del(noise, 'n')], randomUUID()))
      const key = Buffer.from('x')
      const { header } = await client.call<RangeReply>('KV', 'Range', { key }, soon())
      // A try whose answer came late is repeated: what is forgotten already is no error.
      await new EtcdAdmin(client, clock).compact(Number(header.revision))
    },
    standStill: (ms: number) => clock.standStill(ms),
    expireTokens: async () => {
      const { leases } = await client.call<{ leases: { ID: string }[] }>('Lease', 'LeaseLeases', {}, soon())
      for (const { ID } of leases) await client.call('Lease', 'LeaseRevoke', { ID }, soon())
    },
    close: async () => {
      await store.close()
      client.close()
    },
  }
}
storeConformance('etcd', () => subject(false))
storeConformance('etcd that may be shared', () => subject(true))

test('others that write to the same etcd are neither seen nor waited for', async () => {
  const { store, close } = await subject(true)
  const other = new EtcdClient({ endpoints: alone.endpoints, clock: systemClock })
  let theirs = 0
  const noise = async () => {
    const success = [{ request_put: { key: Buffer.from('/theirs'), value: Buffer.from(String((theirs += 1))) } }]
    await other.call('KV', 'Txn', { compare: [], success, failure: [] }, performance.now() + 10_000)
  }
  const thing: Kind<{ n: number }> = { name: 'thing' }
  const quick = { timeout_ms: 2_000 }
  await noise()
  const view = await CachedView.open(store)
  for (let n = 0; n < 20; n += 1) {
    await noise()
    // Reading, conflicts and what changes nothing answer with revisions that the view comes to without anybody's help.
    await view.waitFor(await store.current(), quick)
    const none = await store.txn([absent(thing, 'a'), exists(thing, 'a')], [put(thing, 'a', { n })], randomUUID())
    await view.waitFor(none.revision, quick)
    await view.waitFor((await store.txn([], [del(thing, 'nothing')], randomUUID())).revision, quick)
    const done = committed(await store.txn([], [put(thing, 'a', { n })], randomUUID()))
    await noise()
    await view.waitFor(done.revision, quick)
    expect(view.get(thing, 'a')?.value.n).toBe(n)
    const anew = await CachedView.open(store)
    await anew.waitFor(await store.current(), quick)
    expect(anew.list(thing).map((r) => r.id)).toEqual(['a'])
    await anew.close()
  }
  await view.close()
  other.close()
  await close()
}, 60_000)

/** Of the next transactions that write, the first try reaches etcd only when `arrive` is called, and nobody hears its answer. */
class LateClient extends EtcdClient {
  readonly #late: (() => Promise<unknown>)[] = []
  late = 0
  /** No try after it: the call ends at its deadline. */
  silent = false
  override async call<R>(...args: Parameters<EtcdClient['call']>): Promise<R> {
    const [, method, request, , tries] = args
    const writes = method === 'Txn' && JSON.stringify(request).includes('request_put')
    if (!writes || this.late === 0) return await super.call<R>(...args)
    this.late -= 1
    const sent = structuredClone({ request })
    this.#late.push(() => super.call('KV', 'Txn', revive(sent.request), performance.now() + 5_000))
    if (tries) tries.lost += 1
    if (this.silent) throw new StoreError({ kind: 'timeout', detail: 'no answer' })
    return await super.call<R>(...args)
  }
  async arrive(): Promise<void> {
    for (const send of this.#late.splice(0)) await send()
  }
}
/** Buffers come out of a structured clone as plain arrays of bytes. */
function revive(value: unknown): object {
  if (value instanceof Uint8Array) return Buffer.from(value)
  if (Array.isArray(value)) return value.map(revive)
  if (typeof value !== 'object' || value === null) return value as object
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, revive(v)]))
}

describe('a try whose answer was lost, and that arrives late', () => {
  const thing: Kind<{ n: number }> = { name: 'thing' }
  async function late() {
    const client = new LateClient({ endpoints: alone.endpoints, clock: systemClock })
    const store = await openOver(client, systemClock, { prefix: `/t${(made += 1)}` })
    committed(await store.txn([], [put(thing, 'first', { n: 0 })], randomUUID()))
    return { client, store }
  }

  test('after it was done: it is not done twice', async () => {
    const { client, store } = await late()
    client.late = 1
    expect(committed(await store.txn([], [put(thing, 'a', { n: 1 })], 'one')).repeated).toBe(false)
    committed(await store.txn([], [put(thing, 'a', { n: 2 })], 'two'))
    await client.arrive()
    expect((await store.get(thing, 'a'))?.value.n).toBe(2)
    await store.close()
  })

  test('after "conflict" was said: it does not happen, though its checks hold by now', async () => {
    const { client, store } = await late()
    client.late = 1
    expect((await store.txn([exists(thing, 'b')], [put(thing, 'a', { n: 1 })], 'one')).ok).toBe(false)
    committed(await store.txn([], [put(thing, 'b', { n: 1 })], 'two'))
    await client.arrive()
    expect(await store.get(thing, 'a')).toBeUndefined()
    // Judged anew, with the same token.
    const anew = await store.txn([exists(thing, 'b')], [put(thing, 'a', { n: 1 })], 'one')
    expect(committed(anew).repeated).toBe(false)
    await store.close()
  })

  test('after its call ended without an answer: before what comes next, or not at all', async () => {
    const { client, store } = await late()
    client.late = 1
    client.silent = true
    const lost = store.txn([], [put(thing, 'a', { n: 1 })], 'one')
    await expect(lost).rejects.toMatchObject({ kind: 'timeout', effect: 'unknown' })
    committed(await store.txn([], [put(thing, 'a', { n: 2 })], 'two'))
    await client.arrive()
    expect((await store.get(thing, 'a'))?.value.n).toBe(2)
    await store.close()
  })

  test('after its call was repeated and met a conflict: not at all', async () => {
    const { client, store } = await late()
    client.late = 1
    client.silent = true
    const ask = () => store.txn([exists(thing, 'b')], [put(thing, 'a', { n: 1 })], 'one')
    await expect(ask()).rejects.toMatchObject({ effect: 'unknown' })
    expect((await ask()).ok).toBe(false)
    committed(await store.txn([], [put(thing, 'b', { n: 1 })], 'two'))
    await client.arrive()
    expect(await store.get(thing, 'a')).toBeUndefined()
    await store.close()
  })
})

describe('an etcd of three', () => {
  const net = new MemberNet(3)
  const three = new Etcd(net)
  const thing: Kind<{ n: number }> = { name: 'thing' }
  let store: EtcdStore
  beforeAll(async () => {
    await net.open()
    await three.start(3)
    store = await openEtcdStore({ endpoints: three.endpoints })
  }, 60_000)
  afterAll(async () => {
    await store?.close()
    await three.stop()
    await net.close()
  })

  /** Writes all the time while `disturb` goes on; what was acknowledged is there, once, and a watch has seen it. */
  async function undisturbed(disturb: () => Promise<void>): Promise<void> {
    const before = await store.current()
    const lease = await store.lease(10)
    const kind: Kind<{ n: number }> = {
      name: `round-${randomUUID()
        .slice(0, 8)
        .replace(/^[0-9]/, 'a')}`,
    }
    const stop = new AbortController()
    const seen: string[] = []
    const watching = (async () => {
      for await (const item of store.watch(`${kind.name}:`, before, stop.signal))
        if (item.type === 'put') seen.push(item.id)
    })()
    let over = false
    const acknowledged: string[] = []
    let longest_ms = 0
    const writing = (async () => {
      for (let n = 0; !over; n += 1) {
        const begun = performance.now()
        const done = committed(
          await store.txn([absent(kind, `k${n}`)], [put(kind, `k${n}`, { n }, lease)], randomUUID()),
        )
        expect(done.repeated).toBe(false)
        longest_ms = Math.max(longest_ms, performance.now() - begun)
        acknowledged.push(`k${n}`)
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    })()
    await new Promise((resolve) => setTimeout(resolve, 500))
    await disturb()
    over = true
    await writing
    const end = await store.current()
    const listed = (await changesUpTo(store, `${kind.name}:`, before, end)).map((c) => c.id)
    expect(listed).toEqual(acknowledged)
    await expect.poll(() => seen.length, { timeout: 15_000 }).toBe(acknowledged.length)
    expect(seen).toEqual(acknowledged)
    expect(acknowledged.length).toBeGreaterThan(10)
    // A lease of 10 s outlives it: the member was not waited for.
    expect(lease.lost.aborted).toBe(false)
    expect(longest_ms).toBeLessThan(10_000)
    stop.abort()
    await watching
    await lease.revoke()
  }
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

  test('each member in turn is killed and comes back: nothing is lost, doubled or seen twice', async () => {
    for (const i of [0, 1, 2]) {
      await undisturbed(async () => {
        await three.kill(i)
        await pause(3_000)
        three.run(i)
        await pause(3_000)
      })
    }
  }, 120_000)

  test('each member in turn hangs: the others are asked, the lease is kept', async () => {
    for (const i of [0, 1, 2]) {
      await undisturbed(async () => {
        three.hold(i)
        await pause(6_000)
        three.release(i)
        await pause(1_000)
      })
    }
  }, 120_000)

  test('each member in turn is cut off from the others, and can still be asked: its answers are not waited for', async () => {
    for (const i of [0, 1, 2]) {
      await undisturbed(async () => {
        await net.cut(i)
        await pause(6_000)
        await net.mend()
        await pause(1_000)
      })
    }
  }, 120_000)

  test('without a majority a call ends at its deadline, says that it may have happened, and can be repeated', async () => {
    three.hold(1)
    three.hold(2)
    const token = randomUUID()
    const writes = [put(thing, 'late', { n: 1 })]
    const failed = store.txn([absent(thing, 'late')], writes, token, { timeout_ms: 3_000 })
    await expect(failed).rejects.toMatchObject({ kind: 'timeout', effect: 'unknown', remedy: expect.any(String) })
    three.release(1)
    three.release(2)
    const done = committed(await store.txn([absent(thing, 'late')], writes, token))
    expect((await store.get(thing, 'late'))?.modified).toBe(done.revision)
  }, 60_000)
})
