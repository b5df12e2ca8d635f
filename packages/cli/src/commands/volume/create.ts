import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { parseMib } from '../../text/size.ts'
import { oneOf } from '../options.ts'

type Options = { size: string; pool?: string; format?: string }

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.volume.create'))
    .requiredOption('--size <size>', cli.t('opt.size'))
    .option('--pool <pool>', cli.t('opt.pool'))
    .option('--format <format>', cli.t('opt.format'))
    .action(async (name: string, o: Options) => {
      const format = oneOf(o.format, '--format', ['qcow2', 'raw'] as const)
      const size_mib = parseMib(o.size, '--size')
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.create, {
        body: { name, size_mib, ...(o.pool === undefined ? {} : { pool: o.pool }), ...(format ? { format } : {}) },
      })
      await finish(cli, api, job, () => cli.t('created', { name }))
    })
}
