import { endpoints } from '@wadah/api/endpoints/all'
import type { Vm } from '@wadah/api/schema/vm'
import { fail } from '@wadah/api/fault'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { readCurrent } from '../apply.ts'

/** What `wadah apply -f` would make these VMs from. */
export const export_: Register = (group, cli) => {
  group
    .command('export [vm...]')
    .description(cli.t('cmd.vm.export'))
    .option('-l, --selector <labels>', cli.t('opt.bulk.selector'))
    .action(async (refs: string[], { selector }: { selector?: string }) => {
      if (refs.length > 0 === (selector !== undefined))
        throw fail('invalid', cli.t(refs.length > 0 ? 'bulk.both' : 'bulk.none'), { remedy: 'wadah vm list' })
      const api = await cli.api()
      const vms =
        selector === undefined
          ? await Promise.all(refs.map((vm) => api.call(endpoints.vms.get, { params: { vm } })))
          : await listAll<Vm>((cursor) => api.call(endpoints.vms.list, { query: { selector, cursor, limit: 1000 } }))
      const { documentOf, exportText } = await import('../../apply/export.ts')
      const current = await readCurrent(api)
      const docs = vms.map((vm) => documentOf(vm, current))
      if (cli.out.isJson) return cli.out.json({ items: docs })
      cli.io.stdout.write(exportText(docs))
      const secret = vms.filter((vm) => vm.spec.seed.has_password).map((vm) => vm.name)
      if (secret.length > 0) cli.out.note(cli.t('export.no_password', { names: secret.join(', ') }))
    })
}
