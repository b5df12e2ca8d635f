import { endpoints } from '@wadah/api/endpoints/all'
import { pipeline } from 'node:stream/promises'
import { saveTo } from '../../local/files.ts'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const screenshot: Register = (group, cli) => {
  group
    .command('screenshot <vm> [file]')
    .description(cli.t('cmd.vm.screenshot'))
    .action(async (vm: string, file: string | undefined) => {
      const api = await cli.api()
      const picture = await api.open(endpoints.vms.screenshot, { params: { vm } })
      if (file === '-') return pipeline(picture, cli.io.stdout, { end: false })
      const saved = await saveTo(file ?? `${vm}.png`, `${vm}.png`, picture)
      if (cli.out.isJson) cli.out.json(saved)
      else cli.out.note(cli.t('cp.done', { to: saved.path, size: formatBytes(saved.size_bytes) }))
    })
}
