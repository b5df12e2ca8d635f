import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'
import { oneOf } from '../options.ts'

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.token.create'))
    .option('--scope <scope>', cli.t('opt.token.scope'), 'read')
    .option('--days <n>', cli.t('opt.token.days'))
    .action(async (name: string, options: { scope: string; days?: string }) => {
      const scope = oneOf(options.scope, '--scope', ['read', 'full'] as const) ?? 'read'
      const days = options.days === undefined ? {} : { days: parseInteger(options.days, '--days', 1, 3650) }
      const api = await cli.api()
      const token = await api.call(endpoints.tokens.create, { body: { name, scope, ...days } })
      if (cli.out.isJson) return cli.out.json(token)
      // Only the secret goes to stdout: `wadah token create ci > file` is all that is needed.
      cli.out.line(cli.out.cell(token.secret ?? ''))
      cli.out.note(cli.t('token.created', { name, scope }))
    })
}
