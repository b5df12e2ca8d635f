/** The wall clock is set by a day, either way, under a store that is at work. */
import { type Kind, put } from '@wadah/store/store'
import { FakeClock } from '@wadah/store/testing/clock'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { describe, expect, test } from 'vitest'

const DAY_MS = 86_400_000
const thing: Kind<{ n: number }> = { name: 'thing' }

describe.each([
  ['forward', DAY_MS],
  ['back', -DAY_MS],
])('a day %s', (_way, ms) => {
  test('a lease lives, is kept alive, and ends when its holder stands still', async () => {
    const clock = new FakeClock()
    const store = openMemoryStore({ clock })
    const lease = await store.lease(30)
    await store.txn([], [put(thing, 'held', { n: 1 }, lease)], 'a')
    clock.jump(ms)
    clock.advance(60_000)
    expect(lease.lost.aborted).toBe(false)
    expect(await store.get(thing, 'held')).toBeDefined()
    clock.freeze(31_000)
    expect(lease.lost.aborted).toBe(true)
    await store.close()
  })
  test('what was watched and listed goes on where it was', async () => {
    const clock = new FakeClock()
    const store = openMemoryStore({ clock })
    for (let i = 0; i < 300; i++) await store.txn([], [put(thing, 'a', { n: i })], `before-${i}`)
    const from = await store.current()
    clock.jump(ms)
    // Enough for the past to be tidied twice.
    for (let i = 0; i < 600; i++) await store.txn([], [put(thing, 'a', { n: i })], `after-${i}`)
    expect(await store.range('', { at: from, limit: 10 })).toMatchObject({
      type: 'page',
      items: [{ value: { n: 299 } }],
    })
    await store.close()
  })
  test('a transaction whose answer was lost is not done twice', async () => {
    const clock = new FakeClock()
    const store = openMemoryStore({ clock })
    await store.txn([], [put(thing, 'a', { n: 1 })], 'once')
    if (ms < 0) clock.jump(ms)
    clock.advance(1000)
    expect(await store.txn([], [put(thing, 'a', { n: 1 })], 'once')).toMatchObject({ ok: true, repeated: true })
    await store.close()
  })
})
