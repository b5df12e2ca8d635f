import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { parseExport, takeFile } from '../../text/transfer.ts'

export const download: Register = (group, cli) => {
  group
    .command('download <volume> <file>')
    .description(cli.t('cmd.volume.download'))
    .option('--format <format>', cli.t('opt.export.format'))
    .action(async (volume: string, file: string, o: { format?: string }) => {
      const format = parseExport(o.format, file)
      const api = await cli.api()
      await takeFile(cli, file, (more) =>
        api.open(endpoints.volumes.download, { params: { volume }, query: { format }, ...more }),
      )
    })
}
