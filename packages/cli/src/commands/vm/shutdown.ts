import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'
import { parseInteger } from '../../text/size.ts'

export const shutdown: Register = (group, cli) => {
  group
    .command('shutdown <vm>')
    .description(cli.t('cmd.vm.shutdown'))
    .option('--grace <seconds>', cli.t('opt.shutdown.grace'))
    .option('--force', cli.t('opt.shutdown.force'))
    .action(async (vm: string, options: { grace?: string; force?: boolean }) => {
      const api = await cli.api()
      const job = await api.call(endpoints.vms.shutdown, {
        params: { vm },
        body: {
          ...(options.grace === undefined ? {} : { timeout_s: parseInteger(options.grace, '--grace', 1, 3600) }),
          ...(options.force ? { force: true } : {}),
        },
      })
      await finish(cli, api, job, () => cli.t('vm.shut_down', { name: vm }))
    })
}
