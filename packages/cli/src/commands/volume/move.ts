import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import { withStall } from '../../out/stall.ts'
import type { Register } from '../../program.ts'

export const move: Register = (group, cli) => {
  group
    .command('move <volume> <pool>')
    .description(cli.t('cmd.volume.move'))
    .action(async (volume: string, pool: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.move, { params: { volume }, body: { pool } })
      await finish(cli, api, job, (ended) => withStall(cli, cli.t('volume.moved', { name: volume, pool }), ended))
    })
}
