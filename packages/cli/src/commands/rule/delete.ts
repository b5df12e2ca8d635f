import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <rule>')
    .alias('rm')
    .description(cli.t('cmd.rule.delete'))
    .action(async (name: string) => {
      const api = await cli.api()
      await api.call(endpoints.rules.delete, { params: { rule: name } })
      if (cli.out.isJson) return cli.out.json({ deleted: name })
      if (!cli.options.quiet) cli.out.line(cli.t('deleted', { name }))
    })
}
