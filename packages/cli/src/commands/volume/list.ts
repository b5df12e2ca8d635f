import { endpoints } from '@wadah/api/endpoints/all'
import type { Volume } from '@wadah/api/schema/storage'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.volume.list'))
    .option('--pool <pool>', cli.t('opt.volume_list.pool'))
    .option('--vm <vm>', cli.t('opt.volume_list.vm'))
    .action(async (options: { pool?: string; vm?: string }) => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<Volume>((cursor) =>
        api.call(endpoints.volumes.list, { query: { ...options, cursor, limit: 1000 } }),
      )
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((v) => out.line(out.cell(v.name)))
      if (items.length === 0) return out.note(t('volume.none'))
      await out.table(
        [t('col.name'), t('col.size'), t('col.format'), t('col.base'), t('col.owner')],
        items.map((v) => [v.name, formatBytes(v.size_bytes), v.format, v.base ?? '', v.vm ?? v.image ?? '']),
      )
    })
}
