import { endpoints } from '@wadah/api/endpoints/all'
import type { Pool } from '@wadah/api/schema/storage'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.pool.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<Pool>((cursor) => api.call(endpoints.pools.list, { query: { cursor, limit: 1000 } }))
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((p) => out.line(out.cell(p.name)))
      if (items.length === 0) return out.note(t('pool.none'))
      await out.table(
        [t('col.name'), t('col.path'), t('col.capacity'), t('col.free'), t('col.promised'), t('col.overcommit')],
        items.map((p) => [
          p.name,
          p.path,
          formatBytes(p.capacity_bytes),
          formatBytes(p.free_bytes),
          formatBytes(p.promised_bytes),
          p.overcommit,
        ]),
      )
    })
}
