import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { FirewallGroupEdit } from '@wadah/api/schema/firewall'
import type { Register } from '../../program.ts'
import { mergeRules } from '../../text/firewall.ts'
import { collect } from '../options.ts'

type Options = { name?: string; description?: string; rule?: string[]; removeRule?: string[] }

export const edit: Register = (group, cli) => {
  group
    .command('edit <firewall-group>')
    .description(cli.t('cmd.firewall.edit'))
    .option('--rule <rule>', cli.t('opt.rule'), collect)
    .option('--remove-rule <rule>', cli.t('opt.remove_rule'), collect)
    .option('--name <name>', cli.t('opt.edit.name'))
    .option('--description <text>', cli.t('opt.description'))
    .action(async (ref: string, { rule, removeRule, ...rest }: Options) => {
      const api = await cli.api()
      const params = { group: ref }
      const before = await api.call(endpoints.firewallGroups.get, { params })
      const body: FirewallGroupEdit = {
        ...rest,
        ...(rule || removeRule ? { rules: mergeRules(before.rules, rule, removeRule) } : {}),
      }
      if (Object.keys(body).length === 0)
        throw fail('invalid', 'Nothing to change: name at least one option', {
          remedy: 'wadah help firewall group edit',
        })
      const edited = await api.call(endpoints.firewallGroups.edit, { params, body, generation: before.generation })
      if (cli.out.isJson) return cli.out.json(edited)
      if (!cli.options.quiet) cli.out.line(cli.t('firewall.edited', { name: edited.name, n: edited.vms.length }))
    })
}
