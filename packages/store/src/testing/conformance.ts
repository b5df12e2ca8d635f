/** What every back end must do. Run it from a test file: `storeConformance('sqlite', makeStore)`. */
import { randomUUID } from 'node:crypto'
import { afterEach, describe, expect, test } from 'vitest'
import { StoreError } from '../errors.ts'
import {
  absent,
  atRevision,
  atVersion,
  type Change,
  type Committed,
  type Conflict,
  del,
  exists,
  type Kind,
  type Progress,
  put,
  type Store,
  TXN_OPS_MAX,
  unchanged,
  VALUE_BYTES_MAX,
} from '../store.ts'
import { modelTest } from './model.ts'
import { changesUpTo, page } from './read.ts'

export type Harness = {
  store: Store
  /** Forgets everything before the store's present revision, in whatever way the back end has. */
  compact: () => Promise<void>
  /** Lets the store's clock pass this time, in which the holder of leases did not run. */
  standStill: (ms: number) => Promise<void>
  /** Lets tokens expire. */
  expireTokens: () => Promise<void>
  close: () => Promise<void>
}

type Thing = { n: number; text?: string }
const thing: Kind<Thing> = { name: 'thing' }
const other: Kind<Thing> = { name: 'other/sub' }
const token = () => randomUUID()

export function committed(outcome: Committed | Conflict): Committed {
  expect(outcome.ok, JSON.stringify(outcome)).toBe(true)
  return outcome as Committed
}

