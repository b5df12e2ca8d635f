import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <vm>')
    .alias('rm')
    .description(cli.t('cmd.vm.delete'))
    .option('--force', cli.t('opt.delete.force'))
    .option('--keep-disks', cli.t('opt.delete.keep_disks'))
    .action(async (vm: string, options: { force?: boolean; keepDisks?: boolean }) => {
      const api = await cli.api()
      const job = await api.call(endpoints.vms.delete, {
        params: { vm },
        query: { force: options.force, keep_disks: options.keepDisks },
      })
      await finish(cli, api, job, () => cli.t(options.keepDisks ? 'vm.deleted_kept' : 'vm.deleted', { name: vm }))
    })
}
