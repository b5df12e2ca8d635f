import { endpoints } from '@wadah/api/endpoints/all'
import type { Network } from '@wadah/api/schema/network'
import { listAll } from '../../net/api.ts'
import type { Cell } from '../../out/output.ts'
import type { Register } from '../../program.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.network.list'))
    .action(async () => {
      const { t, out } = cli
      const api = await cli.api()
      const items = await listAll<Network>((cursor) =>
        api.call(endpoints.networks.list, { query: { cursor, limit: 1000 } }),
      )
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((n) => out.line(out.cell(n.name)))
      if (items.length === 0) return out.note(t('network.none'))
      await out.table(
        [
          t('col.name'),
          t('col.kind'),
          t('col.state'),
          t('col.subnet'),
          t('col.bridge'),
          t('col.domain'),
          t('col.reserved'),
        ],
        items.map((n) => [
          n.name,
          n.kind,
          networkState(n),
          n.subnet ?? '',
          n.bridge ?? '',
          n.domain ?? '',
          n.reservations.length,
        ]),
      )
    })
}

export function networkState(n: Network): Cell {
  if (n.state === 'up') return { text: 'up', style: 'green' }
  return { text: n.reason === undefined ? 'down' : `down (${n.reason})`, style: 'red' }
}
