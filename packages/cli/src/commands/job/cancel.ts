import { endpoints } from '@wadah/api/endpoints/all'
import { follow } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

export const cancel: Register = (group, cli) => {
  group
    .command('cancel <job>')
    .description(cli.t('cmd.job.cancel'))
    .action(async (id: string) => {
      const api = await cli.api()
      let job = await api.call(endpoints.jobs.cancel, { params: { job: id } })
      if (cli.waits) job = await follow(cli, api, job)
      if (cli.out.isJson) return cli.out.json(job)
      if (!cli.options.quiet) cli.out.line(cli.t('job.ended_as', { id, state: job.state }))
    })
}
