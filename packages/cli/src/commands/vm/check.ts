import { endpoints } from '@wadah/api/endpoints/all'
import { EXIT } from '../../exit.ts'
import type { Register } from '../../program.ts'
import { formatTook } from '../../text/format.ts'

export const check: Register = (group, cli) => {
  group
    .command('check <vm>')
    .description(cli.t('cmd.vm.check'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const health = await api.call(endpoints.vms.health, { params: { vm } })
      if (!health.ok) cli.exit = EXIT.failed
      if (cli.out.isJson) return cli.out.json(health)
      const params = { name: vm, detail: health.detail, took: formatTook(health.took_ms) }
      cli.out.line(cli.t(health.ok ? 'vm.healthy' : 'vm.unhealthy', params))
    })
}
