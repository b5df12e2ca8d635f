import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

export const wait: Register = (group, cli) => {
  group
    .command('wait <job>')
    .description(cli.t('cmd.job.wait'))
    .action(async (id: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.jobs.get, { params: { job: id } })
      await finish(cli, api, job, () => cli.t('job.done', { id }))
    })
}
