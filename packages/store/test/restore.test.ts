/** A copy of the store, and putting it back. */
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { type Kind, put } from '@wadah/store/store'
import { restoreStore } from '@wadah/store/sqlite/restore'
import { openSqliteStore, type SqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'

const thing: Kind<{ n: number; text?: string }> = { name: 'thing' }
let dir: string
let file: string
let copy: string
let stores: SqliteStore[] = []
const open = async (bytesMax = 0) => {
  const store = await openSqliteStore({ file, lockWait_ms: 50, bytesMax })
  stores.push(store)
  return store
}
const restore = (from = copy) => restoreStore({ file, from, stamp: 'then' })
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-restore-'))
  file = join(dir, 'store.db')
  copy = join(dir, 'copy.db')
})
afterEach(async () => {
  for (const store of stores) await store.close()
  stores = []
  rmSync(dir, { recursive: true, force: true })
})

/** A store with a record that is in the copy, and one that came after it. */
async function twoRecords(): Promise<SqliteStore> {
  const store = await open()
  await store.txn([], [put(thing, 'before', { n: 1 })], 'a')
  await store.backup(copy)
  await store.txn([], [put(thing, 'after', { n: 2 })], 'b')
  return store
}

describe('a copy', () => {
  test('is of one moment, while others write; only its owner can read it', async () => {
    const store = await open()
    const writes = Array.from({ length: 200 }, (_, i) =>
      store.txn([], [put(thing, 'a', { n: i }), put(thing, 'b', { n: i })], `t${i}`),
    )
    const made = store.backup(copy)
    await Promise.all([...writes, made])
    expect((statSync(copy).mode & 0o777).toString(8)).toBe('600')
    const db = new DatabaseSync(copy, { readOnly: true })
    const values = db.prepare("SELECT value FROM record WHERE key LIKE 'thing:%'").all() as { value: string }[]
    db.close()
    expect(new Set(values.map((v) => v.value)).size).toBeLessThanOrEqual(1)
  })
  test('is not made over a file that is there, and leaves nothing when it fails', async () => {
    const store = await open()
    await expect(store.backup(join(dir, 'no', 'copy'))).rejects.toMatchObject({ name: 'StoreError' })
    await store.txn([], [put(thing, 'a', { n: 1 })], 'still-works')
    expect(readdirSync(dir).filter((f) => f.includes('part'))).toEqual([])
  })
})

describe('put back', () => {
  test('it is the store again, under another id: who followed the old one begins again', async () => {
    const old = await twoRecords()
    const page = await old.range('', { limit: 1 })
    const cursor = page.type === 'page' ? page.cursor : undefined
    await old.close()
    const done = await restore()
    expect(done).toMatchObject({ records: 1, revision: 1, schema: 1, kept: `${file}.before-restore-then` })
    const store = await open()
    expect(store.id).toBe(done.store)
    expect(store.id).not.toBe(old.id)
    expect([(await store.get(thing, 'before'))?.value, await store.get(thing, 'after')]).toEqual([{ n: 1 }, undefined])
    expect(await store.range('', { limit: 1, cursor: cursor! })).toMatchObject({ type: 'compacted' })
    const back = new DatabaseSync(done.kept!, { readOnly: true })
    expect((back.prepare('SELECT count(*) AS n FROM record').get() as { n: number }).n).toBe(2)
    back.close()
    expect((statSync(file).mode & 0o777).toString(8)).toBe('600')
  })
  test('not while a daemon has the store open', async () => {
    const store = await twoRecords()
    await expect(restore()).rejects.toMatchObject({ kind: 'locked' })
    expect((await store.get(thing, 'after'))?.value).toEqual({ n: 2 })
    expect(readdirSync(dir).filter((f) => f.includes('restore'))).toEqual([])
  })
  test('in an empty place it is made', async () => {
    await (await twoRecords()).close()
    const elsewhere = join(dir, 'elsewhere.db')
    expect(await restoreStore({ file: elsewhere, from: copy, stamp: 'x' })).toMatchObject({
      kept: undefined,
      records: 1,
    })
    expect(existsSync(elsewhere)).toBe(true)
  })
  test('in the place of a store that is damaged', async () => {
    await (await twoRecords()).close()
    writeFileSync(file, 'x'.repeat(9000))
    expect((await restore()).kept).toBe(`${file}.before-restore-then`)
    expect((await (await open()).get(thing, 'before'))?.value).toEqual({ n: 1 })
  })
  test.each<[string, () => void, string]>([
    ['cut off', () => truncateSync(copy, statSync(copy).size - 4096), 'corrupt'],
    [
      'damaged',
      () => writeFileSync(copy, Buffer.concat([readFileSync(copy).subarray(0, 4096), Buffer.alloc(60_000, 7)])),
      'corrupt',
    ],
    ['no database', () => writeFileSync(copy, 'hello'), 'corrupt'],
    ['empty', () => writeFileSync(copy, ''), 'corrupt'],
    ['of somebody else', () => change('DROP TABLE meta'), 'corrupt'],
    ['of a newer release', () => change("UPDATE meta SET value = '99' WHERE name = 'schema'"), 'newer'],
    ['not there', () => rmSync(copy), 'io'],
  ])('a copy that is %s is refused, and nothing is changed', async (_what, spoil, kind) => {
    await (await twoRecords()).close()
    spoil()
    await expect(restore()).rejects.toMatchObject({ kind })
    expect(readdirSync(dir).filter((f) => f.includes('restore'))).toEqual([])
    expect((await (await open()).get(thing, 'after'))?.value).toEqual({ n: 2 })
  })
})

function change(sql: string): void {
  const db = new DatabaseSync(copy)
  db.exec(sql)
  db.close()
}
