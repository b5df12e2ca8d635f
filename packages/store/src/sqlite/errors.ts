import { StoreError } from '../errors.ts'

// Primary result codes: https://www.sqlite.org/rescode.html
const BUSY = 5
const LOCKED = 6
const READONLY = 8
const IOERR = 10
const CORRUPT = 11
export const FULL = 13
const CANTOPEN = 14
const NOTADB = 26

/** SQLite's primary result code of an error, undefined when it is none of SQLite's. */
export function resultCode(error: unknown): number | undefined {
  const code = (error as { errcode?: unknown } | null)?.errcode
  return typeof code === 'number' ? code & 0xff : undefined
}

/** What a failure of SQLite (or of a file) means for who called. */
export function translate(error: unknown, file: string): StoreError {
  if (error instanceof StoreError) return error
  const text = error instanceof Error ? error.message : String(error)
  switch (resultCode(error)) {
    case FULL:
      return new StoreError({
        kind: 'no_room',
        detail: `there is no room left for the store ${file}; nothing was changed`,
        remedy: 'Make room on that file system; the store then goes on by itself.',
        retryable: true,
        file,
        cause: error,
      })
    case BUSY:
    case LOCKED:
      return new StoreError({
        kind: 'locked',
        detail: `another process has the store ${file} open`,
        remedy: `Stop the other wadahd first; \`fuser ${file}\` shows its process. The lock ends with that process.`,
        retryable: true,
        file,
        cause: error,
      })
    case CORRUPT:
    case NOTADB:
      return corrupt(file, text, error)
    case READONLY:
    case CANTOPEN:
      return new StoreError({
        kind: 'io',
        detail: `the store ${file} cannot be opened for writing: ${text}`,
        remedy: `Check that the folder exists, belongs to the user of wadahd and is mounted read-write.`,
        file,
        cause: error,
      })
    case IOERR:
      return new StoreError({
        kind: 'io',
        effect: 'unknown',
        detail: `reading or writing the store ${file} failed: ${text}`,
        remedy: 'Look for disk errors with `dmesg`.',
        retryable: true,
        file,
        cause: error,
      })
    default:
      return new StoreError({
        kind: 'io',
        effect: 'unknown',
        detail: `the store ${file} failed: ${text}`,
        file,
        cause: error,
      })
  }
}

export function corrupt(file: string, what: string, cause?: unknown): StoreError {
  return new StoreError({
    kind: 'corrupt',
    detail: `the store ${file} is damaged: ${what}`,
    remedy: `Stop wadahd, keep the damaged file (mv ${file} ${file}.damaged; the same for ${file}-wal), put the newest backup in its place and start again.`,
    file,
    ...(cause !== undefined && { cause }),
  })
}
