import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

type Options = { ram: boolean; start?: boolean; force?: boolean }

export const revert: Register = (group, cli) => {
  const { t } = cli
  group
    .command('revert <vm> <snapshot>')
    .description(t('cmd.snapshot.revert'))
    .option('--no-ram', t('opt.snapshot.no_ram'))
    .option('--start', t('opt.snapshot.start'))
    .option('--force', t('opt.snapshot.force'))
    .action(async (vm: string, snapshot: string, o: Options) => {
      const api = await cli.api()
      const job = await api.call(endpoints.snapshots.revert, {
        params: { vm, snapshot },
        body: {
          ...(o.ram ? {} : { ram: false }),
          ...(o.start ? { start: true } : {}),
          ...(o.force ? { force: true } : {}),
        },
      })
      await finish(cli, api, job, ({ result }) => {
        const { started, why, with_ram } = result as { started: boolean; why?: string; with_ram?: boolean }
        if (why !== undefined) cli.out.warn(t('snapshot.not_started', { vm, why }))
        return t(started ? (with_ram ? 'snapshot.reverted_ram' : 'snapshot.reverted_runs') : 'snapshot.reverted', {
          vm,
          name: snapshot,
        })
      })
    })
}
