import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <image>')
    .description(cli.t('cmd.image.show'))
    .action(async (image: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const i = await api.call(endpoints.images.get, { params: { image } })
      if (out.isJson) return out.json(i)
      await out.fields([
        [t('col.name'), { text: i.name, style: 'bold' }],
        ['id', i.id],
        [t('col.description'), i.description],
        [t('col.kind'), i.kind],
        [t('col.recipe'), i.recipe],
        [t('col.service'), i.service ? `${i.service.kind} ${i.service.port} ${i.service.path ?? ''}`.trim() : ''],
        [t('col.size'), formatBytes(i.size_bytes)],
        [t('col.volume'), [i.volume, ...(i.more_volumes ?? [])].filter((v) => v !== undefined).join(' ')],
        [t('col.memory'), t('image.min_memory', { size: formatBytes(i.min_memory_mib * 2 ** 20) })],
        [t('col.kernel'), i.kernel_version],
        [t('col.cmdline'), i.cmdline],
        [t('col.agent'), t(i.agent ? 'word.yes' : 'word.no')],
        [
          t('col.hardware'),
          i.hardware
            ? t('image.hardware', {
                cpus: i.hardware.cpus ?? 1,
                memory: formatBytes((i.hardware.memory_mib ?? 0) * 2 ** 20),
                nics: i.hardware.nics ?? 1,
                firmware: i.hardware.firmware ?? 'bios',
              })
            : '',
        ],
        [t('col.seed'), i.seed],
        [t('col.source'), i.source ? `${i.source.format} ${i.source.url ?? ''}`.trim() : ''],
        [t('col.notes'), i.notes?.join('; ')],
        [
          t('col.warm'),
          i.warm
            ? t('image.warm', {
                memory: formatBytes(i.warm.memory_mib * 2 ** 20),
                cpus: i.warm.cpus,
                ram: formatBytes(i.warm.ram_bytes),
              })
            : '',
        ],
        ['SHA-256', i.sha256],
        [t('col.used_by'), i.used_by],
        [t('col.created'), i.created_at],
        [t('col.packages'), i.packages?.length],
      ])
    })
}
