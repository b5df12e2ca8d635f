import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const resume: Register = (group, cli) => {
  bulkCommand(group, 'resume', cli)
    .description(cli.t('cmd.vm.resume'))
    .action(async (vms: string[], options: BulkOptions) => {
      await runBulk(cli, vms, options, {
        verb: 'resume',
        done: 'vm.resumed',
        reached: (vm) => vm.status.state === 'running',
        act: (api, vm) => api.call(endpoints.vms.resume, { params: { vm } }),
      })
    })
}
