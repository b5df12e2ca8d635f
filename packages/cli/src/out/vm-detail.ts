import type { DiskLimits, Limits, NicLimits, Vm } from '@wadah/api/schema/vm'
import type { Cli } from '../cli.ts'
import { formatBytes, formatTook } from '../text/format.ts'
import { addressesText, publishedText, stateCell, uptime } from './vm.ts'

/** `cpu=50% iops=200`: as `--limit` takes them. */
export function limitsText(limits: Limits, disk: DiskLimits = {}, nic: NicLimits = {}): string {
  const rate = (n: number) => `${formatBytes(n).replace(' ', '')}/s`
  return [
    limits.cpu_cap_percent == null ? '' : `cpu=${limits.cpu_cap_percent}%`,
    limits.cpu_weight === undefined ? '' : `cpu-weight=${limits.cpu_weight}`,
    limits.memory_overhead_mib === undefined ? '' : `memory-overhead=${limits.memory_overhead_mib}M`,
    disk.iops == null ? '' : `iops=${disk.iops}`,
    disk.bytes_per_s == null ? '' : `disk=${rate(disk.bytes_per_s)}`,
    nic.in_bytes_per_s == null ? '' : `net-in=${rate(nic.in_bytes_per_s)}`,
    nic.out_bytes_per_s == null ? '' : `net-out=${rate(nic.out_bytes_per_s)}`,
  ]
    .filter((x) => x !== '')
    .join(' ')
}

/** All of one VM. */
export async function printVm(cli: Cli, vm: Vm): Promise<void> {
  const { t } = cli
  const { spec, status } = vm
  const allowed = Object.entries(vm.actions ?? {})
  await cli.out.fields([
    [t('col.name'), { text: vm.name, style: 'bold' }],
    ['id', vm.id],
    [t('col.description'), vm.description],
    [t('col.state'), stateCell(vm)],
    [t('col.uptime'), uptime(vm, cli.io.now())],
    [t('col.addresses'), addressesText(vm)],
    [t('col.published'), publishedText(spec.nics)],
    [t('col.cpus'), spec.cpus],
    [t('col.memory'), formatBytes(spec.memory_mib * 2 ** 20)],
    [t('col.balloon'), spec.balloon_mib === null ? '' : formatBytes(spec.balloon_mib * 2 ** 20)],
    [t('col.image'), spec.image],
    [t('col.recipe'), spec.recipe],
    [
      t('col.service'),
      spec.service ? `${spec.service.kind} ${spec.service.port} ${spec.service.path ?? ''}`.trim() : '',
    ],
    [t('col.accelerator'), status.accelerator],
    [
      'QEMU',
      [status.qemu_version, status.pid === undefined ? undefined : `pid ${status.pid}`].filter(Boolean).join(', '),
    ],
    [t('col.agent'), status.agent],
    [t('col.ready'), status.ready_ms === undefined ? '' : formatTook(status.ready_ms)],
    [t('col.limits'), limitsText(spec.limits)],
    [t('col.firmware'), spec.firmware?.kind === 'uefi' ? (spec.firmware.secure_boot ? 'uefi-secure' : 'uefi') : 'bios'],
    ['TPM', spec.tpm ? '2.0' : ''],
    [t('col.serial_ports'), spec.serial_ports],
    [t('col.firewall'), spec.firewall ? `in=${spec.firewall.in} out=${spec.firewall.out}` : ''],
    [t('col.boot_order'), spec.boot_order?.join(', ')],
    [t('col.cmdline'), spec.boot.kind === 'kernel' ? spec.boot.cmdline : ''],
    [
      t('col.labels'),
      Object.entries(vm.labels)
        .map(([k, v]) => `${k}=${v}`)
        .join(' '),
    ],
    [t('col.protected'), vm.protected ? t('word.yes') : ''],
    [
      t('col.autostart'),
      vm.autostart?.enabled ? t('autostart.text', { order: vm.autostart.order, delay: vm.autostart.delay_s }) : '',
    ],
    [
      t('col.restart'),
      status.restart_at === undefined
        ? vm.restart
        : t('restart.text', { policy: vm.restart, at: status.restart_at, n: status.restart_try ?? 1 }),
    ],
    [t('col.host'), vm.placement.host],
    [t('col.generation'), vm.generation],
    [t('col.created'), vm.created_at],
    [
      t('col.allowed'),
      allowed
        .filter(([, a]) => a.ok)
        .map(([name]) => name)
        .join(' '),
    ],
  ])
  if (spec.disks.length > 0) {
    cli.out.line()
    await cli.out.table(
      [t('col.disk'), t('col.volume'), t('col.limits')],
      spec.disks.map((d) => [d.name, d.volume, limitsText({}, d.limits)]),
    )
  }
  if (spec.cdroms?.length) {
    cli.out.line()
    await cli.out.table(
      [t('col.cdrom'), t('col.image')],
      spec.cdroms.map((c) => [c.name, c.image ?? '–']),
    )
  }
  if (spec.hostdevs?.length) {
    cli.out.line()
    await cli.out.table(
      [t('col.hostdev'), ''],
      spec.hostdevs.map((d) => [
        d.name,
        d.kind === 'pci' ? `pci ${d.address}` : `usb ${d.port ?? `${d.vendor}:${d.product}`}`,
      ]),
    )
  }
  if (spec.nics.length > 0) {
    cli.out.line()
    await cli.out.table(
      [t('col.nic'), t('col.network'), 'MAC', t('col.address'), t('col.limits')],
      spec.nics.map((n) => [n.name, n.network, n.mac, n.address ?? '', limitsText({}, {}, n.limits)]),
    )
  }
  if (status.pending_restart.length > 0) cli.out.note(t('vm.pending', { fields: status.pending_restart.join(', ') }))
}
