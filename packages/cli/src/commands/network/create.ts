import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { oneOf } from '../options.ts'

type Options = { kind: string; subnet?: string; domain?: string; hostAccess?: boolean }

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.network.create'))
    .option('--kind <kind>', cli.t('opt.network.kind'), 'nat')
    .option('--subnet <cidr>', cli.t('opt.network.subnet'))
    .option('--domain <domain>', cli.t('opt.network.domain'))
    .option('--host-access', cli.t('opt.network.host_access'))
    .action(async (name: string, { kind, hostAccess, ...rest }: Options) => {
      const api = await cli.api()
      const network = await api.call(endpoints.networks.create, {
        body: {
          name,
          kind: oneOf(kind, '--kind', ['nat', 'user'] as const) ?? 'nat',
          ...rest,
          ...(hostAccess ? { host_access: true } : {}),
        },
      })
      if (cli.out.isJson) return cli.out.json(network)
      if (!cli.options.quiet) cli.out.line(cli.t('created', { name }))
    })
}
