import { endpoints } from '@wadah/api/endpoints/all'
import type { FirewallGroup } from '@wadah/api/schema/firewall'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.firewall.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<FirewallGroup>((cursor) =>
        api.call(endpoints.firewallGroups.list, { query: { cursor, limit: 1000 } }),
      )
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((g) => out.line(out.cell(g.name)))
      if (items.length === 0) return out.note(t('firewall.none'))
      await out.table(
        [t('col.name'), t('col.rules'), 'VM', t('col.description')],
        items.map((g) => [g.name, g.rules.length, g.vms.map((vm) => vm.name).join(', '), g.description]),
      )
    })
}
