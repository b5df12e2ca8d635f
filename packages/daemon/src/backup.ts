/** A copy of the store, made by its own thread and handed out piece by piece. */
import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { WadahError } from '@wadah/api/fault'
import { storeFault } from '@wadah/cluster/jobs/faults'
import { StoreError } from '@wadah/store/errors'

const PREFIX = 'store.backup-'

/** Copies that a crash left. */
export async function dropOldCopies(dataDir: string): Promise<void> {
  for (const name of await readdir(dataDir)) if (name.startsWith(PREFIX)) await rm(join(dataDir, name), { force: true })
}

/** Consistent as of one moment; work on the store goes on as soon as the copy is made. The copy goes with the last byte, or the client. */
export async function* backupStream(
  store: { backup(file: string): Promise<void> },
  dataDir: string,
): AsyncGenerator<Uint8Array> {
  const file = join(dataDir, `${PREFIX}${randomBytes(6).toString('hex')}`)
  try {
    await store.backup(file).catch((error: unknown) => {
      throw error instanceof StoreError ? new WadahError(storeFault(error), error) : error
    })
    yield* createReadStream(file) as AsyncIterable<Uint8Array>
  } finally {
    await rm(file, { force: true })
  }
}
