import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Store } from '@wadah/store/store'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { FakeClock } from '@wadah/store/testing/clock'
import { storeConformance } from '@wadah/store/testing/conformance'
import { openMemoryStore } from '@wadah/store/testing/memory'

/** Forgetting is part of ordinary commits, every 256 revisions. */
async function compact(store: Store): Promise<void> {
  const kind = 'noise'
  for (let n = 0; n < 1000; n += 1) await store.txn([], [{ op: 'put', kind, id: 'n', value: n }], `noise-${n}`)
  await store.txn([], [{ op: 'delete', kind, id: 'n' }], 'noise-end')
}

storeConformance('sqlite', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-store-'))
  const clock = new FakeClock()
  const file = join(dir, 'store.db')
  const store = await openSqliteStore({ file, clock, keepRevisions: 400, tokenAge_ms: 60_000 })
  return {
    store,
    compact: () => compact(store),
    standStill: async (ms) => clock.freeze(ms),
    expireTokens: async () => clock.advance(61_000),
    close: async () => {
      await store.close()
      rmSync(dir, { recursive: true, force: true })
    },
  }
})

storeConformance('sqlite in memory', async () => {
  const clock = new FakeClock()
  const store = openMemoryStore({ clock, keepRevisions: 400, tokenAge_ms: 60_000 })
  return {
    store,
    compact: () => compact(store),
    standStill: async (ms) => clock.freeze(ms),
    expireTokens: async () => clock.advance(61_000),
    close: () => store.close(),
  }
})
