/** What a VM's screen shows, as a PNG that QEMU makes itself. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { rm } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import type { Running } from '@wadah/ports/machine'
import { openRegular } from '../system/files.ts'

const TIMEOUT_MS = 20_000
/** A screen of 8192 × 8192 that does not compress at all is no larger. */
const MAX_BYTES = 256 * 1024 * 1024
const PNG_MAGIC = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])

/**
 * QEMU writes the file into its own folder, where it alone can write, and it is read from there as what it is: something a guest
 * may have had a hand in.
 * @throws WadahError `host_lacks` when this QEMU makes no PNG, `qemu_failed`, `monitor_silent`, `wrong_state`
 */
export async function screenshot(running: Running, liveDir: string, signal: AbortSignal): Promise<Uint8Array> {
  const path = `${liveDir}/screen-${randomBytes(8).toString('hex')}.png`
  try {
    await running.execute('screendump', { filename: path, format: 'png' }, { timeout_ms: TIMEOUT_MS, signal })
    const file = await openRegular(path, constants.O_RDONLY)
    try {
      const { size } = await file.stat()
      if (size > MAX_BYTES) throw fail('too_large', `QEMU made a picture of ${size} bytes.`)
      const data = await file.readFile()
      if (!data.subarray(0, PNG_MAGIC.length).equals(PNG_MAGIC)) {
        throw fail('host_lacks', 'This QEMU makes no PNG pictures.', {
          remedy: 'a QEMU 7.1 or newer, built with libpng',
        })
      }
      return data
    } finally {
      await file.close()
    }
  } finally {
    await rm(path, { force: true })
  }
}
