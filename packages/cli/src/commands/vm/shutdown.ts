import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'
import { parseInteger } from '../../text/size.ts'

export const shutdown: Register = (group, cli) => {
  bulkCommand(group, 'shutdown', cli)
    .description(cli.t('cmd.vm.shutdown'))
    .option('--grace <seconds>', cli.t('opt.shutdown.grace'))
    .option('--force', cli.t('opt.shutdown.force'))
    .action(async (vms: string[], options: BulkOptions & { grace?: string; force?: boolean }) => {
      await runBulk(cli, vms, options, {
        verb: 'shutdown',
        done: 'vm.shut_down',
        reached: (vm) => vm.status.state === 'stopped',
        act: (api, vm) =>
          api.call(endpoints.vms.shutdown, {
            params: { vm },
            body: {
              ...(options.grace === undefined ? {} : { timeout_s: parseInteger(options.grace, '--grace', 1, 3600) }),
              ...(options.force ? { force: true } : {}),
            },
          }),
      })
    })
}
