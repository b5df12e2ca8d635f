/** The SQLite back end in this process and in memory: for tests that want a true store fast. Nothing of it is durable. */
import { type Clock, systemClock } from '../clock.ts'
import { StoreError } from '../errors.ts'
import { Database } from '../sqlite/database.ts'
import type { Request } from '../sqlite/protocol.ts'
import { serve } from '../sqlite/serve.ts'
import { type DatabaseLink, SqliteStore } from '../sqlite/sqlite-store.ts'
import type { Store } from '../store.ts'

export type MemoryOptions = { clock?: Clock; keepRevisions?: number; tokenAge_ms?: number }

export function openMemoryStore(o: MemoryOptions = {}): Store {
  const clock = o.clock ?? systemClock
  const database = new Database({
    file: ':memory:',
    lockWait_ms: 0,
    keepRevisions: o.keepRevisions ?? 10_000,
    keepAge_ms: 3_600_000,
    keepTokens: 10_000,
    tokenAge_ms: o.tokenAge_ms ?? 600_000,
    bytesMax: 0,
    now_ms: clock.now_ms(),
  })
  let closed = false
  let next = 1
  const link: DatabaseLink = {
    store: database.id,
    revision: database.revision,
    async ask<T>(body: object, _timeout_ms: number, arrived?: (value: T) => void): Promise<T> {
      if (closed) throw new StoreError({ kind: 'closed', detail: 'the store was closed' })
      const request = { id: next++, ...body } as Request
      let outcome: { value: unknown } | { error: ConstructorParameters<typeof StoreError>[0] } = { value: undefined }
      for (const message of serve(database, [request])) {
        if (message.type !== 'replies') continue
        link.revision = message.revision
        store.publish(message.changes, message.revision)
        for (const { id: _, ...reply } of message.replies) outcome = reply
      }
      if ('error' in outcome) throw new StoreError(outcome.error)
      arrived?.(outcome.value as T)
      return outcome.value as T
    },
    async close() {
      if (!closed) database.close()
      closed = true
    },
  }
  const store = new SqliteStore(':memory:', clock, link)
  return store
}
