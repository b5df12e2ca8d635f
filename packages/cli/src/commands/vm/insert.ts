import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'
import { driveOf } from './eject.ts'

export const insert: Register = (group, cli) => {
  const { t } = cli
  group
    .command('insert <vm> <image>')
    .description(t('cmd.vm.insert'))
    .option('--drive <drive>', t('opt.drive'))
    .option('--force', t('opt.eject.force'))
    .action(async (ref: string, image: string, o: { drive?: string; force?: boolean }) => {
      const api = await cli.api()
      const vm = await api.call(endpoints.vms.get, { params: { vm: ref } })
      const cdrom = driveOf(vm, o.drive)
      const body = { image, ...(o.force ? { force: true } : {}) }
      const now = await api.call(endpoints.vms.insert, { params: { vm: vm.id, cdrom }, body })
      if (cli.out.isJson) return cli.out.json(now)
      if (!cli.options.quiet) cli.out.line(t('vm.inserted', { image, drive: cdrom, name: now.name }))
    })
}
