import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { networkState } from './list.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <network>')
    .description(cli.t('cmd.network.show'))
    .action(async (network: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const n = await api.call(endpoints.networks.get, { params: { network } })
      if (out.isJson) return out.json(n)
      await out.fields([
        [t('col.name'), { text: n.name, style: 'bold' }],
        ['id', n.id],
        [t('col.kind'), n.kind],
        [t('col.state'), networkState(n)],
        [t('col.subnet'), n.subnet],
        [t('col.gateway'), n.gateway],
        [t('col.bridge'), n.bridge],
        [t('col.host_nic'), n.nic],
        ['VLAN', n.vlan === undefined ? undefined : String(n.vlan)],
        [t('col.domain'), n.domain],
        [
          t('col.host_access'),
          n.kind === 'nat' || (n.kind === 'bridge' && n.nic === undefined)
            ? t(n.host_access ? 'network.host_all' : 'network.host_dns')
            : undefined,
        ],
        [t('col.created'), n.created_at],
      ])
      if (n.reservations.length === 0) return
      out.line()
      await out.table(
        ['VM', t('col.nic'), 'MAC', t('col.address')],
        n.reservations.map((r) => [r.vm_name, r.nic, r.mac, r.address]),
      )
    })
}
