import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <volume>')
    .alias('rm')
    .description(cli.t('cmd.volume.delete'))
    .action(async (volume: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.delete, { params: { volume } })
      await finish(cli, api, job, () => cli.t('deleted', { name: volume }))
    })
}
