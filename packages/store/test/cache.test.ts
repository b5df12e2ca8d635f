import { CachedView, type ViewChange } from '@wadah/store/cache'
import { type Change, type Compacted, type Kind, type Progress, del, put, type Store } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { afterEach, expect, test } from 'vitest'

const thing: Kind<{ n: number }> = { name: 'thing' }
const other: Kind<{ n: number }> = { name: 'other' }
const cleanups: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})
const fresh = () => {
  const store = openMemoryStore()
  cleanups.push(() => store.close())
  return store
}
const view = async (store: Store, prefix = '') => {
  const made = await CachedView.open(store, { prefix })
  cleanups.push(() => made.close())
  return made
}
let tokens = 0
const write = async (store: Store, ...writes: Parameters<Store['txn']>[1]) => {
  tokens += 1
  const outcome = await store.txn([], writes, `t${tokens}`)
  if (!outcome.ok) throw new Error('conflict')
  return outcome.revision
}

test('an empty store, then what is written, read back at its revision', async () => {
  const store = fresh()
  const v = await view(store)
  expect(v.revision).toBe(0)
  expect(v.list(thing)).toEqual([])
  const r = await write(store, put(thing, 'b', { n: 1 }), put(thing, 'a', { n: 2 }), put(other, 'x', { n: 3 }))
  await v.waitFor(r)
  expect(v.list(thing).map((rec) => rec.id)).toEqual(['a', 'b'])
  expect(v.get(thing, 'a')).toEqual(await store.get(thing, 'a'))
  const gone = await write(store, del(thing, 'a'))
  await v.waitFor(gone)
  expect(v.get(thing, 'a')).toBeUndefined()
  expect(v.list(thing, 'b')).toHaveLength(1)
})

test('only its prefix, but every revision', async () => {
  const store = fresh()
  const v = await view(store, 'thing:')
  await v.waitFor(await write(store, put(other, 'x', { n: 1 })))
  expect(v.list(other)).toEqual([])
  await v.waitFor(await write(store, put(thing, 'x', { n: 1 })))
  expect(v.list(thing)).toHaveLength(1)
})

test('more records than a page', async () => {
  const store = fresh()
  for (let i = 0; i < 25; i += 1) {
    await write(store, ...Array.from({ length: 100 }, (_, j) => put(thing, `k${i * 100 + j}`, { n: j })))
  }
  const v = await view(store)
  expect(v.list(thing)).toHaveLength(2500)
})

test('listeners get whole revisions, after the view holds them; one that throws harms nobody', async () => {
  const store = fresh()
  await write(store, put(thing, 'a', { n: 1 }))
  const v = await view(store)
  const seen: ViewChange[][] = []
  v.subscribe(() => {
    throw new Error('mine')
  })
  const off = v.subscribe((changes) => {
    expect(v.revision).toBe(changes[0]?.revision)
    seen.push([...changes])
  })
  await v.waitFor(await write(store, put(thing, 'a', { n: 2 }), put(thing, 'b', { n: 1 })))
  off()
  await v.waitFor(await write(store, del(thing, 'a')))
  expect(seen).toHaveLength(1)
  expect(seen[0]?.map((c) => [c.type, c.id, (c.before?.value as { n: number } | undefined)?.n])).toEqual([
    ['put', 'a', 1],
    ['put', 'b', undefined],
  ])
})

test('waiting ends in time, by signal, by closing', async () => {
  const store = fresh()
  const v = await view(store)
  await expect(v.waitFor(5, { timeout_ms: 5 })).rejects.toMatchObject({ kind: 'timeout' })
  await expect(v.waitFor(5, { signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough')
  const waiting = expect(v.waitFor(5)).rejects.toMatchObject({ kind: 'closed' })
  await v.close()
  await waiting
})

test('a store that forgot, and one that fails for a while: the view catches up and tells what changed', async () => {
  const store = fresh()
  await write(store, put(thing, 'stays', { n: 1 }), put(thing, 'changes', { n: 1 }), put(thing, 'goes', { n: 1 }))
  const gate = Promise.withResolvers<void>()
  let watches = 0
  const troubled: Store = Object.assign(Object.create(store) as Store, {
    id: store.id,
    current: () => store.current(),
    range: (...args: Parameters<Store['range']>) => store.range(...args),
    async *watch(prefix: string, after: number, signal: AbortSignal): AsyncGenerator<Change | Progress | Compacted> {
      watches += 1
      if (watches === 1) throw new Error('the link broke')
      if (watches === 2) {
        await gate.promise
        yield { type: 'compacted', oldest: 99, current: 99 }
        return
      }
      yield* store.watch(prefix, after, signal)
    },
  })
  const troubles: unknown[] = []
  const v = await CachedView.open(troubled, { onTrouble: (e) => troubles.push(e) })
  cleanups.push(() => v.close())
  const seen: string[] = []
  v.subscribe((changes) => seen.push(...changes.map((c) => `${c.type} ${c.id}`)))
  const r = await write(store, put(thing, 'changes', { n: 2 }), del(thing, 'goes'), put(thing, 'comes', { n: 1 }))
  gate.resolve()
  await v.waitFor(r)
  expect(seen.sort()).toEqual(['delete goes', 'put changes', 'put comes'])
  expect(v.list(thing).map((rec) => rec.id)).toEqual(['changes', 'comes', 'stays'])
  await v.waitFor(await write(store, put(thing, 'later', { n: 1 })))
  expect(watches).toBe(3)
  expect(troubles).toHaveLength(1)
})
