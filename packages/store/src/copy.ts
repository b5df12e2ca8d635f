/** Copies what a store holds into another of any kind: from one host to a cluster, from a cluster to a file. */
import { randomUUID } from 'node:crypto'
import { StoreError } from './errors.ts'
import { put, type Rec, type Store, type Write } from './store.ts'

/** etcd takes 128 operations and 1.5 MiB at once. */
const WRITES_MOST = 100
const BYTES_MOST = 512 * 1024

/** Every record as of one moment. @throws StoreError `io` when its history was forgotten meanwhile */
export async function* everything(store: Store): AsyncGenerator<Rec<unknown>, void> {
  let cursor: string | undefined
  do {
    const page = await store.range('', { limit: 500, ...(cursor === undefined ? {} : { cursor }) })
    if (page.type === 'compacted')
      throw new StoreError({ kind: 'io', detail: 'the store forgot its history during the copy', retryable: true })
    yield* page.items
    cursor = page.cursor
  } while (cursor !== undefined)
}

/** `change` may make another value of a record, or leave it out with undefined. Returns how many were written. */
export async function copyStore(
  from: Store,
  to: Store,
  change: (rec: Rec<unknown>) => unknown = (rec) => rec.value,
): Promise<number> {
  let count = 0
  const flush = async (part: readonly Write[]) => {
    await to.txn([], part, randomUUID(), { timeout_ms: 60_000 })
    count += part.length
  }
  let waiting: Write[] = []
  for await (const rec of everything(from)) {
    const value = change(rec)
    if (value === undefined) continue
    waiting.push(put({ name: rec.kind }, rec.id, value))
    if (waiting.length < WRITES_MOST) continue
    for (const part of batches(waiting)) await flush(part)
    waiting = []
  }
  for (const part of batches(waiting)) await flush(part)
  return count
}

/** These writes, in order, in parts that a store takes at once: counted, and by the bytes they have. */
export function* batches(writes: readonly Write[]): Generator<Write[], void> {
  let batch: Write[] = []
  let bytes = 0
  for (const write of writes) {
    const size = 'value' in write ? Buffer.byteLength(JSON.stringify(write.value)) : 0
    if (batch.length >= WRITES_MOST || (batch.length > 0 && bytes + size > BYTES_MOST)) {
      yield batch
      batch = []
      bytes = 0
    }
    batch.push(write)
    bytes += size
  }
  if (batch.length > 0) yield batch
}
