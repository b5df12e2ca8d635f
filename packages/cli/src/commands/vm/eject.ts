import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Vm } from '@wadah/api/schema/vm'
import type { Register } from '../../program.ts'

/** The drive that was named, or the first one. */
export function driveOf(vm: Vm, named: string | undefined): string {
  const drive = named ?? vm.spec.cdroms?.[0]?.name
  if (drive !== undefined) return drive
  throw fail('wrong_state', `${vm.name} has no CD drive`, { remedy: `wadah vm edit ${vm.name} --add-cdrom empty` })
}

export const eject: Register = (group, cli) => {
  const { t } = cli
  group
    .command('eject <vm>')
    .description(t('cmd.vm.eject'))
    .option('--drive <drive>', t('opt.drive'))
    .option('--force', t('opt.eject.force'))
    .action(async (ref: string, o: { drive?: string; force?: boolean }) => {
      const api = await cli.api()
      const vm = await api.call(endpoints.vms.get, { params: { vm: ref } })
      const cdrom = driveOf(vm, o.drive)
      const body = o.force ? { force: true } : {}
      const now = await api.call(endpoints.vms.eject, { params: { vm: vm.id, cdrom }, body })
      if (cli.out.isJson) return cli.out.json(now)
      if (!cli.options.quiet) cli.out.line(t('vm.ejected', { drive: cdrom, name: now.name }))
    })
}
