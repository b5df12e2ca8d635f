import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { actionCell, ruleColumns, ruleRow } from '../../out/firewall.ts'

export const firewall: Register = (group, cli) => {
  group
    .command('firewall <vm>')
    .description(cli.t('cmd.vm.firewall'))
    .action(async (vm: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const f = await api.call(endpoints.vms.firewall, { params: { vm } })
      if (out.isJson) return out.json(f)
      if (!f.enabled) return out.note(t('firewall.off', { vm }))
      const rows = f.rules.map((rule, i) => [
        ...ruleRow(i + 1, rule),
        rule.group ?? '',
        // What groups in the rule stand for now.
        rule.addresses === undefined ? '' : rule.addresses.join(', ') || t('firewall.nobody'),
      ])
      const rest = (['in', 'out'] as const).map((direction) => [
        '',
        t('firewall.default'),
        direction,
        actionCell(f[direction]),
        'any',
        '',
        '*',
        '',
        '',
      ])
      await out.table([...ruleColumns(t), t('col.group'), t('col.addresses')], [...rows, ...rest])
    })
}
