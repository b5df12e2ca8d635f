import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const resume: Register = (group, cli) => {
  group
    .command('resume <vm>')
    .description(cli.t('cmd.vm.resume'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const now = await api.call(endpoints.vms.resume, { params: { vm } })
      if (cli.out.isJson) return cli.out.json(now)
      if (!cli.options.quiet) cli.out.line(cli.t('vm.resumed', { name: now.name }))
    })
}
