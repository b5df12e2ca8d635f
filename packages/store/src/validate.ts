/** What every back end refuses in the same way, before it does anything. */
import { createHash } from 'node:crypto'
import { StoreError } from './errors.ts'
import { type Check, keyOf, LIST_LIMIT_MAX, TXN_BYTES_MAX, TXN_OPS_MAX, VALUE_BYTES_MAX, type Write } from './store.ts'

const KIND = /^[a-z][a-z0-9-]*(\/[a-z][a-z0-9-]*)*$/
// ASCII only: then code point order, byte order (SQLite, etcd) and UTF-16 order (JavaScript) are the same.
const ID = /^[A-Za-z0-9][A-Za-z0-9._~/:@+=,#-]{0,254}$/
const PREFIX = /^[A-Za-z0-9._~/:@+=,#-]{0,320}$/

const invalid = (detail: string) => new StoreError({ kind: 'invalid', detail })
const tooLarge = (detail: string) => new StoreError({ kind: 'too_large', detail })

export function checkKey(kind: string, id: string): string {
  if (kind.length > 64 || !KIND.test(kind)) {
    throw invalid(`"${kind.slice(0, 80)}" is not a kind: words of small letters, digits and hyphens, joined by "/"`)
  }
  if (!ID.test(id)) {
    throw invalid(
      `"${id.slice(0, 80)}" is not a record id: 1 to 255 of the characters A-Z a-z 0-9 . _ ~ / : @ + = , # -, beginning with a letter or digit`,
    )
  }
  return keyOf(kind, id)
}

export function checkPrefix(prefix: string): string {
  if (!PREFIX.test(prefix)) throw invalid(`"${prefix.slice(0, 80)}" cannot be the beginning of a key`)
  return prefix
}

export function checkLimit(limit: number): number {
  if (!Number.isSafeInteger(limit) || limit < 1 || limit > LIST_LIMIT_MAX) {
    throw invalid(`limit ${limit} is not a whole number from 1 to ${LIST_LIMIT_MAX}`)
  }
  return limit
}

export function checkRevision(revision: number): number {
  if (!Number.isSafeInteger(revision) || revision < 0) throw invalid(`${revision} is not a revision`)
  return revision
}

export function checkTtl(ttl_s: number): number {
  if (!Number.isSafeInteger(ttl_s) || ttl_s < 1 || ttl_s > 86_400) {
    throw invalid(`a lease of ${ttl_s} s: give whole seconds from 1 to 86400`)
  }
  return ttl_s
}

export type EncodedCheck = { readonly key: string; readonly is: Check['is']; readonly n: number }
/** `value` is JSON text; null is a delete. */
export type EncodedWrite = { readonly key: string; readonly value: string | null; readonly lease: string | null }
export type EncodedTxn = {
  readonly checks: readonly EncodedCheck[]
  readonly writes: readonly EncodedWrite[]
  readonly token: string
  /** Fingerprint of checks and writes: a token can't be used for something else. */
  readonly hash: string
}

function encodeValue(key: string, value: unknown): string {
  let text: string | undefined
  try {
    text = JSON.stringify(value)
  } catch (cause) {
    throw new StoreError({ kind: 'invalid', detail: `the value of ${key} cannot be written as JSON`, cause })
  }
  if (text === undefined) throw invalid(`the value of ${key} is not JSON`)
  return text
}

/** @throws StoreError `invalid`, `too_large` */
export function encodeTxn(checks: readonly Check[], writes: readonly Write[], token: string): EncodedTxn {
  if (token.length < 1 || token.length > 128) throw invalid('a token has 1 to 128 characters')
  if (checks.length > TXN_OPS_MAX || writes.length > TXN_OPS_MAX) {
    throw tooLarge(
      `a transaction of ${checks.length} checks and ${writes.length} writes: at most ${TXN_OPS_MAX} of each`,
    )
  }
  const encodedChecks = checks.map((c): EncodedCheck => {
    const n = c.is === 'revision' ? checkRevision(c.modified) : c.is === 'version' ? checkRevision(c.version) : 0
    return { key: checkKey(c.kind, c.id), is: c.is, n }
  })
  const seen = new Set<string>()
  let bytes = 0
  const encodedWrites = writes.map((w): EncodedWrite => {
    const key = checkKey(w.kind, w.id)
    if (seen.has(key)) throw invalid(`${key} is written twice in one transaction`)
    seen.add(key)
    if (w.op === 'delete') return { key, value: null, lease: null }
    const value = encodeValue(key, w.value)
    const size = Buffer.byteLength(value)
    if (size > VALUE_BYTES_MAX) {
      throw tooLarge(`the value of ${key} has ${size} bytes; at most ${VALUE_BYTES_MAX} fit into a record`)
    }
    bytes += size
    return { key, value, lease: w.lease ?? null }
  })
  if (bytes > TXN_BYTES_MAX) {
    throw tooLarge(`a transaction with ${bytes} bytes of values; at most ${TXN_BYTES_MAX} fit`)
  }
  const hash = createHash('sha256')
    .update(JSON.stringify([encodedChecks, encodedWrites]))
    .digest('base64url')
  return { checks: encodedChecks, writes: encodedWrites, token, hash }
}

/** Where a list goes on. */
export type Place = { store: string; at: number; after: string }

export function encodeCursor(place: Place): string {
  return Buffer.from(JSON.stringify([place.store, place.at, place.after])).toString('base64url')
}

/** @throws StoreError `invalid` for a text that is no cursor */
export function decodeCursor(cursor: string): Place {
  try {
    const [store, at, after] = JSON.parse(Buffer.from(cursor, 'base64url').toString()) as unknown[]
    if (typeof store === 'string' && Number.isSafeInteger(at) && typeof after === 'string') {
      return { store, at: at as number, after }
    }
  } catch {
    // falls through: one answer for every text that is no cursor
  }
  throw invalid('this is not a cursor of a list; begin the list again without it')
}
