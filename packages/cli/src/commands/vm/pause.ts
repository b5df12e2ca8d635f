import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const pause: Register = (group, cli) => {
  bulkCommand(group, 'pause', cli)
    .description(cli.t('cmd.vm.pause'))
    .action(async (vms: string[], options: BulkOptions) => {
      await runBulk(cli, vms, options, {
        verb: 'pause',
        done: 'vm.paused',
        reached: (vm) => vm.status.state === 'paused',
        act: (api, vm) => api.call(endpoints.vms.pause, { params: { vm } }),
      })
    })
}
