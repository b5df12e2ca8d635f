import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const reset: Register = (group, cli) => {
  group
    .command('reset <vm>')
    .description(cli.t('cmd.vm.reset'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const now = await api.call(endpoints.vms.reset, { params: { vm } })
      if (cli.out.isJson) return cli.out.json(now)
      if (!cli.options.quiet) cli.out.line(cli.t('vm.was_reset', { name: now.name }))
    })
}
