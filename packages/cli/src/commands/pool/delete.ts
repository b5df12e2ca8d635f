import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <pool>')
    .alias('rm')
    .description(cli.t('cmd.pool.delete'))
    .action(async (pool: string) => {
      const api = await cli.api()
      await api.call(endpoints.pools.delete, { params: { pool } })
      if (cli.out.isJson) return cli.out.json({ deleted: pool })
      if (!cli.options.quiet) cli.out.line(cli.t('deleted', { name: pool }))
    })
}
