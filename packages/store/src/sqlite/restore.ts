/** Putting a copy of a store in the place of the store. Only while no daemon has it open. */
import { randomUUID } from 'node:crypto'
import { closeSync, constants, existsSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { StoreError } from '../errors.ts'
import { translate } from './errors.ts'
import { MIGRATIONS, schemaOf } from './schema.ts'

export type Restored = {
  /** The store's new id: cursors and event ids of before begin again. */
  store: string
  schema: number
  revision: number
  records: number
  /** Where the store that was there before lies now. */
  kept: string | undefined
}

const COPY_BYTES = 1024 * 1024

/**
 * Copies `from` beside `file`, looks whether it is a sound store, gives it a new id, and puts it in place; what was there is kept as
 * `<file>.before-restore-<time>`. `stamp` names that copy.
 * @throws StoreError `locked` (a daemon has it open), `corrupt`, `newer`, `io`, `no_room`: nothing was changed then
 */
export async function restoreStore(o: { file: string; from: string; stamp: string }): Promise<Restored> {
  const { file } = o
  const part = `${file}.restore-part`
  rmSync(part, { force: true })
  try {
    await copy(o.from, part)
    const found = examine(part, o.from)
    const held = hold(file)
    let kept: string | undefined
    try {
      if (existsSync(file)) {
        kept = `${file}.before-restore-${o.stamp}`
        renameSync(file, kept)
        // Where the old store could not be opened its log may still hold what is not in it.
        for (const side of ['-wal', '-shm']) {
          if (held) rmSync(file + side, { force: true })
          else if (existsSync(file + side)) renameSync(file + side, kept + side)
        }
      }
      renameSync(part, file)
      syncFolder(dirname(file))
    } finally {
      held?.close()
    }
    return { ...found, kept }
  } catch (error) {
    for (const side of ['', '-wal', '-shm', '-journal']) rmSync(part + side, { force: true })
    throw error instanceof StoreError ? error : translate(error, file)
  }
}

/** Byte by byte, into a file that only its owner can read. */
async function copy(from: string, to: string): Promise<void> {
  const source = await open(from, constants.O_RDONLY).catch((error: NodeJS.ErrnoException) => {
    throw new StoreError({ kind: 'io', detail: `${from} cannot be read (${error.code})`, file: from, cause: error })
  })
  try {
    if (!(await source.stat()).isFile())
      throw new StoreError({ kind: 'io', detail: `${from} is not a plain file`, file: from })
    const target = openSync(to, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
    try {
      const buffer = Buffer.alloc(COPY_BYTES)
      for (;;) {
        const { bytesRead } = await source.read(buffer, 0, buffer.length)
        if (bytesRead === 0) break
        for (let done = 0; done < bytesRead; ) done += writeSync(target, buffer, done, bytesRead - done)
      }
      fsyncSync(target)
    } finally {
      closeSync(target)
    }
  } finally {
    await source.close()
  }
}

/** Whether the copy is a store that this release can open; it gets its new id. */
function examine(part: string, from: string): Omit<Restored, 'kept'> {
  let db: DatabaseSync | undefined
  try {
    db = new DatabaseSync(part)
    db.exec('PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL')
    const { integrity_check } = db.prepare('PRAGMA integrity_check(1)').get() as { integrity_check: string }
    if (integrity_check !== 'ok') throw damaged(from, integrity_check)
    const schema = schemaOf(db, from)
    const newest = MIGRATIONS.at(-1)?.schema ?? 0
    if (schema === 0) throw damaged(from, 'it is empty')
    if (schema > newest) {
      throw new StoreError({
        kind: 'newer',
        detail: `${from} has schema ${schema}; this release knows schemas up to ${newest}`,
        remedy: 'Restore it with the release it was made with, or a newer one.',
        file: from,
      })
    }
    const store = randomUUID()
    db.prepare("UPDATE meta SET value = ? WHERE name = 'store'").run(store)
    const { n: revision } = db.prepare("SELECT n FROM counter WHERE name = 'revision'").get() as { n: number }
    const { n: records } = db.prepare('SELECT count(*) AS n FROM record').get() as { n: number }
    return { store, schema, revision, records }
  } catch (error) {
    if (error instanceof StoreError) throw error
    throw damaged(from, error instanceof Error ? error.message : String(error), error)
  } finally {
    db?.close()
  }
}

const damaged = (file: string, why: string, cause?: unknown) =>
  new StoreError({
    kind: 'corrupt',
    detail: `${file} is no sound store of Wadah: ${why}`,
    remedy: 'Name a file that `wadah store backup` has made.',
    file,
    cause,
  })

/**
 * The lock of the store that is there, until it is out of the way. Its log is brought into it first, so that the one file is all of it.
 * A store that is damaged, or of a newer release, cannot be opened and need not be: it may be just why there is a restore.
 */
function hold(file: string): DatabaseSync | undefined {
  if (!existsSync(file)) return undefined
  const db = new DatabaseSync(file, { timeout: 3000 })
  try {
    db.exec('PRAGMA locking_mode = EXCLUSIVE')
    db.exec('BEGIN IMMEDIATE; COMMIT')
    db.exec('PRAGMA wal_checkpoint(TRUNCATE)')
    return db
  } catch (error) {
    db.close()
    const why = translate(error, file)
    if (why.kind === 'locked') throw why
    return undefined
  }
}

function syncFolder(path: string): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}
