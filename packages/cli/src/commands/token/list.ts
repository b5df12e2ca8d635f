import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { since } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.token.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const { items } = await api.call(endpoints.tokens.list)
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((x) => out.line(out.cell(x.name)))
      if (items.length === 0) return out.note(t('token.none'))
      await out.table(
        [t('col.name'), t('col.scope'), t('col.age'), t('col.who'), t('col.expires'), t('col.last_used')],
        items.map((x) => [
          x.name,
          x.scope,
          since(x.created_at, cli.io.now()),
          x.created_by,
          x.expires_at ?? '',
          x.last_used_at ?? '',
        ]),
      )
    })
}
