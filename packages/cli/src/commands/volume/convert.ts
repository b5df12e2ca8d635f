import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import { withStall } from '../../out/stall.ts'
import type { Register } from '../../program.ts'
import { oneOf } from '../options.ts'

export const convert: Register = (group, cli) => {
  group
    .command('convert <volume>')
    .description(cli.t('cmd.volume.convert'))
    .requiredOption('--format <format>', cli.t('opt.format'))
    .action(async (volume: string, o: { format: string }) => {
      const format = oneOf(o.format, '--format', ['qcow2', 'raw'] as const) as 'qcow2' | 'raw'
      const api = await cli.api()
      const job = await api.call(endpoints.volumes.convert, { params: { volume }, body: { format } })
      await finish(cli, api, job, (ended) => withStall(cli, cli.t('volume.converted', { name: volume, format }), ended))
    })
}
