import { endpoints } from '@wadah/api/endpoints/all'
import { fail, WadahError } from '@wadah/api/fault'
import { MOVE_MODES, type MovePlan, type VmMigrate, type VmMove } from '@wadah/api/schema/migration'
import type { Cli } from '../../cli.ts'
import { follow, jobFault } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { formatBytes, formatTook } from '../../text/format.ts'
import { parseInteger } from '../../text/size.ts'

type Options = {
  to?: string
  pool?: string
  mode?: string
  maxStallMs?: string
  bandwidth?: string
  plain?: boolean
  tls?: boolean
  dryRun?: boolean
}

/** Moves a VM to another host, and says what its guest felt of it. */
export const migrate: Register = (group, cli) => {
  const { t } = cli
  group
    .command('migrate <vm>')
    .description(t('cmd.vm.migrate'))
    .option('--to <host>', t('opt.migrate.to'))
    .option('--pool <pool>', t('opt.migrate.pool'))
    .option('--mode <mode>', t('opt.migrate.mode', { modes: MOVE_MODES.join(', ') }))
    .option('--max-stall-ms <ms>', t('opt.migrate.max_stall'))
    .option('--bandwidth <MiB/s>', t('opt.migrate.bandwidth'))
    .option('--plain', t('opt.migrate.plain'))
    .option('--tls', t('opt.migrate.tls'))
    .option('--dry-run', t('opt.migrate.dry_run'))
    .action(async (vm: string, o: Options) => {
      const api = await cli.api()
      if (o.dryRun) return printPlan(cli, await api.call(endpoints.vms.planMove, { params: { vm }, query: bodyOf(o) }))
      const job = await api.call(endpoints.vms.migrate, { params: { vm }, body: bodyOf(o) })
      if (!cli.waits) {
        if (cli.out.isJson) return cli.out.json(job)
        return cli.out.line(t('bulk.begun', { name: vm, id: job.id }))
      }
      const ended = await follow(cli, api, job, { silent: cli.out.isJson })
      const fault = jobFault(ended)
      if (fault) {
        if (!cli.out.isJson) cli.out.note(t('job.failed', { id: ended.id }))
        throw new WadahError(fault)
      }
      const move = ended.result as VmMove
      if (cli.out.isJson) return cli.out.json(move)
      await printMove(cli, move)
    })
}

/** How it goes over, and how long its guest may stand still. */
export function moveLimits(o: Pick<Options, 'mode' | 'maxStallMs'>): Pick<VmMigrate, 'mode' | 'max_stall_ms'> {
  const mode = MOVE_MODES.find((m) => m === o.mode)
  if (o.mode !== undefined && mode === undefined)
    throw fail('invalid', `--mode ${o.mode}: one of ${MOVE_MODES.join(', ')} is wanted`, { field: '--mode' })
  return {
    ...(mode === undefined ? {} : { mode }),
    ...(o.maxStallMs === undefined ? {} : { max_stall_ms: parseInteger(o.maxStallMs, '--max-stall-ms', 1, 60_000) }),
  }
}

export function bodyOf(o: Options): VmMigrate {
  if (o.plain && o.tls) throw fail('invalid', '--plain and --tls: one of them, or neither', { field: '--plain' })
  return {
    ...(o.to === undefined ? {} : { to: o.to }),
    ...(o.pool === undefined ? {} : { pool: o.pool }),
    ...moveLimits(o),
    ...(o.bandwidth === undefined ? {} : { bandwidth_mib_per_s: parseInteger(o.bandwidth, '--bandwidth', 1, 100_000) }),
    ...(o.plain || o.tls ? { plain: o.plain === true } : {}),
  }
}

/** One that would be refused is a failure of what was asked for. */
async function printPlan(cli: Cli, p: MovePlan): Promise<void> {
  const { out, t } = cli
  if (p.blockers.length > 0) cli.exit = 1
  if (out.isJson) return out.json(p)
  const { forecast: f, disks = [] } = p
  if (p.blockers.length === 0)
    await out.fields([
      ['VM', p.vm],
      [t('migrate.host'), `${p.from} → ${p.to}`],
      [t('migrate.mode'), f?.how === undefined ? p.mode : `${p.mode} → ${f.how}`],
      ...disks.map((d): [string, string] => [
        t('migrate.disk', { name: d.name }),
        `${d.from} → ${d.to}, ${formatBytes(d.bytes)}`,
      ]),
      [
        t('migrate.forecast'),
        f &&
          t('migrate.expected', {
            total: formatTook(f.total_ms),
            stall: f.stall_ms,
            bytes: formatBytes(f.bytes + (f.disk_bytes ?? 0)),
          }),
      ],
    ])
  if (f?.why !== undefined) out.warn(`! ${out.cell(f.why)}`)
  for (const b of p.blockers) out.warn(`! ${out.cell(b.remedy === undefined ? b.why : `${b.why} (${b.remedy})`)}`)
}

async function printMove({ out, t }: Cli, m: VmMove): Promise<void> {
  const ms = (n: number | undefined) => (n === undefined ? undefined : `${n} ms`)
  out.line(t('migrate.done', { vm: m.vm, from: m.from, to: m.to, took: formatTook(m.total_ms) }))
  if (!m.live) {
    if (m.bytes !== undefined) await out.fields([[t('migrate.bytes'), formatBytes(m.bytes)]])
    for (const note of m.notes) out.note(`  ${out.cell(note)}`)
    return
  }
  const stall =
    m.stall_ms === undefined
      ? undefined
      : `${m.stall_ms} ms${m.stall_error_ms === undefined ? '' : ` ± ${m.stall_error_ms}`}`
  const { forecast: f, ratio: r, outside: o } = m
  await out.fields([
    [t('migrate.mode'), m.how === undefined ? m.mode : `${m.mode} → ${m.how}`],
    [t('migrate.way'), m.tls === false ? t('migrate.plain') : undefined],
    [t('migrate.stall'), stall],
    [t('migrate.claimed'), ms(m.claimed_downtime_ms)],
    [
      t('migrate.outside'),
      o &&
        t('migrate.gap', {
          gap: o.longest_gap_ms,
          address: o.address,
          sent: o.sent,
          before: o.before_ms ?? '–',
          during: o.during_ms ?? '–',
          after: o.after_ms ?? '–',
        }),
    ],
    [t('migrate.bytes'), m.bytes === undefined ? undefined : formatBytes(m.bytes)],
    [
      t('migrate.forecast'),
      f &&
        t('migrate.foreseen', {
          total: formatTook(f.total_ms),
          stall: f.stall_ms,
          total_ratio: r?.total ?? '–',
          stall_ratio: r?.stall ?? '–',
        }),
    ],
    [t('migrate.phases'), m.phases.map((p) => `${p.phase} ${p.ms}`).join(', ')],
  ])
  for (const note of m.notes) out.note(`  ${out.cell(note)}`)
}
