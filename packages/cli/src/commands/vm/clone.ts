import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'

export const clone: Register = (group, cli) => {
  group
    .command('clone <vm> <name>')
    .description(cli.t('cmd.vm.clone'))
    .option('--start', cli.t('opt.start'))
    .action(async (vm: string, name: string, options: { start?: boolean }) => {
      const api = await cli.api()
      const job = await api.call(endpoints.vms.clone, {
        params: { vm },
        body: { name, ...(options.start ? { start: true } : {}) },
      })
      await finish(cli, api, job, () => cli.t('vm.cloned', { name: vm, to: name }))
    })
}
