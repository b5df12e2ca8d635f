import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { oneOf } from '../options.ts'

export const clone: Register = (group, cli) => {
  group
    .command('clone <volume> <name>')
    .description(cli.t('cmd.volume.clone'))
    .option('--clone <kind>', cli.t('opt.clone'))
    .option('--pool <pool>', cli.t('opt.pool'))
    .action(async (volume: string, name: string, o: { clone?: string; pool?: string }) => {
      const kind = oneOf(o.clone, '--clone', ['linked', 'full'] as const)
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.clone, {
        params: { volume },
        body: { name, ...(kind ? { clone: kind } : {}), ...(o.pool === undefined ? {} : { pool: o.pool }) },
      })
      await finish(cli, api, job, () => cli.t('created', { name }))
    })
}
