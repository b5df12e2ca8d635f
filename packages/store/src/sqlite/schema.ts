/** The tables, and how those of earlier releases become those of this one. One way only. */
import { closeSync, openSync, renameSync, rmSync } from 'node:fs'
import type { DatabaseSync } from 'node:sqlite'
import { StoreError } from '../errors.ts'

export type Migration = { readonly schema: number; readonly sql: string }

/**
 * `history` holds every change with the record as it was before it. So the past is `record` with the changes since taken back,
 * and forgetting the past is deleting rows.
 */
export const MIGRATIONS: readonly Migration[] = [
  {
    schema: 1,
    sql: `
      CREATE TABLE record (
        key TEXT PRIMARY KEY, value TEXT NOT NULL,
        created INTEGER NOT NULL, modified INTEGER NOT NULL, version INTEGER NOT NULL, lease TEXT
      ) WITHOUT ROWID;
      CREATE INDEX record_lease ON record (lease) WHERE lease IS NOT NULL;
      CREATE TABLE history (
        revision INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL, at_ms INTEGER NOT NULL,
        value TEXT, created INTEGER, version INTEGER,
        was_value TEXT, was_created INTEGER, was_modified INTEGER, was_version INTEGER,
        PRIMARY KEY (revision, seq)
      ) WITHOUT ROWID;
      CREATE INDEX history_key ON history (key, revision);
      CREATE TABLE token (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, hash TEXT NOT NULL,
        revision INTEGER NOT NULL, at_ms INTEGER NOT NULL
      );
      CREATE TABLE counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
      INSERT INTO counter VALUES ('revision', 0), ('compacted', 0);
    `,
  },
]

/** The schema a database has; 0 for an empty one. @throws StoreError `corrupt` when its tables are somebody else's */
export function schemaOf(db: DatabaseSync, file: string): number {
  const tables = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").all() as { name: string }[]
  if (tables.length === 0) return 0
  if (!tables.some((t) => t.name === 'meta')) {
    throw new StoreError({
      kind: 'corrupt',
      detail: `${file} is an SQLite database, but no record store of Wadah`,
      remedy: `Move ${file} away, or name another file.`,
      file,
    })
  }
  const row = db.prepare("SELECT value FROM meta WHERE name = 'schema'").get() as { value: string } | undefined
  return Number(row?.value ?? 0)
}

/**
 * Brings the database to the newest schema, each step in its own transaction, after copying it to `<file>.schema-<old>`.
 * @returns the schemas it went through, [] when there was nothing to do
 * @throws StoreError `newer` when the database was written by a newer release
 */
export function migrate(
  db: DatabaseSync,
  file: string,
  storeId: string,
  migrations: readonly Migration[] = MIGRATIONS,
): number[] {
  const found = schemaOf(db, file)
  const newest = migrations.at(-1)?.schema ?? 0
  if (found > newest) {
    throw new StoreError({
      kind: 'newer',
      detail: `${file} has schema ${found}; this release knows schemas up to ${newest}`,
      remedy: `Run the newer release, or go back to the copy made when it was upgraded: ${file}.schema-${newest}`,
      file,
    })
  }
  const done: number[] = []
  for (const { schema, sql } of migrations) {
    if (schema <= found) continue
    const before = schemaOf(db, file)
    if (before > 0) copyTo(db, `${file}.schema-${before}`)
    db.exec('BEGIN IMMEDIATE')
    try {
      if (before === 0 && done.length === 0) {
        db.exec('CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID')
        db.prepare("INSERT INTO meta VALUES ('store', ?), ('schema', '0')").run(storeId)
      }
      db.exec(sql)
      db.prepare("UPDATE meta SET value = ? WHERE name = 'schema'").run(String(schema))
      db.exec('COMMIT')
    } catch (error) {
      if (db.isTransaction) db.exec('ROLLBACK')
      throw error
    }
    done.push(schema)
  }
  return done
}

/**
 * Copies through SQLite: reading the file with anything else would drop this process's locks on it (POSIX locks end with the
 * first close of any descriptor of the file).
 */
export function copyTo(db: DatabaseSync, target: string): void {
  const unfinished = `${target}.part`
  rmSync(unfinished, { force: true })
  closeSync(openSync(unfinished, 'wx', 0o600))
  try {
    db.prepare('VACUUM INTO ?').run(unfinished)
  } catch (error) {
    rmSync(unfinished, { force: true })
    throw error
  }
  renameSync(unfinished, target)
}
