import { endpoints } from '@wadah/api/endpoints/all'
import type { DrainResult } from '@wadah/api/schema/cluster'
import { MOVE_MODES } from '@wadah/api/schema/migration'
import type { Cli } from '../../cli.ts'
import { finish } from '../../jobs/follow.ts'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'
import { formatBytes, formatTook } from '../../text/format.ts'
import { parseInteger } from '../../text/size.ts'
import { moveLimits } from '../vm/migrate.ts'

type Wishes = { maxStallMs?: string; mode?: string }

/** Empties a host, shows what that would do, and brings back what was taken. */
export const drain: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('drain <host>')
    .description(t('cmd.host.drain'))
    .option('--dry-run', t('opt.drain.dry_run'))
    .option('--at-once <n>', t('opt.drain.at_once'))
    .option('--max-stall-ms <ms>', t('opt.drain.max_stall'))
    .option('--mode <mode>', t('opt.drain.mode', { modes: MOVE_MODES.join(', ') }))
    .option('-y, --yes', t('opt.yes'))
    .action(async (host: string, o: { dryRun?: boolean; atOnce?: string; yes?: boolean } & Wishes) => {
      const at_once = o.atOnce === undefined ? undefined : parseInteger(o.atOnce, '--at-once', 1, 16)
      const wishes = moveLimits(o)
      const api = await cli.api()
      const plan = await api.call(endpoints.cluster.plan, { params: { host }, query: { at_once } })
      if (o.dryRun && out.isJson) return out.json(plan)
      if (!out.isJson) {
        await out.table(
          ['VM', t('drain.to'), t('migrate.mode'), t('col.size'), t('drain.took')],
          plan.moves.map((m) => [
            m.vm,
            // With the pools that its local disks go to.
            m.disks ? `${m.to} (${[...new Set(m.disks.map((d) => d.to))].join(', ')})` : m.to,
            m.mode,
            formatBytes(m.bytes),
            formatTook(m.seconds * 1000),
          ]),
        )
        for (const b of plan.blockers) out.warn(`! ${out.cell(b.vm)}: ${out.cell(b.why.join(' '))}`)
        out.note(t('drain.eta', { eta: formatTook(plan.eta_s * 1000), how: plan.eta_how }))
      }
      if (o.dryRun) return
      if (!o.yes && !(await confirm(cli, t('drain.ask', { host })))) return out.note(t('bulk.refused'))
      const body = { ...(at_once === undefined ? {} : { at_once }), ...wishes }
      const job = await api.call(endpoints.cluster.drain, { params: { host }, body })
      const ended = await finish(cli, api, job, ({ result }) =>
        t('drain.done', { host, n: (result as DrainResult).moved.length }),
      )
      told(cli, ended?.result)
    })

  group
    .command('undrain <host>')
    .description(t('cmd.host.undrain'))
    .option('--max-stall-ms <ms>', t('opt.drain.max_stall'))
    .option('--mode <mode>', t('opt.drain.mode', { modes: MOVE_MODES.join(', ') }))
    .action(async (host: string, o: Wishes) => {
      const body = moveLimits(o)
      const api = await cli.api()
      const job = await api.call(endpoints.cluster.undrain, { params: { host }, body })
      const ended = await finish(cli, api, job, ({ result }) =>
        t('drain.back', { host, n: (result as DrainResult).moved.length }),
      )
      told(cli, ended?.result)
    })

  group
    .command('maintenance <host>')
    .description(t('cmd.host.maintenance'))
    .option('--off', t('opt.maintenance.off'))
    .action(async (host: string, o: { off?: boolean }) => {
      const api = await cli.api()
      const shown = await api.call(endpoints.cluster.edit, { params: { host }, body: { maintenance: o.off !== true } })
      if (out.isJson) return out.json(shown)
      out.line(t(o.off ? 'maintenance.off' : 'maintenance.on', { host }))
    })
}

/** What stayed is a failure of what was asked for. */
function told(cli: Cli, result: unknown): void {
  for (const { vm, why } of (result as DrainResult | undefined)?.stayed ?? []) {
    cli.out.warn(`! ${cli.out.cell(vm)}: ${cli.out.cell(why)}`)
    cli.exit = 1
  }
}
