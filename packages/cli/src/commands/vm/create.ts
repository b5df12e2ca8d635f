import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { VmCreate } from '@wadah/api/schema/vm'
import { readSmall } from '../../cli.ts'
import type { Register } from '../../program.ts'
import { finish } from '../../jobs/follow.ts'
import { collect } from '../options.ts'
import { buildCreate, type CreateOptions } from '../../text/vm-create.ts'

export const create: Register = (group, cli) => {
  const { t } = cli
  group
    .command('create [name]')
    .description(t('cmd.vm.create'))
    .option('--image <image>', t('opt.create.image'))
    .option('--clone <kind>', t('opt.clone'))
    .option('--cpus <n>', t('opt.cpus'))
    .option('--memory <size>', t('opt.memory'))
    .option('--balloon <size>', t('opt.balloon'))
    .option('--disk <size>', t('opt.create.disk'))
    .option('--add-disk <spec>', t('opt.add_disk'), collect)
    .option('--pool <pool>', t('opt.pool'))
    .option('--host <host>', t('opt.create.host'))
    .option('--network <network>', t('opt.create.network'), collect)
    .option('--publish <spec>', t('opt.publish'), collect)
    .option('--address <ip>', t('opt.address'))
    .option('--mac <mac>', t('opt.mac'))
    .option('--limit <spec>', t('opt.limit'), collect)
    .option('--hostname <name>', t('opt.hostname'))
    .option('--seed-user <user>', t('opt.seed_user'))
    .option('--seed-password-file <file>', t('opt.seed_password_file'))
    .option('--seed <kind>', t('opt.create.seed'))
    .option('--user-data <file>', t('opt.user_data'))
    .option('--ssh-key <file>', t('opt.ssh_key'), collect)
    .option('--cmdline <text>', t('opt.cmdline'))
    .option('--cdrom <image>', t('opt.cdrom'), collect)
    .option('--boot-order <names>', t('opt.boot_order'))
    .option('--firmware <kind>', t('opt.firmware'))
    .option('--tpm', t('opt.tpm'))
    .option('--hostdev <spec>', t('opt.hostdev'), collect)
    .option('--serial-ports <n>', t('opt.serial_ports'))
    .option('--firewall <defaults>', t('opt.firewall'))
    .option('--rule <rule>', t('opt.rule'), collect)
    .option('--firewall-group <firewall-group>', t('opt.firewall_group'), collect)
    .option('--label <key=value>', t('opt.label'), collect)
    .option('--description <text>', t('opt.description'))
    .option('--protect', t('opt.protect'))
    .option('--autostart', t('opt.autostart'))
    .option('--start-order <n>', t('opt.start_order'))
    .option('--start-delay <time>', t('opt.start_delay'))
    .option('--restart <when>', t('opt.restart'))
    .option('-f, --file <file>', t('opt.create.file'))
    .option('--start', t('opt.start'))
    .option('--instant', t('opt.instant'))
    .option('--wait-ready', t('opt.wait_ready'))
    .action(
      async (
        name: string | undefined,
        options: CreateOptions & { file?: string; seedPasswordFile?: string; userData?: string },
      ) => {
        const base = options.file === undefined ? {} : parseSpec(await readSmall(options.file, '--file'), options.file)
        const password =
          options.seedPasswordFile === undefined
            ? undefined
            : (await readSmall(options.seedPasswordFile, '--seed-password-file')).replace(/\r?\n$/, '')
        const keys = await Promise.all((options.sshKey ?? []).map((f) => readSmall(f, '--ssh-key')))
        const userData = options.userData === undefined ? undefined : await readSmall(options.userData, '--user-data')
        const { body, disk } = buildCreate(name, options, { base, password, keys, userData })
        const limitDisk = Object.keys(disk).length > 0
        if (limitDisk && !cli.waits) {
          throw fail('invalid', '--limit iops and disk are set once the VM is there: leave out --no-wait', {
            field: '--limit',
          })
        }
        const api = await cli.api()
        if (limitDisk && body.image !== undefined && body.disk_mib === undefined && !body.disks?.length) {
          const image = await api.call(endpoints.images.get, { params: { image: body.image } })
          if (image.kind === 'kernel')
            throw fail('invalid', t('vm.no_disk', { image: image.name }), { field: '--limit' })
        }
        const job = await api.call(endpoints.vms.create, { body })
        await finish(cli, api, job, () => t(body.start ? 'vm.created_started' : 'vm.created', { name: body.name }))
        if (limitDisk) {
          const vm = await api.call(endpoints.vms.get, { params: { vm: body.name } })
          const first = vm.spec.disks[0]
          if (!first) return cli.out.warn(t('vm.unlimited', { name: body.name }))
          await api.call(endpoints.vms.edit, {
            params: { vm: vm.id },
            body: { disks: [{ name: first.name, limits: disk }] },
          })
        }
      },
    )
}

function parseSpec(text: string, file: string): Partial<VmCreate> {
  try {
    const value = JSON.parse(text) as unknown
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Partial<VmCreate>
  } catch (cause) {
    throw fail('invalid', `${file} is not JSON: ${(cause as Error).message}`, { field: '--file', cause })
  }
  throw fail('invalid', `${file}: a JSON object is expected, with the fields of POST /v1/vms`, { field: '--file' })
}
