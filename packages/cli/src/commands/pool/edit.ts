import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Register } from '../../program.ts'

export const edit: Register = (group, cli) => {
  group
    .command('edit <pool>')
    .description(cli.t('cmd.pool.edit'))
    .requiredOption('--overcommit <ratio>', cli.t('opt.overcommit'))
    .action(async (pool: string, options: { overcommit: string }) => {
      const api = await cli.api()
      const edited = await api.call(endpoints.pools.edit, {
        params: { pool },
        body: { overcommit: parseRatio(options.overcommit) },
      })
      if (cli.out.isJson) return cli.out.json(edited)
      if (!cli.options.quiet) cli.out.line(cli.t('edited', { name: edited.name }))
    })
}

/** A ratio of promised bytes to capacity, 0.1 to 100. */
export function parseRatio(text: string): number {
  const value = /^\d{1,3}(\.\d{1,3})?$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= 0.1 && value <= 100)) {
    throw fail('invalid', `--overcommit: "${text}" is not a ratio from 0.1 to 100; 2 promises twice the capacity`, {
      field: '--overcommit',
    })
  }
  return value
}
