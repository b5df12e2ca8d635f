import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { nameProblem } from '@wadah/api/ids'
import { IMPORT_FORMATS, SEED_KINDS } from '@wadah/api/schema/imports'
import type { Job } from '@wadah/api/schema/job'
import { finish } from '../../jobs/follow.ts'
import type { Register } from '../../program.ts'
import { baseName, parseSha256, sendFile } from '../../text/transfer.ts'
import { oneOf } from '../options.ts'

type Options = { name?: string; pool?: string; sha256?: string; format?: string; seed?: string; description?: string }

export const import_: Register = (group, cli) => {
  const { t } = cli
  group
    .command('import <file-or-url>')
    .description(t('cmd.image.import'))
    .option('--name <name>', t('opt.import.name'))
    .option('--pool <pool>', t('opt.pool'))
    .option('--sha256 <hex>', t('opt.import.sha256'))
    .option('--format <format>', t('opt.import.format'))
    .option('--seed <kind>', t('opt.import.seed'))
    .option('--description <text>', t('opt.description'))
    .action(async (from: string, o: Options) => {
      const isUrl = /^[a-z][a-z0-9+.-]*:\/\//i.test(from)
      const name = o.name ?? baseName(isUrl && URL.canParse(from) ? new URL(from).pathname : from)
      const problem = nameProblem(name)
      if (problem) throw fail('invalid', `--name: ${problem}`, { field: '--name' })
      const sha256 = parseSha256(o.sha256)
      const format = oneOf(o.format, '--format', IMPORT_FORMATS)
      const seed = oneOf(o.seed, '--seed', SEED_KINDS)
      const asked = {
        name,
        ...(o.pool === undefined ? {} : { pool: o.pool }),
        ...(o.description === undefined ? {} : { description: o.description }),
        ...(sha256 === undefined ? {} : { sha256 }),
        ...(format === undefined ? {} : { format }),
        ...(seed === undefined ? {} : { seed }),
      }
      const api = await cli.api()
      const job = isUrl
        ? await api.call(endpoints.images.import, { body: { ...asked, url: from } })
        : await sendFile(cli, from, (upload) => api.call(endpoints.images.importFile, { query: asked, ...upload }))
      const ended = await finish(cli, api, job as Job, () => t('image.imported', { name }))
      const notes = (ended?.result as { notes?: string[] } | undefined)?.notes ?? []
      for (const note of notes) cli.out.note(note)
    })
}
