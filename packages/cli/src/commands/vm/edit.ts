import { endpoints } from '@wadah/api/endpoints/all'
import type { FirewallGroup } from '@wadah/api/schema/firewall'
import { listAll } from '../../net/api.ts'
import type { Register } from '../../program.ts'
import { buildEdit, type EditOptions } from '../../text/vm-create.ts'
import { collect } from '../options.ts'

export const edit: Register = (group, cli) => {
  const { t } = cli
  group
    .command('edit <vm>')
    .description(t('cmd.vm.edit'))
    .option('--name <name>', t('opt.edit.name'))
    .option('--description <text>', t('opt.description'))
    .option('--label <key=value>', t('opt.label'), collect)
    .option('--remove-label <key>', t('opt.edit.remove_label'), collect)
    .option('--protect', t('opt.protect'))
    .option('--unprotect', t('opt.unprotect'))
    .option('--autostart', t('opt.autostart'))
    .option('--no-autostart', t('opt.no_autostart'))
    .option('--start-order <n>', t('opt.start_order'))
    .option('--start-delay <time>', t('opt.start_delay'))
    .option('--restart <when>', t('opt.restart'))
    .option('--cpus <n>', t('opt.cpus'))
    .option('--memory <size>', t('opt.memory'))
    .option('--balloon <size>', t('opt.edit.balloon'))
    .option('--cmdline <text>', t('opt.cmdline'))
    .option('--limit <spec>', t('opt.edit.limit'), collect)
    .option('--disk <disk>', t('opt.edit.disk'))
    .option('--add-disk <spec>', t('opt.add_disk'), collect)
    .option('--remove-disk <disk>', t('opt.edit.remove_disk'), collect)
    .option('--nic <nic>', t('opt.edit.nic'))
    .option('--publish <spec>', t('opt.edit.publish'), collect)
    .option('--address <ip>', t('opt.address'))
    .option('--add-network <network>', t('opt.edit.add_network'), collect)
    .option('--remove-nic <nic>', t('opt.edit.remove_nic'), collect)
    .option('--add-cdrom <image>', t('opt.cdrom'), collect)
    .option('--remove-cdrom <drive>', t('opt.edit.remove_cdrom'), collect)
    .option('--boot-order <names>', t('opt.boot_order'))
    .option('--firmware <kind>', t('opt.firmware'))
    .option('--tpm', t('opt.tpm'))
    .option('--add-hostdev <spec>', t('opt.hostdev'), collect)
    .option('--remove-hostdev <name>', t('opt.edit.remove_hostdev'), collect)
    .option('--serial-ports <n>', t('opt.serial_ports'))
    .option('--no-tpm', t('opt.edit.no_tpm'))
    .option('--firewall <defaults>', t('opt.firewall'))
    .option('--rule <rule>', t('opt.rule'), collect)
    .option('--remove-rule <rule>', t('opt.remove_rule'), collect)
    .option('--firewall-group <firewall-group>', t('opt.firewall_group'), collect)
    .option('--remove-firewall-group <firewall-group>', t('opt.remove_firewall_group'), collect)
    .action(async (ref: string, options: EditOptions) => {
      const api = await cli.api()
      const before = await api.call(endpoints.vms.get, { params: { vm: ref } })
      const touched = options.rule ?? options.removeRule ?? options.firewallGroup ?? options.removeFirewallGroup
      const groups =
        touched === undefined
          ? []
          : await listAll<FirewallGroup>((cursor) =>
              api.call(endpoints.firewallGroups.list, { query: { cursor, limit: 1000 } }),
            )
      const body = buildEdit(before, options, groups)
      const vm = await api.call(endpoints.vms.edit, { params: { vm: before.id }, body, generation: before.generation })
      if (cli.out.isJson) return cli.out.json(vm)
      if (cli.options.quiet) return
      const fields = vm.status.pending_restart
      cli.out.line(
        fields.length > 0
          ? t('vm.edited_pending', { name: vm.name, fields: fields.join(', ') })
          : t('vm.edited', { name: vm.name }),
      )
    })
}
