import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const stop: Register = (group, cli) => {
  bulkCommand(group, 'stop', cli)
    .description(cli.t('cmd.vm.stop'))
    .action(async (vms: string[], options: BulkOptions) => {
      await runBulk(cli, vms, options, {
        verb: 'stop',
        done: 'vm.stopped',
        reached: (vm) => vm.status.state === 'stopped',
        destructive: true,
        act: (api, vm) => api.call(endpoints.vms.stop, { params: { vm } }),
      })
    })
}
