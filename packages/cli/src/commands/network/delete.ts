import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <network>')
    .alias('rm')
    .description(cli.t('cmd.network.delete'))
    .action(async (network: string) => {
      const api = await cli.api()
      await api.call(endpoints.networks.delete, { params: { network } })
      if (cli.out.isJson) return cli.out.json({ deleted: network })
      if (!cli.options.quiet) cli.out.line(cli.t('deleted', { name: network }))
    })
}
