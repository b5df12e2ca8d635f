import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { printVm } from '../../out/vm-detail.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <vm>')
    .description(cli.t('cmd.vm.show'))
    .action(async (vm: string) => {
      const api = await cli.api()
      const found = await api.call(endpoints.vms.get, { params: { vm } })
      if (cli.out.isJson) return cli.out.json(found)
      await printVm(cli, found)
    })
}
