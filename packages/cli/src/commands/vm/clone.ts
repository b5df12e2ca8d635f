import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'
import { oneOf } from '../options.ts'

export const clone: Register = (group, cli) => {
  group
    .command('clone <vm> <name>')
    .description(cli.t('cmd.vm.clone'))
    .option('--clone <kind>', cli.t('opt.clone'))
    .option('--start', cli.t('opt.start'))
    .action(async (vm: string, name: string, options: { clone?: string; start?: boolean }) => {
      const api = await cli.api()
      const kind = oneOf(options.clone, '--clone', ['linked', 'full'] as const)
      const job = await api.call(endpoints.vms.clone, {
        params: { vm },
        body: { name, ...(kind ? { clone: kind } : {}), ...(options.start ? { start: true } : {}) },
      })
      await finish(cli, api, job, () => cli.t('vm.cloned', { name: vm, to: name }))
    })
}
