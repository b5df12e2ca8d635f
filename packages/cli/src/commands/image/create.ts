import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'

type Options = { fromVm: string; pool?: string; description?: string }

export const create: Register = (group, cli) => {
  group
    .command('create <name>')
    .description(cli.t('cmd.image.create'))
    .requiredOption('--from-vm <vm>', cli.t('opt.image_create.from_vm'))
    .option('--pool <pool>', cli.t('opt.pool'))
    .option('--description <text>', cli.t('opt.description'))
    .action(async (name: string, { fromVm, ...o }: Options) => {
      const api = await cli.api()
      const job = await api.call(endpoints.images.fromVm, { body: { name, vm: fromVm, ...o } })
      const ended = await finish(cli, api, job, () => cli.t('image.made', { name }))
      if (ended) cli.out.note(cli.t('image.identity', { vm: fromVm }))
    })
}
