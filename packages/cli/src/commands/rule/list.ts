import { endpoints } from '@wadah/api/endpoints/all'
import type { Rule } from '@wadah/api/schema/rule'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'

export const namesOf = (all: readonly { name: string }[] | undefined): string =>
  (all ?? []).map((it) => it.name).join(', ')

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.rule.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<Rule>((cursor) => api.call(endpoints.rules.list, { query: { cursor, limit: 1000 } }))
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((r) => out.line(out.cell(r.name)))
      if (items.length === 0) return out.note(t('rule.none'))
      await out.table(
        [t('col.name'), t('col.kind'), t('rule.strict'), 'VM', t('rule.hosts'), t('rule.against')],
        items.map((r) => [
          r.name,
          r.kind,
          t(r.strict ? 'rule.hard' : 'rule.soft'),
          namesOf(r.vms),
          namesOf(r.hosts),
          r.broken.length === 0 ? '' : { text: namesOf(r.broken), style: 'yellow' as const },
        ]),
      )
    })
}
