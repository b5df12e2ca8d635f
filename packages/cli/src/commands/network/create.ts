import { endpoints } from '@wadah/api/endpoints/all'
import { NETWORK_KINDS } from '@wadah/api/schema/network'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'
import { oneOf } from '../options.ts'

type Options = {
  kind: string
  subnet?: string
  domain?: string
  bridge?: string
  nic?: string
  vlan?: string
  hostAccess?: boolean
}

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.network.create'))
    .option('--kind <kind>', cli.t('opt.network.kind'), 'nat')
    .option('--subnet <cidr>', cli.t('opt.network.subnet'))
    .option('--domain <domain>', cli.t('opt.network.domain'))
    .option('--bridge <bridge>', cli.t('opt.network.bridge'))
    .option('--nic <nic>', cli.t('opt.network.nic'))
    .option('--vlan <id>', cli.t('opt.network.vlan'))
    .option('--host-access', cli.t('opt.network.host_access'))
    .action(async (name: string, { kind, hostAccess, vlan, ...rest }: Options) => {
      const api = await cli.api()
      const network = await api.call(endpoints.networks.create, {
        body: {
          name,
          kind: oneOf(kind, '--kind', NETWORK_KINDS) ?? 'nat',
          ...rest,
          ...(vlan === undefined ? {} : { vlan: parseInteger(vlan, '--vlan', 1, 4094) }),
          ...(hostAccess ? { host_access: true } : {}),
        },
      })
      if (cli.out.isJson) return cli.out.json(network)
      if (!cli.options.quiet) cli.out.line(cli.t('created', { name }))
    })
}
