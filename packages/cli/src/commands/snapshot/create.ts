import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { finish } from '../../jobs/follow.ts'
import { type Taken, takenText } from '../../out/snapshot.ts'
import type { Register } from '../../program.ts'

type Options = { ram?: boolean; requireFreeze?: boolean; freeze: boolean; description?: string }

export const create: Register = (group, cli) => {
  const { t } = cli
  group
    .command('create <vm> [name]')
    .description(t('cmd.snapshot.create'))
    .option('--ram', t('opt.snapshot.ram'))
    .option('--require-freeze', t('opt.snapshot.require_freeze'))
    .option('--no-freeze', t('opt.snapshot.no_freeze'))
    .option('--description <text>', t('opt.description'))
    .action(async (vm: string, name: string | undefined, o: Options) => {
      if (o.requireFreeze && !o.freeze) throw fail('invalid', t('snapshot.freeze_both'), { field: 'no-freeze' })
      const freeze = o.requireFreeze ? ('require' as const) : o.freeze ? undefined : ('never' as const)
      const api = await cli.api()
      const job = await api.call(endpoints.snapshots.create, {
        params: { vm },
        body: {
          ...(name === undefined ? {} : { name }),
          ...(o.description === undefined ? {} : { description: o.description }),
          ...(o.ram ? { ram: true } : {}),
          ...(freeze === undefined ? {} : { freeze }),
        },
      })
      await finish(cli, api, job, ({ result }) => takenText(cli, vm, result as Taken))
    })
}
