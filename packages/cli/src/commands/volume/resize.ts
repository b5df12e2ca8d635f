import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { parseMib } from '../../text/size.ts'

export const resize: Register = (group, cli) => {
  group
    .command('resize <volume> <size>')
    .description(cli.t('cmd.volume.resize'))
    .action(async (volume: string, size: string) => {
      const size_mib = parseMib(size, 'size')
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.resize, { params: { volume }, body: { size_mib } })
      await finish(cli, api, job, () => cli.t('volume.resized', { name: volume, size }))
    })
}
