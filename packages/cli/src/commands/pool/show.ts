import { endpoints } from '@wadah/api/endpoints/all'
import type { Pool } from '@wadah/api/schema/storage'
import type { Cli } from '../../cli.ts'
import type { Register } from '../../program.ts'
import { clean } from '../../text/clean.ts'
import { formatBytes } from '../../text/format.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <pool>')
    .description(cli.t('cmd.pool.show'))
    .action(async (pool: string) => {
      const api = await cli.api()
      await printPool(cli, await api.call(endpoints.pools.get, { params: { pool } }))
    })
}

export async function printPool(cli: Cli, p: Pool): Promise<void> {
  const { t, out } = cli
  if (out.isJson) return out.json(p)
  await out.fields([
    [t('col.name'), { text: p.name, style: 'bold' }],
    ['id', p.id],
    [t('col.path'), p.path],
    [t('col.file_system'), p.file_system],
    [t('col.capacity'), formatBytes(p.capacity_bytes)],
    [t('col.free'), formatBytes(p.free_bytes)],
    [t('col.promised'), formatBytes(p.promised_bytes)],
    [t('col.overcommit'), p.overcommit],
    ['O_DIRECT', t(p.direct_io ? 'word.yes' : 'word.no')],
    [t('col.created'), p.created_at],
  ])
  for (const { detail, remedy } of p.refused ?? []) {
    out.warn(clean(detail))
    out.warn(t('fault.remedy', { remedy }))
  }
}
