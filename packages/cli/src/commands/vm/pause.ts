import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const pause: Register = (group, cli) => {
  group
    .command('pause <vm>')
    .description(cli.t('cmd.vm.pause'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const now = await api.call(endpoints.vms.pause, { params: { vm } })
      if (cli.out.isJson) return cli.out.json(now)
      if (!cli.options.quiet) cli.out.line(cli.t('vm.paused', { name: now.name }))
    })
}
