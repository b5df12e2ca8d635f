/** Launch request + this host's facts → boot plan. */
import type { BootPlan, LaunchRequest, LocalDisk, LocalPlan } from '@wadah/ports/machine'
import { type RecordFacts, bootRecord } from './boot-record.ts'
import { tbSizeMib } from './state.ts'

export type PlanFacts = RecordFacts & {
  qemu: string
  directory: string
  cgroup: string | null
  diskPath: (pool: LaunchRequest['disks'][number]['pool'], volume: { id: string; format: 'qcow2' | 'raw' }) => string
  tapName: (vm: string, nic: string) => string
  kernel?: { kernel: string; initrd?: string } | undefined
  cdroms?: Record<string, string>
  firmware?: { code: string; vars: string } | undefined
  tpm?: LocalPlan['tpm'] | undefined
  devices?: LocalPlan['devices'] | undefined
}

/** slirp's addresses; the guest is told its own by DHCP. */
export const USER_NET = { subnet: '10.0.2.0/24', gateway: '10.0.2.2', address: '10.0.2.15' }

export function bootPlan(request: LaunchRequest, facts: PlanFacts): BootPlan {
  const record = bootRecord(request, facts)
  const limitsOf = new Map(request.spec.disks.map((d) => [d.name, d.limits]))
  const disks: LocalPlan['disks'] = {}
  for (const disk of request.disks) disks[disk.name] = localDisk(disk, limitsOf.get(disk.name) ?? {}, facts.diskPath)
  const nics: LocalPlan['nics'] = {}
  for (const nic of request.nics) nics[nic.name] = localNic(nic, facts.tapName(request.vm, nic.name))
  return {
    record,
    local: {
      uid: request.spec.uid,
      epoch: request.epoch,
      directory: facts.directory,
      cgroup: facts.cgroup,
      disks,
      nics,
      ...(facts.kernel ? { kernel: facts.kernel } : {}),
      ...(facts.cdroms && Object.keys(facts.cdroms).length > 0 ? { cdroms: facts.cdroms } : {}),
      ...(facts.firmware ? { firmware: facts.firmware } : {}),
      ...(facts.devices && Object.keys(facts.devices).length > 0 ? { devices: facts.devices } : {}),
      ...(facts.tpm ? { tpm: facts.tpm } : {}),
      tb_size_mib: tbSizeMib(record.accelerator, record.memory.mib),
      qemu: facts.qemu,
    },
  }
}

/** What this host does for one NIC. */
export function localNic(
  { network, attachment }: LaunchRequest['nics'][number],
  ifname: string,
): LocalPlan['nics'][string] {
  if (network.kind !== 'user') return { kind: 'tap', ifname }
  return { kind: 'user', ...USER_NET, publish: attachment.publish }
}

/** What this host does for one disk. */
export function localDisk(
  { chain, pool }: LaunchRequest['disks'][number],
  limits: LaunchRequest['spec']['disks'][number]['limits'],
  diskPath: PlanFacts['diskPath'],
): LocalDisk {
  return {
    chain: chain.map((volume) => ({ path: diskPath(pool, volume), format: volume.format })),
    direct_io: pool.direct_io,
    limits: {
      ...(limits.iops ? { iops: limits.iops } : {}),
      ...(limits.bytes_per_s ? { bytes_per_s: limits.bytes_per_s } : {}),
    },
  }
}

/** `key=value` lines for the guest's first-boot unit. Values were checked at the API; a line break would forge a key. */
export function seedText(seed: Record<string, string>): string {
  return Object.entries(seed)
    .map(([key, value]) => `${key}=${value.replaceAll(/[\r\n\0]/g, ' ')}\n`)
    .join('')
}
