import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Image } from '@wadah/api/schema/storage'
import { openSource } from '../../local/files.ts'
import type { Api } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { parseMib } from '../../text/size.ts'

type Options = {
  kernel?: string
  iso?: string
  initrd?: string
  cmdline?: string
  minMemory?: string
  description?: string
}

export const add: Register = (group, cli) => {
  group
    .command('add <name>')
    .description(cli.t('cmd.image.add'))
    .option('--kernel <file>', cli.t('opt.image_add.kernel'))
    .option('--iso <file>', cli.t('opt.image_add.iso'))
    .option('--initrd <file>', cli.t('opt.image_add.initrd'))
    .option('--cmdline <text>', cli.t('opt.cmdline'))
    .option('--min-memory <size>', cli.t('opt.image_add.min_memory'))
    .option('--description <text>', cli.t('opt.description'))
    .action(async (name: string, o: Options) => {
      if ((o.kernel === undefined) === (o.iso === undefined))
        throw fail('invalid', cli.t('image_add.one_of'), { field: '--kernel', remedy: 'wadah help image add' })
      if (o.iso !== undefined && (o.initrd ?? o.cmdline ?? o.minMemory) !== undefined)
        throw fail('invalid', cli.t('image_add.iso_alone'), { field: '--iso' })
      // All files are opened before anything is made.
      const [kernel, initrd, iso] = await Promise.all(
        [o.kernel, o.initrd, o.iso].map(async (file) => (file === undefined ? undefined : openSource(file))),
      )
      const api = await cli.api()
      const described = { name, ...(o.description === undefined ? {} : { description: o.description }) }
      const image = iso
        ? await api.call(endpoints.images.createIso, { body: described })
        : await api.call(endpoints.images.createKernel, {
            body: {
              ...described,
              ...(o.cmdline === undefined ? {} : { cmdline: o.cmdline }),
              ...(o.minMemory === undefined ? {} : { min_memory_mib: parseMib(o.minMemory, '--min-memory') }),
            },
          })
      try {
        if (iso) await upload(api, image, 'iso', iso)
        if (kernel) await upload(api, image, 'kernel', kernel)
        if (initrd) await upload(api, image, 'initrd', initrd)
      } catch (error) {
        // Half an image helps nobody; what went wrong matters more than how the clearing up went.
        await api.call(endpoints.images.delete, { params: { image: image.id }, query: { wait: 30 } }).catch(() => {})
        throw error
      }
      const done = await api.call(endpoints.images.get, { params: { image: image.id } })
      if (cli.out.isJson) return cli.out.json(done)
      if (!cli.options.quiet) cli.out.line(cli.t('image.added', { name }))
    })
}

async function upload(
  api: Api,
  image: Image,
  file: 'kernel' | 'initrd' | 'iso',
  source: Awaited<ReturnType<typeof openSource>>,
): Promise<void> {
  await api.call(endpoints.images.upload, {
    params: { image: image.id, file },
    upload: { data: source.data, size_bytes: source.size_bytes },
    timeout_ms: 3_600_000,
  })
}
