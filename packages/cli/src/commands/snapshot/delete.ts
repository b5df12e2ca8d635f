import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <vm> <snapshot>')
    .alias('rm')
    .description(cli.t('cmd.snapshot.delete'))
    .action(async (vm: string, snapshot: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.snapshots.delete, { params: { vm, snapshot } })
      await finish(cli, api, job, () => cli.t('snapshot.deleted', { vm, name: snapshot }))
    })
}
