import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { SnapshotSchedule } from '@wadah/api/schema/snapshot'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'
import { formatEvery, parseEvery } from '../../text/every.ts'

type Options = { every?: string; keep?: string; keepDaily?: string; keepWeekly?: string; ram?: boolean; off?: boolean }

export const schedule: Register = (group, cli) => {
  const { t } = cli
  group
    .command('schedule <vm>')
    .description(t('cmd.snapshot.schedule'))
    .option('--every <time>', t('opt.snapshot.every'))
    .option('--keep <n>', t('opt.snapshot.keep'))
    .option('--keep-daily <n>', t('opt.snapshot.keep_daily'))
    .option('--keep-weekly <n>', t('opt.snapshot.keep_weekly'))
    .option('--ram', t('opt.snapshot.schedule_ram'))
    .option('--off', t('opt.snapshot.off'))
    .action(async (vm: string, o: Options) => {
      const api = await cli.api()
      const said = o.every !== undefined
      if (o.off && said) throw fail('invalid', t('snapshot.off_both'), { field: 'off' })
      if (!said && !o.off && (o.keep ?? o.keepDaily ?? o.keepWeekly ?? o.ram) !== undefined)
        throw fail('invalid', t('snapshot.need_every'), { field: 'every' })
      const wanted = o.off ? null : said ? scheduleOf(o) : undefined
      const found =
        wanted === undefined
          ? await api.call(endpoints.vms.get, { params: { vm } })
          : await api.call(endpoints.vms.edit, { params: { vm }, body: { snapshot_schedule: wanted } })
      const now = found.snapshot_schedule
      if (cli.out.isJson) return cli.out.json(now ?? null)
      if (!now) return cli.out.line(t('snapshot.no_schedule', { vm }))
      const { keep_last, keep_daily = 0, keep_weekly = 0 } = now
      cli.out.line(
        t('snapshot.schedule_text', { vm, every: formatEvery(now.every_minutes), keep_last, keep_daily, keep_weekly }) +
          (now.ram ? ` ${t('snapshot.schedule_ram')}` : ''),
      )
    })
}

function scheduleOf(o: Options): SnapshotSchedule {
  return {
    every_minutes: parseEvery(o.every ?? '', 'every'),
    keep_last: parseInteger(o.keep ?? '7', 'keep', 1, 24),
    ...(o.keepDaily === undefined ? {} : { keep_daily: parseInteger(o.keepDaily, 'keep-daily', 0, 14) }),
    ...(o.keepWeekly === undefined ? {} : { keep_weekly: parseInteger(o.keepWeekly, 'keep-weekly', 0, 8) }),
    ...(o.ram ? { ram: true } : {}),
  }
}
