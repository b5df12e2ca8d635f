import { endpoints } from '@wadah/api/endpoints/all'
import { resolve } from 'node:path'
import type { Register } from '../../program.ts'
import { parseRatio } from './edit.ts'

export const create: Register = (group, cli) => {
  group
    .command('create <name> <path>')
    .description(cli.t('cmd.pool.create'))
    .option('--overcommit <ratio>', cli.t('opt.overcommit'))
    .option('--shared', cli.t('opt.pool.shared'))
    .action(async (name: string, path: string, options: { overcommit?: string; shared?: boolean }) => {
      const api = await cli.api()
      const pool = await api.call(endpoints.pools.create, {
        body: {
          name,
          path: resolve(path),
          ...(options.shared ? { shared: true } : {}),
          ...(options.overcommit === undefined ? {} : { overcommit: parseRatio(options.overcommit) }),
        },
      })
      if (cli.out.isJson) return cli.out.json(pool)
      if (!cli.options.quiet) cli.out.line(cli.t('created', { name }))
    })
}
