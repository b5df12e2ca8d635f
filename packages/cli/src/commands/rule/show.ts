import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { namesOf } from './list.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <rule>')
    .description(cli.t('cmd.rule.show'))
    .action(async (name: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const r = await api.call(endpoints.rules.get, { params: { rule: name } })
      if (out.isJson) return out.json(r)
      await out.fields([
        [t('col.name'), { text: r.name, style: 'bold' }],
        ['id', r.id],
        [t('col.kind'), r.kind],
        [t('rule.strict'), t(r.strict ? 'rule.hard' : 'rule.soft')],
        [t('rule.selector'), r.selector],
        [t('rule.hosts'), r.hosts === undefined ? undefined : namesOf(r.hosts)],
        ['VM', namesOf(r.vms)],
        [t('rule.against'), namesOf(r.broken)],
        [t('col.created'), r.created_at],
      ])
    })
}
