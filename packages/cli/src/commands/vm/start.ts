import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const start: Register = (group, cli) => {
  bulkCommand(group, 'start', cli)
    .description(cli.t('cmd.vm.start'))
    .action(async (vms: string[], options: BulkOptions) => {
      await runBulk(cli, vms, options, {
        verb: 'start',
        done: 'vm.started',
        reached: (vm) => vm.status.state === 'running',
        act: (api, vm) => api.call(endpoints.vms.start, { params: { vm } }),
      })
    })
}
