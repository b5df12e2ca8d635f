import { endpoints } from '@wadah/api/endpoints/all'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'

export const remove: Register = (group, cli) => {
  const { t } = cli
  group
    .command('remove <host>')
    .description(t('cmd.cluster.remove'))
    .option('--lost', t('opt.cluster.lost'))
    .option('--drop', t('opt.cluster.drop'))
    .option('-y, --yes', t('opt.yes'))
    .action(async (host: string, o: { yes?: boolean; lost?: boolean; drop?: boolean }) => {
      if (!o.yes && !(await confirm(cli, t(o.lost ? 'cluster.ask_lost' : 'cluster.ask_remove', { host }))))
        return cli.out.note(t('bulk.refused'))
      const api = await cli.api()
      await api.call(endpoints.cluster.remove, { params: { host }, query: { lost: o.lost, drop: o.drop } })
      if (cli.out.isJson) return cli.out.json({ removed: host })
      cli.out.line(t('cluster.removed', { host }))
    })
}
