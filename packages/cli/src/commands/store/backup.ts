import { open } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { savePrivately } from '../../local/private-file.ts'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

const STREAM_MS = 3_600_000

/** A copy of the record store, while the daemon works on. */
export const backup: Register = (group, cli) => {
  const { t } = cli
  group
    .command('backup <file>')
    .description(t('cmd.store.backup'))
    .action(async (file: string) => {
      if (file === '-' && cli.io.stdout.isTTY) throw fail('invalid', t('store.no_tty'), { field: 'file' })
      const api = await cli.api()
      const data = await api.open(endpoints.system.backup, { timeout_ms: STREAM_MS })
      if (file === '-') return await pipeline(data, cli.io.stdout, { end: false })
      // It holds password hashes and seeds.
      const saved = await savePrivately(file, 'store.db', data, (made) => checkWhole(made, file))
      if (cli.out.isJson) return cli.out.json(saved)
      if (!cli.options.quiet) cli.out.line(t('store.saved', { file: saved.path, size: formatBytes(saved.size_bytes) }))
    })
}

/** Its head says how many pages it has (SQLite file format 1.3). */
async function checkWhole(made: string, file: string): Promise<void> {
  const handle = await open(made, 'r')
  try {
    const head = Buffer.alloc(100)
    await handle.read(head, 0, 100, 0)
    const page_bytes = head.readUInt16BE(16) === 1 ? 65_536 : head.readUInt16BE(16)
    const whole =
      head.toString('latin1', 0, 15) === 'SQLite format 3' &&
      page_bytes * head.readUInt32BE(28) === (await handle.stat()).size
    if (!whole)
      throw fail('unreachable', `${file} is not whole: the connection broke`, { remedy: `wadah store backup ${file}` })
  } finally {
    await handle.close()
  }
}
