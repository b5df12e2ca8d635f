import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const recipes: Register = (group, cli) => {
  group
    .command('recipes')
    .description(cli.t('cmd.image.recipes'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const { items } = await api.call(endpoints.images.recipes)
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((r) => out.line(out.cell(r.name)))
      await out.table(
        [t('col.name'), t('col.title'), t('col.service'), t('col.state')],
        items.map((r) => [
          r.name,
          cli.language === 'id' ? r.title_id : r.title,
          r.service ? `${r.service.kind} ${r.service.port}` : '',
          r.problem === undefined ? t('recipe.usable') : { text: r.problem, style: 'red' },
        ]),
      )
    })
}
