/** Records → the VM as the API shows it. Pure. */
import { canAll } from '@wadah/api/can'
import type { Scope } from '@wadah/api/schema/access'
import { AUTOSTART_DEFAULT, RESTART_DEFAULT, type Vm, type VmSpec } from '@wadah/api/schema/vm'
import type { Rec } from '@wadah/store/store'
import { isLive, type PlacementRecord, type StatusRecord, type VmRecord } from '../records.ts'
import { isWaiting } from './restart.ts'

export type VmParts = {
  vm: Rec<VmRecord>
  placement: PlacementRecord | undefined
  status: StatusRecord | undefined
}

const iso = (ms: number): string => new Date(ms).toISOString()

/** Fields of the spec that the running QEMU does not have yet. */
export function pendingRestart(spec: VmSpec, booted: StatusRecord['booted']): string[] {
  if (!booted) return []
  const out: string[] = []
  if (spec.cpus !== booted.cpus) out.push('cpus')
  if (spec.memory_mib !== booted.memory_mib) out.push('memory_mib')
  if ((spec.boot.kind === 'kernel' ? spec.boot.cmdline : undefined) !== booted.cmdline) out.push('cmdline')
  if (firmwareKey(spec) !== (booted.firmware ?? 'bios')) out.push('firmware')
  if ((spec.serial_ports ?? 1) !== (booted.serial_ports ?? 1)) out.push('serial_ports')
  if ((spec.hostdevs ?? []).map((d) => d.name).join() !== (booted.hostdevs ?? []).join()) out.push('hostdevs')
  if ((spec.tpm ?? false) !== (booted.tpm ?? false)) out.push('tpm')
  if ((spec.cdroms ?? []).map((c) => c.name).join() !== (booted.cdroms ?? []).join()) out.push('cdroms')
  if ((spec.boot_order ?? []).join() !== (booted.boot_order ?? []).join()) out.push('boot_order')
  if (spec.disks.map(diskKey).join() !== booted.disks.join()) out.push('disks')
  if (spec.nics.map((n) => nicKey(n)).join() !== booted.nics.join()) out.push('nics')
  return out
}

/** What the guest knows it by, whatever layers it has. */
export const diskKey = (d: VmSpec['disks'][number]): string => d.serial ?? d.volume
const firmwareKey = ({ firmware }: VmSpec): string =>
  firmware?.kind === 'uefi' ? (firmware.secure_boot ? 'uefi-secure' : 'uefi') : 'bios'
/** One with ports and without an address is on a network of kind `user`, whose ports QEMU itself publishes, at its start. */
const nicKey = (n: VmSpec['nics'][number]): string =>
  [
    `${n.name}/${n.network}/${n.mac}/${n.address ?? ''}`,
    ...(n.address === undefined ? n.publish.map((p) => `${p.protocol}/${p.address}/${p.port}/${p.to}`) : []),
  ].join(' ')

/** NICs that a running VM has now; `before`: as it was told until now, for what of them still waits for a restart. */
export function bootedNics(spec: VmSpec, there: readonly string[], before: readonly string[]): string[] {
  return spec.nics
    .filter((n) => there.includes(n.name))
    .map((n) => before.find((key) => key.startsWith(`${n.name}/${n.network}/${n.mac}/`)) ?? nicKey(n))
}

export function bootedOf(spec: VmSpec): NonNullable<StatusRecord['booted']> {
  return {
    cpus: spec.cpus,
    memory_mib: spec.memory_mib,
    ...(spec.boot.kind === 'kernel' ? { cmdline: spec.boot.cmdline } : {}),
    disks: spec.disks.map(diskKey),
    nics: spec.nics.map(nicKey),
    firmware: firmwareKey(spec),
    tpm: spec.tpm ?? false,
    hostdevs: (spec.hostdevs ?? []).map((d) => d.name),
    serial_ports: spec.serial_ports ?? 1,
    cdroms: (spec.cdroms ?? []).map((c) => c.name),
    boot_order: spec.boot_order ?? [],
  }
}

export function viewVm(
  { vm, placement, status }: VmParts,
  detail?: { scope: Scope; job: { id: string; kind: string } | undefined },
): Vm {
  const { value } = vm
  const { spec } = value
  const s: StatusRecord = status ?? { schema: 1, state: 'unknown', since_ms: Date.parse(value.created_at) }
  const live = isLive(s.state)
  return {
    id: value.id,
    name: value.name,
    project: value.project,
    generation: vm.version,
    created_at: value.created_at,
    description: value.description,
    labels: value.labels,
    protected: value.protected ?? false,
    autostart: { ...AUTOSTART_DEFAULT, ...value.autostart },
    restart: value.restart ?? RESTART_DEFAULT,
    ...(value.snapshot_schedule ? { snapshot_schedule: value.snapshot_schedule } : {}),
    wanted: value.wanted,
    spec,
    placement: { host: placement?.host ?? '', epoch: placement?.epoch ?? 1 },
    status: {
      state: s.state,
      ...(s.paused_by === undefined ? {} : { paused_by: s.paused_by }),
      ...(s.reason === undefined ? {} : { reason: s.reason }),
      since: iso(s.since_ms),
      ...(live && s.started_ms !== undefined ? { started_at: iso(s.started_ms) } : {}),
      ...(live && s.pid !== undefined ? { pid: s.pid } : {}),
      ...(live && s.accelerator !== undefined ? { accelerator: s.accelerator } : {}),
      ...(live && s.qemu_version !== undefined ? { qemu_version: s.qemu_version } : {}),
      ...(live && s.ready_ms !== undefined ? { ready_ms: s.ready_ms } : {}),
      ...(live && s.agent !== undefined ? { agent: s.agent } : {}),
      ...(isWaiting(value, s) ? { restart_at: iso(s.restart.at_ms), restart_try: s.restart.tries } : {}),
      pending_restart: live ? pendingRestart(spec, s.booted) : [],
    },
    addresses: spec.nics.flatMap((n): Vm['addresses'] => {
      if (n.address !== undefined) return [{ nic: n.name, address: n.address, source: 'reserved' }]
      const inside = live ? (s.inside ?? []) : []
      return inside.filter((i) => i.nic === n.name).map((i) => ({ ...i, source: 'agent' }))
    }),
    ...(detail
      ? {
          actions: canAll({
            vm: {
              name: value.name,
              state: s.state,
              paused_by: s.paused_by,
              agent: s.agent,
              protected: value.protected,
              restarting: isWaiting(value, s),
            },
            scope: detail.scope,
            job: detail.job,
          }),
        }
      : {}),
  }
}

/** Where this host knocks for the health check of a VM's service; undefined when it cannot be reached from here. */
export function healthTarget(spec: VmSpec): { address: string; port: number } | undefined {
  const { service } = spec
  if (!service) return undefined
  for (const nic of spec.nics) {
    if (nic.address !== undefined) return { address: nic.address, port: service.port }
    const published = nic.publish.find((p) => p.to === service.port && p.protocol === 'tcp')
    if (published) {
      return { address: published.address === '0.0.0.0' ? '127.0.0.1' : published.address, port: published.port }
    }
  }
  return undefined
}
