import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <volume>')
    .description(cli.t('cmd.volume.show'))
    .action(async (volume: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const v = await api.call(endpoints.volumes.get, { params: { volume } })
      if (out.isJson) return out.json(v)
      await out.fields([
        [t('col.name'), { text: v.name, style: 'bold' }],
        ['id', v.id],
        [t('col.pool'), v.pool],
        [t('col.format'), v.format],
        [t('col.size'), formatBytes(v.size_bytes)],
        [t('col.allocated'), v.allocated_bytes === undefined ? '' : formatBytes(v.allocated_bytes)],
        [t('col.base'), v.base],
        ['VM', v.vm],
        [t('col.image'), v.image],
        [t('col.read_only'), t(v.read_only ? 'word.yes' : 'word.no')],
        [t('col.created'), v.created_at],
      ])
    })
}
