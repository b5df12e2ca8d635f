import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'

export const token: Register = (group, cli) => {
  const { t } = cli
  group
    .command('token')
    .description(t('cmd.cluster.token'))
    .option('--ttl <seconds>', t('opt.cluster.ttl'))
    .action(async (o: { ttl?: string }) => {
      const api = await cli.api()
      const body = o.ttl === undefined ? {} : { ttl_s: parseInteger(o.ttl, '--ttl', 60, 86_400) }
      const made = await api.call(endpoints.cluster.token, { body })
      if (cli.out.isJson) return cli.out.json(made)
      cli.out.line(made.token)
      cli.out.note(t('cluster.token', { until: made.expires_at }))
    })
}
