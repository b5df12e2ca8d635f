/** What goes between the store and the thread that holds the database. Values travel as JSON text. */
import type { StoreErrorInit } from '../errors.ts'
import type { EncodedCheck, EncodedTxn } from '../validate.ts'

export type WorkerOptions = {
  file: string
  lockWait_ms: number
  keepRevisions: number
  keepAge_ms: number
  keepTokens: number
  tokenAge_ms: number
  /** Quota of the database, bytes; 0 is none. */
  bytesMax: number
  now_ms: number
}

export type Row = { key: string; value: string; created: number; modified: number; version: number }
export type ChangeRow = {
  revision: number
  key: string
  row: Row | undefined
  before: Row | undefined
}

export type TxnReply =
  | { ok: true; revision: number; repeated: boolean }
  | { ok: false; revision: number; failed: { index: number; current: Row | undefined }[] }

export type TxnJob = ({ op: 'txn'; now_ms: number } & EncodedTxn) | { op: 'revoke'; lease: string; now_ms: number }

export type ReadJob =
  | { op: 'get'; key: string }
  /** Makes `file`, which must not exist, a copy of the whole. */
  | { op: 'backup'; file: string }
  | { op: 'range'; prefix: string; at: number | null; after: string | null; limit: number }
  | { op: 'history'; prefix: string; after: number; limit: number }

export type RangeReply = { type: 'page'; rows: Row[]; revision: number; more: boolean } | CompactedReply
export type HistoryReply = { type: 'changes'; changes: ChangeRow[]; revision: number; more: boolean } | CompactedReply
export type CompactedReply = { type: 'compacted'; oldest: number; current: number }

export type Request = { id: number } & (TxnJob | ReadJob | { op: 'close' })
export type Outcome<T> = { value: T } | { error: StoreErrorInit }
export type Reply = { id: number } & Outcome<unknown>

export type FromWorker =
  | { type: 'open'; store: string; revision: number }
  | { type: 'failed'; error: StoreErrorInit }
  /** Replies, and the changes that were committed with them, in order. */
  | { type: 'replies'; replies: Reply[]; changes: ChangeRow[]; revision: number }

export type { EncodedCheck }
