import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { parseInteger, parseMib } from '../../text/size.ts'

export const warm: Register = (group, cli) => {
  group
    .command('warm <image>')
    .description(cli.t('cmd.image.warm'))
    .option('--memory <size>', cli.t('opt.warm.memory'))
    .option('--cpus <n>', cli.t('opt.warm.cpus'))
    .action(async (image: string, o: { memory?: string; cpus?: string }) => {
      const api = await cli.api()
      const body = {
        ...(o.memory === undefined ? {} : { memory_mib: parseMib(o.memory, '--memory') }),
        ...(o.cpus === undefined ? {} : { cpus: parseInteger(o.cpus, '--cpus', 1, 256) }),
      }
      const job = await api.call(endpoints.images.warm, { params: { image }, body })
      await finish(cli, api, job, () => cli.t('image.warmed', { name: image }))
    })
}

export const unwarm: Register = (group, cli) => {
  group
    .command('unwarm <image>')
    .description(cli.t('cmd.image.unwarm'))
    .action(async (image: string) => {
      const api = await cli.api()
      const job = await api.call(endpoints.images.unwarm, { params: { image } })
      await finish(cli, api, job, () => cli.t('image.unwarmed', { name: image }))
    })
}
