/** The file: who may open it, what is in it, what when it is full, damaged, of another release. */
import { chmodSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { type Kind, put, type Store } from '@wadah/store/store'
import { CHANGES_AFTER, CHANGES_OF, compactTo } from '@wadah/store/sqlite/database'
import { MIGRATIONS, migrate, schemaOf } from '@wadah/store/sqlite/schema'
import { openSqliteStore, type SqliteOptions } from '@wadah/store/sqlite/sqlite-store'
import { FakeClock } from '@wadah/store/testing/clock'
import { committed } from '@wadah/store/testing/conformance'
import { page } from '@wadah/store/testing/read'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'

const thing: Kind<{ n: number; text?: string }> = { name: 'thing' }
let dir: string
let file: string
let stores: Store[] = []
const open = async (o: Partial<SqliteOptions> = {}) => {
  const store = await openSqliteStore({ file, lockWait_ms: 50, ...o })
  stores.push(store)
  return store
}
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-store-'))
  file = join(dir, 'store.db')
})
afterEach(async () => {
  for (const store of stores) await store.close()
  stores = []
  rmSync(dir, { recursive: true, force: true })
})

test('what was written is there after closing and opening: id, revision, records, tokens', async () => {
  const one = await open()
  committed(await one.txn([], [put(thing, 'a', { n: 1 })], 'first'))
  await one.close()
  const two = await open()
  expect(two.id).toBe(one.id)
  expect(await two.current()).toBe(1)
  expect((await two.get(thing, 'a'))?.value.n).toBe(1)
  expect(committed(await two.txn([], [put(thing, 'a', { n: 1 })], 'first')).repeated).toBe(true)
})

