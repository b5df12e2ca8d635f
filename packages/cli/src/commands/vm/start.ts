import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'

export const start: Register = (group, cli) => {
  group
    .command('start <vm>')
    .description(cli.t('cmd.vm.start'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.vms.start, { params: { vm } })
      await finish(cli, api, job, () => cli.t('vm.started', { name: vm }))
    })
}
