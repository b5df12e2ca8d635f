/** Changing the CD in a drive of a running VM (QEMU, qapi/block.json: blockdev-open-tray and its neighbours). */
import { randomBytes } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import type { Running } from '@wadah/ports/machine'
import { medium } from './argv.ts'

/** A guest that has a CD mounted gets this long to let go of it, once it was asked. */
const UNLOCK_MS = 5_000
const LOOK_MS = 100

type Drive = {
  qdev?: string
  locked?: boolean
  tray_open?: boolean
  inserted?: { 'node-name'?: string }
}

/**
 * Opens the tray, changes what lies in it, and closes it again.
 * @throws WadahError `busy` when the guest keeps the tray locked; `wrong_state` when the running VM has no such drive yet
 */
export async function setMedium(
  running: Running,
  cdrom: string,
  file: string | undefined,
  force: boolean,
  signal: AbortSignal,
  unlock_ms = UNLOCK_MS,
): Promise<void> {
  const id = `cd-${cdrom}`
  const look = async (): Promise<Drive> => {
    const all = (await running.execute('query-block', undefined, { signal })) as Drive[]
    const drive = all.find((d) => d.qdev?.split('/').includes(id) === true)
    if (!drive) {
      throw fail('wrong_state', `The running VM has no drive "${cdrom}" yet: it comes at the next start.`, {
        remedy: 'wadah vm shutdown NAME, then start it again',
      })
    }
    return drive
  }
  const before = await look()
  const there = before.inserted?.['node-name']
  await running.execute('blockdev-open-tray', { id, force }, { signal })
  const end = performance.now() + unlock_ms
  for (let now = await look(); now.tray_open !== true; now = await look()) {
    if (performance.now() > end) {
      throw fail('busy', `The guest has locked the drive "${cdrom}": it uses the CD in it.`, {
        remedy: 'unmount it in the guest (eject), or add --force',
      })
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
  try {
    if (there !== undefined) {
      await running.execute('blockdev-remove-medium', { id }, { signal })
      await running.execute('blockdev-del', { 'node-name': there }, { signal })
    }
    if (file !== undefined) {
      const node = `cdm-${randomBytes(6).toString('hex')}`
      await running.execute('blockdev-add', medium(node, file), { signal })
      await running.execute('blockdev-insert-medium', { id, 'node-name': node }, { signal })
    }
  } finally {
    await running.execute('blockdev-close-tray', { id }, { signal })
  }
}
