import { endpoints } from '@wadah/api/endpoints/all'
import type { Image } from '@wadah/api/schema/storage'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { formatBytes, since } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.image.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<Image>((cursor) =>
        api.call(endpoints.images.list, { query: { cursor, limit: 1000 } }),
      )
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((i) => out.line(out.cell(i.name)))
      if (items.length === 0) return out.note(t('image.none'))
      await out.table(
        [t('col.name'), t('col.kind'), t('col.recipe'), t('col.size'), t('col.used_by'), t('col.age')],
        items.map((i) => [
          i.name,
          i.kind,
          i.recipe ?? '',
          formatBytes(i.size_bytes),
          i.used_by,
          since(i.created_at, cli.io.now()),
        ]),
      )
    })
}
