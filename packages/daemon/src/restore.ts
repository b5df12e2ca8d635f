/** `wadahd --restore FILE`: puts a copy of the store in place while no daemon runs. VMs run on and are adopted by the next start. */
import { existsSync } from 'node:fs'
import { chmod, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fail, WadahError } from '@wadah/api/fault'
import { storeFault } from '@wadah/cluster/jobs/faults'
import { StoreError } from '@wadah/store/errors'
import { restoreStore } from '@wadah/store/sqlite/restore'
import { readIdentity } from './cluster/identity.ts'
import type { DaemonConfig } from './config.ts'

export async function restore(config: DaemonConfig, from: string): Promise<void> {
  if (!existsSync(from)) throw fail('not_found', `There is no file ${from}.`, { field: '/restore' })
  const identity = await readIdentity(config.data)
  if (identity)
    throw fail(
      'wrong_state',
      `${identity.name} is of a cluster: what it knows lies in the cluster's store, and a copy put in place here would be read by nobody.`,
      {
        remedy: `on another host: wadah cluster remove ${identity.name}; once it is alone again: wadah store restore ${from}`,
      },
    )
  await mkdir(config.data, { recursive: true, mode: 0o711 })
  await chmod(config.data, 0o711)
  const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-')
  const done = await restoreStore({ file: join(config.data, 'store.db'), from, stamp }).catch((error: unknown) => {
    if (!(error instanceof StoreError)) throw error
    if (error.kind === 'locked') {
      throw fail('wrong_state', 'A wadahd has the store open; it can be restored only while none runs.', {
        remedy: 'systemctl stop wadahd, or wadah down (VMs run on)',
        cause: error,
      })
    }
    throw new WadahError(storeFault(error), error)
  })
  process.stdout.write(`${JSON.stringify(done)}\n`)
}
