import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { ruleColumns, ruleRow } from '../../out/firewall.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <firewall-group>')
    .description(cli.t('cmd.firewall.show'))
    .action(async (name: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const g = await api.call(endpoints.firewallGroups.get, { params: { group: name } })
      if (out.isJson) return out.json(g)
      await out.fields([
        [t('col.name'), { text: g.name, style: 'bold' }],
        ['id', g.id],
        [t('col.description'), g.description],
        ['VM', g.vms.map((vm) => vm.name).join(', ')],
        [t('col.created'), g.created_at],
      ])
      if (g.rules.length === 0) return
      out.line()
      await out.table(
        ruleColumns(t),
        g.rules.map((rule, i) => ruleRow(i + 1, rule)),
      )
    })
}
