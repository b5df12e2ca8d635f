import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

export const delete_: Register = (group, cli) => {
  group
    .command('delete <image>')
    .alias('rm')
    .description(cli.t('cmd.image.delete'))
    .action(async (image: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.images.delete, { params: { image } })
      await finish(cli, api, job, () => cli.t('deleted', { name: image }))
    })
}
