import { expect, test } from 'vitest'
import { batches, copyStore, everything } from '../src/copy.ts'
import { del, put, TXN_BYTES_MAX } from '../src/store.ts'
import { openMemoryStore } from '../src/testing/memory.ts'

const kind = { name: 'thing' }
const bytesOf = (part: readonly unknown[]) => Buffer.byteLength(JSON.stringify(part))

test('writes go in parts that a store takes, by their number and by their bytes, in order', () => {
  const many = Array.from({ length: 250 }, (_, i) => put(kind, `a${i}`, { i }))
  expect([...batches(many)].map((p) => p.length)).toEqual([100, 100, 50])
  expect([...batches(many)].flat()).toEqual(many)
  // 60 records of 64 KiB, of characters that have three bytes each.
  const large = Array.from({ length: 60 }, (_, i) => put(kind, `a${i}`, { text: '€'.repeat(22_000) }))
  const parts = [...batches(large)]
  expect(parts.flat()).toEqual(large)
  for (const part of parts) expect(bytesOf(part)).toBeLessThan(TXN_BYTES_MAX)
  expect(parts.length).toBeGreaterThan(5)
})

test('one that is large by itself goes alone; a delete has no bytes; of nothing there is no part', () => {
  const huge = put(kind, 'b', { text: 'x'.repeat(900_000) })
  expect([...batches([put(kind, 'a', 1), huge, put(kind, 'c', 2), del(kind, 'd')])].map((p) => p.length)).toEqual([
    1, 1, 2,
  ])
  expect([...batches([])]).toEqual([])
})

test('a copy holds all of it, also what is large', async () => {
  const [from, to] = [openMemoryStore(), openMemoryStore()]
  for (let i = 0; i < 240; i++) {
    const text = 'x'.repeat(i % 60 === 0 ? 700_000 : 10)
    await from.txn([], [put(kind, `a${i}`, { i, text })], `t${i}`)
  }
  expect(await copyStore(from, to, (rec) => (rec.id === 'a7' ? undefined : rec.value))).toBe(239)
  const values = async (store: typeof from) => {
    const all = new Map<string, unknown>()
    for await (const rec of everything(store)) all.set(rec.id, rec.value)
    return all
  }
  const wanted = await values(from)
  wanted.delete('a7')
  expect(await values(to)).toEqual(wanted)
  await Promise.all([from.close(), to.close()])
})
