import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'
import { hostTable } from '../host/list.ts'

export const show: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('show')
    .description(t('cmd.cluster.show'))
    .action(async () => {
      const api = await cli.api()
      const c = await api.call(endpoints.cluster.get)
      if (out.isJson) return out.json(c)
      if (c.id === undefined) return out.note(t('cluster.alone'))
      await out.fields([
        ['id', c.id],
        [t('cluster.store'), c.store.given ? t('cluster.given', { prefix: c.store.given.prefix }) : c.store.kind],
        [t('cluster.client_until'), c.store.given?.client_until],
        [t('cluster.level'), String(c.level)],
        [t('cluster.plain'), c.plain_networks?.join(', ') || undefined],
      ])
      out.line()
      await hostTable(cli, c)
      out.line()
      const nameOf = (id: string | undefined) => c.hosts.find((h) => h.id === id)?.name ?? ''
      await out.table(
        [t('cluster.member'), t('col.state'), t('cluster.endpoint'), 'etcd', t('col.size')],
        c.store.members.map((m) => [
          nameOf(m.host),
          m.state,
          m.endpoint,
          m.version ?? '',
          m.size_bytes === undefined ? '' : formatBytes(m.size_bytes),
        ]),
      )
      for (const { detail } of c.store.members) if (detail !== undefined) out.note(out.cell(detail))
    })
}
