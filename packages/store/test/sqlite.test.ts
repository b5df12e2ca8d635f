import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { put } from '@wadah/store/store'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { FakeClock } from '@wadah/store/testing/clock'
import { storeConformance } from '@wadah/store/testing/conformance'

storeConformance('sqlite', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-store-'))
  const clock = new FakeClock()
  const file = join(dir, 'store.db')
  const store = await openSqliteStore({ file, clock, keepRevisions: 400, tokenAge_ms: 60_000 })
  return {
    store,
    compact: async () => {
      // Forgetting is part of ordinary commits, every 256 revisions.
      for (let n = 0; n < 1000; n += 1) await store.txn([], [put({ name: 'noise' }, 'n', n)], `noise-${n}`)
      await store.txn([], [{ op: 'delete', kind: 'noise', id: 'n' }], 'noise-end')
    },
    standStill: async (ms) => clock.freeze(ms),
    expireTokens: async () => clock.advance(61_000),
    close: async () => {
      await store.close()
      rmSync(dir, { recursive: true, force: true })
    },
  }
})
