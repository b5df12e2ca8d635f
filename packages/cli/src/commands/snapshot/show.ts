import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { formatBytes, formatTook } from '../../text/format.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <vm> <snapshot>')
    .description(cli.t('cmd.snapshot.show'))
    .action(async (vm: string, snapshot: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const s = await api.call(endpoints.snapshots.get, { params: { vm, snapshot } })
      if (out.isJson) return out.json(s)
      const parent = s.parent === undefined ? undefined : await nameOf(s.parent)
      await out.fields([
        [t('col.name'), s.name],
        ['id', s.id],
        [t('col.description'), s.description],
        [t('col.created'), s.created_at],
        [t('snapshot.parent'), parent ?? ''],
        [t('col.consistency'), s.consistency === undefined ? '' : t(`snapshot.is.${s.consistency}`)],
        [t('snapshot.note'), s.note ?? ''],
        [t('col.ram'), s.ram_bytes === undefined ? '' : formatBytes(s.ram_bytes)],
        [t('col.stall'), s.stall_ms === undefined ? '' : formatTook(s.stall_ms)],
        [t('snapshot.frozen'), s.frozen_ms === undefined ? '' : formatTook(s.frozen_ms)],
        [t('snapshot.machine'), t('snapshot.machine_text', { cpus: s.cpus, memory: s.memory_mib })],
        [t('snapshot.disks'), s.disks.map((d) => d.name).join(', ')],
      ])

      async function nameOf(id: string): Promise<string> {
        const found = await api.call(endpoints.snapshots.list, { params: { vm } })
        return found.items.find((i) => i.id === id)?.name ?? id
      }
    })
}
