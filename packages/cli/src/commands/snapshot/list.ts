import { endpoints } from '@wadah/api/endpoints/all'
import { snapshotTree } from '../../out/snapshot.ts'
import type { Register } from '../../program.ts'
import { formatBytes, formatTook, since } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list <vm>')
    .alias('ls')
    .description(cli.t('cmd.snapshot.list'))
    .action(async (vm: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const { items } = await api.call(endpoints.snapshots.list, { params: { vm } })
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((s) => out.line(out.cell(s.name)))
      if (items.length === 0) return out.note(t('snapshot.none', { vm }))
      const now = Date.now()
      await out.table(
        [t('col.name'), t('col.age'), t('col.consistency'), t('col.ram'), t('col.stall'), t('col.description')],
        snapshotTree(items).map(({ lead, snapshot: s }) => [
          `${lead}${s.name}${s.current ? ` ${t('snapshot.here')}` : ''}`,
          since(s.created_at, now),
          s.consistency === undefined ? t(`snapshot.state.${s.state as 'making'}`) : t(`snapshot.is.${s.consistency}`),
          s.ram_bytes === undefined ? '' : formatBytes(s.ram_bytes),
          s.stall_ms === undefined ? '' : formatTook(s.stall_ms),
          s.description,
        ]),
      )
    })
}
