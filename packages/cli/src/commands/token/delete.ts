import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <token>')
    .alias('rm')
    .description(cli.t('cmd.token.delete'))
    .action(async (token: string) => {
      const api = await cli.api()
      await api.call(endpoints.tokens.delete, { params: { token } })
      if (cli.out.isJson) return cli.out.json({ deleted: token })
      if (!cli.options.quiet) cli.out.line(cli.t('token.deleted', { name: token }))
    })
}
