import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

type Options = { name?: string; pool?: string; refresh?: boolean }

export const build: Register = (group, cli) => {
  group
    .command('build <recipe>')
    .description(cli.t('cmd.image.build'))
    .option('--name <name>', cli.t('opt.build.name'))
    .option('--pool <pool>', cli.t('opt.pool'))
    .option('--refresh', cli.t('opt.build.refresh'))
    .action(async (recipe: string, options: Options) => {
      const api = await cli.api()
      const job = await api.call(endpoints.images.build, { body: { recipe, ...options } })
      await finish(cli, api, job, () => cli.t('image.built', { name: options.name ?? recipe }))
    })
}