test('what changed last is found without a look at all that is kept', async () => {
  const store = await open()
  committed(await store.txn([], [put(thing, 'a', { n: 1 })], 't'))
  await store.close()
  const db = new DatabaseSync(file)
  const plan = (sql: string) =>
    (db.prepare(`EXPLAIN QUERY PLAN ${sql}`).all() as { detail: string }[]).map((p) => p.detail)
  for (const sql of [CHANGES_AFTER, CHANGES_OF])
    expect(plan(sql)).toEqual([expect.stringMatching(/^SEARCH history USING PRIMARY KEY \(revision/)])
  db.close()
})

test('the files belong to their owner only', async () => {
  const store = await open()
  committed(await store.txn([], [put(thing, 'a', { n: 1 })], 't'))
  for (const name of [file, `${file}-wal`]) expect((statSync(name).mode & 0o777).toString(8)).toBe('600')
})

test('a second opener is refused, by name and with the remedy; the lock ends with the first', async () => {
  const one = await open()
  await expect(open()).rejects.toMatchObject({
    kind: 'locked',
    file,
    message: expect.stringContaining(file),
    remedy: expect.stringContaining('fuser'),
  })
  committed(await one.txn([], [put(thing, 'a', { n: 1 })], 't'))
  await one.close()
  expect((await (await open()).get(thing, 'a'))?.value.n).toBe(1)
})

test('leases of a former process end at opening', async () => {
  const one = await open()
  const lease = await one.lease(1000)
  committed(await one.txn([], [put(thing, 'held', { n: 1 }, lease), put(thing, 'kept', { n: 1 })], 't'))
  await one.close()
  expect(lease.lost.aborted).toBe(true)
  const two = await open()
  expect(await two.get(thing, 'held')).toBeUndefined()
  expect(await two.get(thing, 'kept')).toBeDefined()
  expect(await two.current()).toBe(2)
})

describe('what cannot be opened says why', () => {
  test.each([
    ['no database at all', () => writeFileSync(file, 'x'.repeat(5000), { mode: 0o600 }), 'corrupt'],
    ['a damaged database', () => damage(), 'corrupt'],
    ['the database of somebody else', () => foreign(), 'corrupt'],
    [
      'a folder',
      () => {
        file = dir
      },
      'io',
    ],
    [
      'a folder that is not there',
      () => {
        file = join(dir, 'no', 'store.db')
      },
      'io',
    ],
    ['a link', () => symlinkSync(join(dir, 'elsewhere'), file), 'io'],
    [
      'a file others can read',
      () => {
        writeFileSync(file, '', { mode: 0o600 })
        chmodSync(file, 0o644)
      },
      'io',
    ],
    ['a newer release', () => newer(), 'newer'],
  ])('%s', async (_, arrange, kind) => {
    await Promise.resolve(arrange())
    await expect(open()).rejects.toMatchObject({
      kind,
      file,
      message: expect.stringContaining(file),
      remedy: expect.stringMatching(/./),
    })
  })

  async function damage() {
    const store = await open()
    for (let i = 0; i < 50; i += 1) await store.txn([], [put(thing, `k${i}`, { n: i, text: 'x'.repeat(3000) })], `${i}`)
    await store.close()
    const db = new DatabaseSync(file)
    db.exec('PRAGMA journal_mode = DELETE')
    db.close()
    const { size } = statSync(file)
    const { openSync, writeSync, closeSync } = await import('node:fs')
    const fd = openSync(file, 'r+')
    for (let at = 8192; at < size; at += 4096) writeSync(fd, 'garbage!'.repeat(64), at)
    closeSync(fd)
  }
  function foreign() {
    writeFileSync(file, '', { mode: 0o600 })
    const db = new DatabaseSync(file)
    db.exec('CREATE TABLE somebody (a)')
    db.close()
  }
  async function newer() {
    await (await open()).close()
    const db = new DatabaseSync(file)
    db.exec("UPDATE meta SET value = '99' WHERE name = 'schema'")
    db.close()
  }
})

describe('schemas', () => {
  const next = [...MIGRATIONS, { schema: 2, sql: 'ALTER TABLE record ADD COLUMN extra TEXT' }]

  test('an upgrade keeps everything and leaves a copy of what was', async () => {
    const store = await open()
    committed(await store.txn([], [put(thing, 'a', { n: 7 })], 't'))
    await store.close()
    const db = new DatabaseSync(file)
    expect(migrate(db, file, 'unused', next)).toEqual([2])
    expect(migrate(db, file, 'unused', next)).toEqual([])
    expect(schemaOf(db, file)).toBe(2)
    expect(db.prepare('SELECT value, extra FROM record').all()).toEqual([{ value: '{"n":7}', extra: null }])
    db.close()
    const copy = `${file}.schema-1`
    expect(statSync(copy).mode & 0o777).toBe(0o600)
    file = copy
    expect((await (await open()).get(thing, 'a'))?.value.n).toBe(7)
  })

  test('an upgrade that fails changes nothing', async () => {
    await (await open()).close()
    const db = new DatabaseSync(file)
    const failing = [...next, { schema: 3, sql: 'CREATE TABLE half (a); SELECT broken FROM nowhere' }]
    expect(() => migrate(db, file, 'unused', failing)).toThrow('nowhere')
    expect(schemaOf(db, file)).toBe(2)
    expect(db.prepare("SELECT name FROM sqlite_schema WHERE name = 'half'").all()).toEqual([])
    db.close()
  })
})

test('a full store says so, changes nothing, takes what fits, and goes on once there is room', async () => {
  const store = await open({ bytesMax: 400_000 })
  const big = (n: number) => put(thing, `big${n}`, { n, text: 'x'.repeat(60_000) })
  let fitted = 0
  let refused: unknown
  while (!refused && fitted < 50) {
    try {
      committed(await store.txn([], [big(fitted)], `big${fitted}`))
      fitted += 1
    } catch (error) {
      refused = error
    }
  }
  expect(refused).toMatchObject({ kind: 'no_room', effect: 'none', file, retryable: true })
  const before = await store.current()
  const together = await Promise.allSettled([
    store.txn([], [big(100)], 'big100'),
    store.txn([], [put(thing, 'small', { n: 1 })], 'small'),
    store.txn([], [big(101)], 'big101'),
  ])
  expect(together.map((r) => r.status)).toEqual(['rejected', 'fulfilled', 'rejected'])
  expect(await store.current()).toBe(before + 1)
  expect(page(await store.list(thing, { prefix: 'big', limit: 100 })).items).toHaveLength(fitted)
  await store.close()
  const roomy = await open()
  committed(await roomy.txn([], [big(100)], 'big100'))
})

test('a quiet store keeps its past; a busy one keeps what was asked', () => {
  const s = { current: 50_000, compacted: 100, aged: 0, keepRevisions: 10_000 }
  expect(compactTo(s)).toBe(40_000)
  expect(compactTo({ ...s, aged: 49_990 })).toBe(49_000)
  expect(compactTo({ ...s, aged: 45_000 })).toBe(45_000)
  expect(compactTo({ ...s, current: 500, aged: 499 })).toBe(100)
  expect(compactTo({ ...s, current: 5000 })).toBe(100)
})

test('history is forgotten by itself, by number and by age', async () => {
  const clock = new FakeClock()
  const store = await open({ clock, keepRevisions: 1500, keepAge_ms: 1000 })
  const write = async (n: number) => {
    for (let i = 0; i < n; i += 1) await store.txn([], [put(thing, 'a', { n: i })], `${clock.now_ms()}-${i}`)
  }
  const oldest = async () => {
    const reply = await store.list(thing, { at: 0, limit: 1 })
    return reply.type === 'compacted' ? reply.oldest : 0
  }
  await write(1400)
  expect(await oldest()).toBe(0)
  clock.advance(2000)
  await write(300)
  expect(await oldest()).toBeGreaterThan(200)
  expect(await store.current()).toBe(1700)
}, 60_000)

test('writes queued behind a commit share the next one', async () => {
  const store = await open()
  const time = async (run: () => Promise<unknown>) => {
    const start = performance.now()
    await run()
    return performance.now() - start
  }
  const median = (times: number[]) => times.sort((a, b) => a - b)[Math.floor(times.length / 2)] ?? 0
  const one: number[] = []
  const twenty: number[] = []
  for (let round = 0; round < 15; round += 1) {
    one.push(await time(() => store.txn([], [put(thing, 'a', { n: round })], `one${round}`)))
    const many = Array.from({ length: 20 }, (_, i) => i)
    twenty.push(
      await time(() => Promise.all(many.map((i) => store.txn([], [put(thing, `k${i}`, { n: i })], `${round}/${i}`)))),
    )
  }
  console.info(`1 transaction: ${median(one).toFixed(2)} ms, 20 at once: ${median(twenty).toFixed(2)} ms`)
  expect(await store.current()).toBe(15 * 21)
})
