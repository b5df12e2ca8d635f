import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { parseExport, takeFile } from '../../text/transfer.ts'

export const export_: Register = (group, cli) => {
  group
    .command('export <image> <file>')
    .description(cli.t('cmd.image.export'))
    .option('--format <format>', cli.t('opt.export.format'))
    .action(async (image: string, file: string, o: { format?: string }) => {
      const format = parseExport(o.format, file)
      const api = await cli.api()
      await takeFile(cli, file, (more) =>
        api.open(endpoints.images.export, { params: { image }, query: { format }, ...more }),
      )
    })
}
