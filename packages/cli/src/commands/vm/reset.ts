import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const reset: Register = (group, cli) => {
  bulkCommand(group, 'reset', cli)
    .description(cli.t('cmd.vm.reset'))
    .action(async (vms: string[], options: BulkOptions) => {
      await runBulk(cli, vms, options, {
        verb: 'reset',
        done: 'vm.was_reset',
        reached: () => false,
        destructive: true,
        act: (api, vm) => api.call(endpoints.vms.reset, { params: { vm } }),
      })
    })
}
