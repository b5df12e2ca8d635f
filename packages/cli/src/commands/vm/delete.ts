import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { type BulkOptions, bulkCommand, runBulk } from '../../jobs/bulk.ts'

export const delete_: Register = (group, cli) => {
  bulkCommand(group, 'delete', cli)
    .alias('rm')
    .description(cli.t('cmd.vm.delete'))
    .option('--force', cli.t('opt.delete.force'))
    .option('--keep-disks', cli.t('opt.delete.keep_disks'))
    .action(async (vms: string[], options: BulkOptions & { force?: boolean; keepDisks?: boolean }) => {
      await runBulk(cli, vms, options, {
        verb: 'delete',
        done: options.keepDisks ? 'vm.deleted_kept' : 'vm.deleted',
        reached: () => false,
        destructive: true,
        act: (api, vm) =>
          api.call(endpoints.vms.delete, {
            params: { vm },
            query: { force: options.force, keep_disks: options.keepDisks },
          }),
      })
    })
}
