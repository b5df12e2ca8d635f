import { endpoints } from '@wadah/api/endpoints/all'
import type { Vm, VmState } from '@wadah/api/schema/vm'
import type { Register } from '../../program.ts'
import { listAll } from '../../net/api.ts'
import { vmRow } from '../../out/vm.ts'

type Options = { name?: string; state?: VmState; image?: string; network?: string; label?: string; selector?: string }

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.vm.list'))
    .option('--name <part>', cli.t('opt.vm_list.name'))
    .option('--state <state>', cli.t('opt.vm_list.state'))
    .option('--image <image>', cli.t('opt.vm_list.image'))
    .option('--network <network>', cli.t('opt.vm_list.network'))
    .option('--label <key=value>', cli.t('opt.vm_list.label'))
    .option('-l, --selector <labels>', cli.t('opt.bulk.selector'))
    .action(async (options: Options) => {
      const api = await cli.api()
      const [vms, images] = await Promise.all([
        listAll<Vm>((cursor) => api.call(endpoints.vms.list, { query: { ...options, cursor, limit: 1000 } })),
        cli.out.isJson || cli.options.quiet
          ? []
          : listAll((cursor) => api.call(endpoints.images.list, { query: { cursor, limit: 1000 } })),
      ])
      if (cli.out.isJson) return cli.out.json({ items: vms })
      if (cli.options.quiet) return vms.forEach((vm) => cli.out.line(cli.out.cell(vm.name)))
      if (vms.length === 0) return cli.out.note(cli.t(Object.keys(options).length > 0 ? 'vm.no_match' : 'vm.none'))
      const imageNames = new Map(images.map((i) => [i.id, i.name]))
      const head = (
        ['name', 'state', 'addresses', 'published', 'cpus', 'memory', 'image', 'accelerator', 'uptime'] as const
      ).map((c) => cli.t(`col.${c}`))
      await cli.out.table(
        head,
        vms.map((vm) => vmRow(vm, imageNames, cli.io.now())),
      )
    })
}
