import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'

export const stop: Register = (group, cli) => {
  group
    .command('stop <vm>')
    .description(cli.t('cmd.vm.stop'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.vms.stop, { params: { vm } })
      await finish(cli, api, job, () => cli.t('vm.stopped', { name: vm }))
    })
}
