import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { mergeRules } from '../../text/firewall.ts'
import { collect } from '../options.ts'

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.firewall.create'))
    .option('--rule <rule>', cli.t('opt.rule'), collect)
    .option('--description <text>', cli.t('opt.description'))
    .action(async (name: string, { rule, description }: { rule?: string[]; description?: string }) => {
      const rules = mergeRules([], rule)
      const api = await cli.api()
      const made = await api.call(endpoints.firewallGroups.create, {
        body: { name, rules, ...(description === undefined ? {} : { description }) },
      })
      if (cli.out.isJson) return cli.out.json(made)
      if (!cli.options.quiet) cli.out.line(cli.t('created', { name }))
    })
}
