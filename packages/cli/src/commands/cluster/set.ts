import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Register } from '../../program.ts'

/** What holds for the whole cluster. */
export const set: Register = (group, cli) => {
  const { t } = cli
  group
    .command('set')
    .description(t('cmd.cluster.set'))
    .option('--plain <network...>', t('opt.cluster.plain'))
    .option('--no-plain', t('opt.cluster.no_plain'))
    .action(async (o: { plain?: string[] | boolean }) => {
      if (o.plain === undefined || o.plain === true)
        throw fail('invalid', 'Nothing was named that is to be set.', {
          remedy: 'wadah cluster set --plain 10.9.0.0/24, or wadah cluster set --no-plain',
        })
      const api = await cli.api()
      const body = { plain_networks: o.plain === false ? [] : o.plain }
      const cluster = await api.call(endpoints.cluster.set, { body })
      if (cli.out.isJson) return cli.out.json(cluster)
      await cli.out.fields([[t('cluster.plain'), cluster.plain_networks?.join(', ') || '–']])
    })
}