export function storeConformance(name: string, make: () => Promise<Harness>): void {
  describe(`store conformance: ${name}`, () => {
    const open: Harness[] = []
    const fresh = async () => {
      const harness = await make()
      open.push(harness)
      return harness
    }
    afterEach(async () => {
      for (const harness of open.splice(0)) await harness.close()
    })

    test('an empty store', async () => {
      const { store } = await fresh()
      expect(store.id).toMatch(/./)
      expect(await store.current()).toBe(0)
      expect(await store.get(thing, 'a')).toBeUndefined()
      expect(await store.list(thing, { limit: 10 })).toEqual({ type: 'page', items: [], revision: 0 })
    })

    test('put, get, put again, delete, put anew: revisions and versions', async () => {
      const { store } = await fresh()
      const r1 = committed(await store.txn([], [put(thing, 'a', { n: 1 })], token())).revision
      expect(await store.get(thing, 'a')).toEqual({
        kind: 'thing',
        id: 'a',
        value: { n: 1 },
        created: r1,
        modified: r1,
        version: 1,
      })
      const r2 = committed(await store.txn([], [put(thing, 'a', { n: 2 })], token())).revision
      expect(r2).toBeGreaterThan(r1)
      expect(await store.get(thing, 'a')).toMatchObject({ value: { n: 2 }, created: r1, modified: r2, version: 2 })
      committed(await store.txn([], [del(thing, 'a')], token()))
      expect(await store.get(thing, 'a')).toBeUndefined()
      const r4 = committed(await store.txn([], [put(thing, 'a', { n: 3 })], token())).revision
      expect(await store.get(thing, 'a')).toMatchObject({ created: r4, modified: r4, version: 1 })
    })

    test('checks: each kind holds and fails; a conflict names what it met and changes nothing', async () => {
      const { store } = await fresh()
      committed(await store.txn([absent(thing, 'a')], [put(thing, 'a', { n: 1 })], token()))
      const rec = await store.get(thing, 'a')
      if (!rec) throw new Error('lost')
      const holds = [exists(thing, 'a'), unchanged(rec), atVersion(thing, 'a', 1), absent(thing, 'b')]
      const fails = [
        absent(thing, 'a'),
        exists(thing, 'b'),
        atRevision(thing, 'a', rec.modified + 1),
        atRevision(thing, 'b', rec.modified),
        atVersion(thing, 'a', 2),
        atVersion(thing, 'b', 1),
      ]
      const before = await store.current()
      const outcome = await store.txn([...holds, ...fails], [put(thing, 'c', { n: 9 })], token())
      expect(outcome).toEqual({
        ok: false,
        revision: before,
        failed: fails.map((check) => ({ check, current: check.id === 'a' ? rec : undefined })),
      })
      expect(await store.get(thing, 'c')).toBeUndefined()
      committed(await store.txn(holds, [put(thing, 'c', { n: 9 })], token()))
    })

    test('a transaction that changes nothing makes no revision', async () => {
      const { store } = await fresh()
      committed(await store.txn([], [put(thing, 'a', { n: 1 })], token()))
      const before = await store.current()
      expect(committed(await store.txn([exists(thing, 'a')], [], token())).revision).toBe(before)
      expect(committed(await store.txn([], [del(thing, 'zzz')], token())).revision).toBe(before)
      expect(await store.current()).toBe(before)
    })

    test('two that race for one name: one wins', async () => {
      const { store } = await fresh()
      const outcomes = await Promise.all(
        Array.from({ length: 20 }, (_, n) => store.txn([absent(thing, 'name')], [put(thing, 'name', { n })], token())),
      )
      expect(outcomes.filter((o) => o.ok)).toHaveLength(1)
      const winner = outcomes.findIndex((o) => o.ok)
      expect((await store.get(thing, 'name'))?.value.n).toBe(winner)
    })

    test('counting up by compare-and-swap loses nothing', async () => {
      const { store } = await fresh()
      committed(await store.txn([], [put(thing, 'count', { n: 0 })], token()))
      const add = async () => {
        for (;;) {
          const rec = await store.get(thing, 'count')
          if (!rec) throw new Error('lost')
          const outcome = await store.txn([unchanged(rec)], [put(thing, 'count', { n: rec.value.n + 1 })], token())
          if (outcome.ok) return
        }
      }
      await Promise.all(Array.from({ length: 8 }, add))
      expect((await store.get(thing, 'count'))?.value.n).toBe(8)
    })

    test('a token makes a retry safe, refuses other content, expires', async () => {
      const { store, expireTokens } = await fresh()
      const t = token()
      const first = committed(await store.txn([absent(thing, 'a')], [put(thing, 'a', { n: 1 })], t))
      expect(first.repeated).toBe(false)
      const again = committed(await store.txn([absent(thing, 'a')], [put(thing, 'a', { n: 1 })], t))
      expect(again).toEqual({ ok: true, revision: first.revision, repeated: true })
      await expect(store.txn([], [put(thing, 'a', { n: 2 })], t)).rejects.toMatchObject({ kind: 'token_reused' })
      await expireTokens()
      expect((await store.txn([absent(thing, 'a')], [put(thing, 'a', { n: 1 })], t)).ok).toBe(false)
    })

    test('a conflict leaves no trace of its token', async () => {
      const { store } = await fresh()
      const t = token()
      expect((await store.txn([exists(thing, 'a')], [put(thing, 'b', { n: 1 })], t)).ok).toBe(false)
      committed(await store.txn([], [put(thing, 'a', { n: 1 })], token()))
      expect(committed(await store.txn([exists(thing, 'a')], [put(thing, 'b', { n: 1 })], t)).repeated).toBe(false)
    })

    test('limits and bad input are refused and change nothing', async () => {
      const { store } = await fresh()
      const many = Array.from({ length: TXN_OPS_MAX + 1 }, (_, n) => put(thing, `t${n}`, { n }))
      const big = { n: 1, text: 'x'.repeat(VALUE_BYTES_MAX) }
      const half = { n: 1, text: 'x'.repeat(VALUE_BYTES_MAX * 0.7) }
      const loop: Record<string, unknown> = {}
      loop.loop = loop
      const any: Kind<unknown> = { name: 'thing' }
      const refused: [string, () => Promise<unknown>][] = [
        ['too_large', () => store.txn([], many, token())],
        ['too_large', () => store.txn([], [put(thing, 'big', big)], token())],
        ['too_large', () => store.txn([], [put(thing, 'a', half), put(thing, 'b', half)], token())],
        ['invalid', () => store.txn([], [put(thing, 'a', { n: 1 }), del(thing, 'a')], token())],
        ['invalid', () => store.txn([], [put(any, 'a', undefined)], token())],
        ['invalid', () => store.txn([], [put(any, 'a', loop)], token())],
        ['invalid', () => store.txn([], [put(thing, '', { n: 1 })], token())],
        ['invalid', () => store.txn([], [put(thing, 'ä', { n: 1 })], token())],
        ['invalid', () => store.txn([], [put({ name: 'Thing' }, 'a', { n: 1 })], token())],
        ['invalid', () => store.txn([], [put({ name: 'a:b' }, 'a', { n: 1 })], token())],
        ['invalid', () => store.txn([], [put(thing, 'a', { n: 1 })], '')],
        ['invalid', () => store.list(thing, { limit: 0 })],
        ['invalid', () => store.list(thing, { limit: 10, cursor: 'nonsense' })],
        ['invalid', () => store.list(thing, { limit: 10, at: -1 })],
        ['invalid', () => store.lease(0.5)],
      ]
      for (const [kind, call] of refused) await expect(call()).rejects.toMatchObject({ kind, effect: 'none' })
      for (const [, call] of refused) await expect(call()).rejects.toBeInstanceOf(StoreError)
      expect(await store.current()).toBe(0)
      committed(await store.txn([], many.slice(1), token()))
      committed(await store.txn([], [put(thing, 'fits', { n: 1, text: 'x'.repeat(VALUE_BYTES_MAX - 20) })], token()))
    })

    test('values are JSON, copied when handed over; a kind may read older forms', async () => {
      const { store } = await fresh()
      const value = { n: 1, text: 'a "quoted" \u0000 \u{1F600} line\nbreak' }
      const writing = store.txn([], [put(thing, 'a', value)], token())
      value.n = 99
      committed(await writing)
      expect((await store.get(thing, 'a'))?.value).toEqual({ n: 1, text: value.text })
      const doubled: Kind<number> = { name: 'thing', parse: (v) => (v as Thing).n * 2 }
      expect((await store.get(doubled, 'a'))?.value).toBe(2)
      expect(page(await store.list(doubled, { limit: 1 })).items[0]?.value).toBe(2)
    })

    test('list: order, prefix, kinds apart, paging at one revision while writes go on', async () => {
      const { store } = await fresh()
      const ids = ['b/2', 'a', 'b', 'b/1', 'b-1', 'c', 'B']
      for (const [n, id] of ids.entries()) committed(await store.txn([], [put(thing, id, { n })], token()))
      committed(await store.txn([], [put({ name: 'thing-more' }, 'a', 1), put(other, 'a', { n: 1 })], token()))
      const all = page(await store.list(thing, { limit: 100 }))
      expect(all.items.map((r) => r.id)).toEqual(['B', 'a', 'b', 'b-1', 'b/1', 'b/2', 'c'])
      const b = page(await store.list(thing, { prefix: 'b/', limit: 100 }))
      expect(b.items.map((r) => r.id)).toEqual(['b/1', 'b/2'])

      const seen: string[] = []
      let next = page(await store.list(thing, { limit: 2 }))
      const revision = next.revision
      let round = 0
      for (;;) {
        expect(next.revision).toBe(revision)
        for (const rec of next.items) seen.push(`${rec.id}=${rec.value.n}`)
        if (!next.cursor) break
        round += 1
        const changes = [put(thing, 'b', { n: 100 + round }), put(thing, `new${round}`, { n: 0 }), del(thing, 'c')]
        committed(await store.txn([], changes, token()))
        next = page(await store.list(thing, { limit: 2, cursor: next.cursor }))
      }
      expect(seen).toEqual(['B=6', 'a=1', 'b=2', 'b-1=4', 'b/1=3', 'b/2=0', 'c=5'])
      const past = page(await store.list(thing, { at: revision, limit: 100 }))
      expect(past).toEqual(all)
    })

    test('a list across kinds', async () => {
      const { store } = await fresh()
      committed(await store.txn([], [put(thing, 'x', { n: 1 }), put(other, 'y', { n: 2 })], token()))
      const both = page(await store.range('', { limit: 10 }))
      expect(both.items.map((r) => `${r.kind} ${r.id}`)).toEqual(['other/sub y', 'thing x'])
      expect(page(await store.range('other/', { limit: 10 })).items).toHaveLength(1)
    })

    test('a cursor of another store, and a revision that is not, answer compacted', async () => {
      const one = await fresh()
      const two = await fresh()
      for (const { store } of [one, two]) {
        committed(await store.txn([], [put(thing, 'a', { n: 1 }), put(thing, 'b', { n: 1 })], token()))
      }
      const { cursor } = page(await one.store.list(thing, { limit: 1 }))
      expect(cursor).toBeDefined()
      expect((await two.store.list(thing, { limit: 1, cursor: cursor as string })).type).toBe('compacted')
      expect((await two.store.list(thing, { limit: 1, at: 1_000_000 })).type).toBe('compacted')
    })

    test('watch: history then live, in order across kinds, none twice, with the record before', async () => {
      const { store } = await fresh()
      const r1 = committed(
        await store.txn([], [put(thing, 'a', { n: 1 }), put(other, 'b', { n: 1 })], token()),
      ).revision
      const stop = new AbortController()
      const seen: string[] = []
      const items: (Change | Progress)[] = []
      const watching = (async () => {
        for await (const item of store.watch('', 0, stop.signal)) {
          if (item.type === 'compacted') throw new Error('compacted')
          items.push(item)
          if (item.type === 'progress') continue
          const before = item.before ? (item.before.value as Thing).n : '-'
          seen.push(`${item.type} ${item.kind} ${item.id} ${before}${item.last ? ' .' : ''}`)
          if (item.type === 'delete') stop.abort()
        }
      })()
      committed(await store.txn([], [put(other, 'b', { n: 2 }), put(thing, 'c', { n: 5 })], token()))
      committed(await store.txn([], [put(thing, 'a', { n: 3 })], token()))
      committed(await store.txn([], [del(thing, 'a')], token()))
      await watching
      expect(seen).toEqual([
        'put thing a -',
        'put other/sub b - .',
        'put other/sub b 1',
        'put thing c - .',
        'put thing a 1 .',
        'delete thing a 3 .',
      ])
      const revisions = items.map((i) => i.revision)
      expect(revisions).toEqual([...revisions].sort((a, b) => a - b))
      const resumed = await changesUpTo(store, '', r1, await store.current())
      expect(resumed.map((c) => `${c.type} ${c.id}`)).toEqual(['put b', 'put c', 'put a', 'delete a'])
      const things = await changesUpTo(store, 'thing:', 0, await store.current())
      expect(things.map((c) => c.id)).toEqual(['a', 'c', 'a', 'a'])
    })

    test('watch: progress tells that nothing else happened, also beside the prefix', async () => {
      const { store } = await fresh()
      const r = committed(await store.txn([], [put(other, 'b', { n: 1 })], token())).revision
      const stop = new AbortController()
      const reached: number[] = []
      for await (const item of store.watch('thing:', 0, stop.signal)) {
        if (item.type !== 'progress') throw new Error(`a ${item.type} beside the prefix`)
        reached.push(item.revision)
        if (item.revision >= r) stop.abort()
      }
      expect(reached.at(-1)).toBe(r)
    })

    test('watch: a slow reader gets everything all the same', async () => {
      const { store } = await fresh()
      const stop = new AbortController()
      const seen: number[] = []
      const rounds = 150
      const gate = Promise.withResolvers<void>()
      const per = 100
      const watching = (async () => {
        for await (const item of store.watch('thing:', 0, stop.signal)) {
          if (item.type !== 'put') continue
          seen.push((item.rec.value as Thing).n)
          if (seen.length === 1) await gate.promise
          if (seen.length === rounds * per) stop.abort()
        }
      })()
      for (let round = 0; round < rounds; round += 1) {
        const writes = Array.from({ length: per }, (_, i) => put(thing, `k${i}`, { n: round * per + i }))
        committed(await store.txn([], writes, token()))
      }
      gate.resolve()
      await watching
      expect(seen).toEqual(Array.from({ length: rounds * per }, (_, i) => i))
    })

    test('watch: many at once, stopped while waiting', async () => {
      const { store } = await fresh()
      const stops = Array.from({ length: 10 }, () => new AbortController())
      const ended = stops.map(async (stop) => {
        let puts = 0
        for await (const item of store.watch('', 0, stop.signal)) if (item.type === 'put') puts += 1
        return puts
      })
      await changesUpTo(store, '', 0, committed(await store.txn([], [put(thing, 'a', { n: 1 })], token())).revision)
      for (const stop of stops) stop.abort()
      await Promise.all(ended)
      const late = new AbortController()
      late.abort()
      for await (const _ of store.watch('', 0, late.signal)) throw new Error('a watch that was stopped before it began')
    })

    test('compaction: an old watch and an old list say so, the present is untouched', async () => {
      const { store, compact } = await fresh()
      committed(await store.txn([], [put(thing, 'a', { n: 1 }), put(thing, 'b', { n: 1 })], token()))
      const { cursor } = page(await store.list(thing, { limit: 1 }))
      committed(await store.txn([], [put(thing, 'a', { n: 2 })], token()))
      await compact()
      expect((await store.list(thing, { limit: 1, cursor: cursor as string })).type).toBe('compacted')
      const items: string[] = []
      for await (const item of store.watch('', 1, AbortSignal.timeout(5000))) items.push(item.type)
      expect(items).toEqual(['compacted'])
      expect((await store.get(thing, 'a'))?.value.n).toBe(2)
      const here = page(await store.list(thing, { limit: 10 }))
      expect(here.items).toHaveLength(2)
      const r = committed(await store.txn([], [put(thing, 'c', { n: 3 })], token())).revision
      expect((await changesUpTo(store, '', here.revision, r)).map((c) => c.id)).toEqual(['c'])
    })

    test('lease: revoked, what is bound to it goes in one revision; what was unbound stays', async () => {
      const { store } = await fresh()
      const lease = await store.lease(10)
      committed(await store.txn([], [put(thing, 'a', { n: 1 }, lease), put(thing, 'b', { n: 1 }, lease)], token()))
      committed(await store.txn([], [put(thing, 'c', { n: 1 }, lease), put(thing, 'd', { n: 1 })], token()))
      committed(await store.txn([], [put(thing, 'c', { n: 2 })], token()))
      const before = await store.current()
      expect(lease.lost.aborted).toBe(false)
      await lease.revoke()
      await lease.revoke()
      expect(lease.lost.aborted).toBe(true)
      const gone = await changesUpTo(store, '', before, before + 1)
      expect(gone.map((c) => `${c.type} ${c.id} ${c.revision - before}`)).toEqual(['delete a 1', 'delete b 1'])
      expect(page(await store.list(thing, { limit: 10 })).items.map((r) => r.id)).toEqual(['c', 'd'])
      await expect(store.txn([], [put(thing, 'x', { n: 1 }, lease)], token())).rejects.toMatchObject({
        kind: 'lease_lost',
      })
    })

    test('lease: a holder that stood still too long has lost it', async () => {
      const { store, standStill } = await fresh()
      const lease = await store.lease(2)
      const before = committed(await store.txn([], [put(thing, 'a', { n: 1 }, lease)], token())).revision
      await standStill(3000)
      await changesUpTo(store, '', before, before + 1)
      expect(lease.lost.aborted).toBe(true)
      expect(await store.get(thing, 'a')).toBeUndefined()
    })

    test('closed: every call says so, a watch ends with it', async () => {
      const { store, close } = await fresh()
      const watching = (async () => {
        for await (const _ of store.watch('', 0, new AbortController().signal)) await Promise.resolve()
      })()
      const ended = expect(watching).rejects.toMatchObject({ kind: 'closed' })
      const writing = store.txn([], [put(thing, 'a', { n: 1 })], token())
      await close()
      committed(await writing)
      await ended
      await expect(store.get(thing, 'a')).rejects.toMatchObject({ kind: 'closed' })
      await expect(store.txn([], [], token())).rejects.toMatchObject({ kind: 'closed', effect: 'none' })
      await store.close()
    })

    test('random transactions agree with a plain model: outcomes, tokens, watch, paging in the past', async () => {
      await modelTest(async () => (await fresh()).store)
    }, 120_000)
  })
}
