import { endpoints } from '@wadah/api/endpoints/all'
import { IMPORT_FORMATS } from '@wadah/api/schema/imports'
import type { Job } from '@wadah/api/schema/job'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { parseSha256, sendFile } from '../../text/transfer.ts'
import { oneOf } from '../options.ts'

type Options = { pool?: string; sha256?: string; format?: string }

export const upload: Register = (group, cli) => {
  group
    .command('upload <file> <name>')
    .description(cli.t('cmd.volume.upload'))
    .option('--pool <pool>', cli.t('opt.pool'))
    .option('--sha256 <hex>', cli.t('opt.import.sha256'))
    .option('--format <format>', cli.t('opt.import.format'))
    .action(async (file: string, name: string, o: Options) => {
      const sha256 = parseSha256(o.sha256)
      const format = oneOf(o.format, '--format', IMPORT_FORMATS)
      const query = {
        name,
        ...(o.pool === undefined ? {} : { pool: o.pool }),
        ...(sha256 === undefined ? {} : { sha256 }),
        ...(format === undefined ? {} : { format }),
      }
      const api = await cli.api()
      const job = await sendFile(cli, file, (more) => api.call(endpoints.volumes.upload, { query, ...more }))
      await finish(cli, api, job as Job, () => cli.t('created', { name }))
    })
}
