/** Boot records of warm templates and of their clones. Pure. */
import { fail } from '@wadah/api/fault'
import { olderQemu } from '@wadah/api/qemu-version'
import type { BootDevice, BootPlan, BootRecord } from '@wadah/ports/machine'
import type { Identity, WarmState } from '@wadah/ports/warm'

/** Translated code of a clone is its own: this much at most. What a server runs again and again fits (docs/instant-clones.md). */
const CLONE_TB_MIB = 32

/** A machine as it would be, besides what a clone of it will need. */
export function templatePlan(plan: BootPlan, image: string): BootPlan {
  const devices = plan.record.devices.flatMap((d): BootDevice[] => {
    if (d.kind === 'balloon') return [{ ...d, reporting: false }]
    return d.kind === 'agent' ? [d, { kind: 'identity', id: 'identity0' }] : [d]
  })
  // QEMU's own network stack would be part of what is saved, and a clone on another kind of network could not be made from it.
  const nics = Object.fromEntries(Object.keys(plan.local.nics).map((name) => [name, { kind: 'none' as const }]))
  return { record: { ...plan.record, devices }, local: { ...plan.local, nics, warm: { image, share: true } } }
}

/**
 * The template's machine with this VM's name, NIC and disks.
 * @throws WadahError `wrong_state` that names what differs
 */
export function clonePlan(
  plan: BootPlan,
  warm: WarmState & { image: string; identity: Identity },
  incoming: string,
  here: { qemu_version: string },
): BootPlan {
  const { boot } = warm
  const { record } = plan
  const refuse = (what: string) =>
    fail('wrong_state', `No instant clone can be made: ${what}.`, {
      remedy: 'warm the image again: wadah image unwarm IMAGE, then wadah image warm IMAGE; or leave out --instant',
      retryable: false,
    })
  if (boot.accelerator !== record.accelerator)
    throw refuse(
      `its template was made under ${boot.accelerator.toUpperCase()}, and this host has ${record.accelerator}`,
    )
  if (olderQemu(here.qemu_version, warm.qemu_version))
    throw refuse(`its template was made by QEMU ${warm.qemu_version}, and this host has the older ${here.qemu_version}`)
  if (boot.cpus !== record.cpus || boot.memory.mib !== record.memory.mib)
    throw refuse(`its template has ${boot.cpus} CPUs and ${boot.memory.mib} MiB`)
  const own = (kind: 'disk' | 'nic') => record.devices.filter((d) => d.kind === kind)
  const places = (r: BootRecord) =>
    r.devices.flatMap((d) => (d.kind === 'disk' || d.kind === 'nic' || d.kind === 'cdrom' ? [`${d.id}@${d.bus}`] : []))
  const [then, now] = [places(boot), places(record)].map((list) => list.sort().join(', '))
  if (then !== now) throw refuse(`its template has the devices ${then}, and it would have ${now}`)
  const disks = new Map(own('disk').flatMap((d) => (d.kind === 'disk' ? [[d.name, d] as const] : [])))
  const nics = new Map(own('nic').flatMap((d) => (d.kind === 'nic' ? [[d.name, d] as const] : [])))
  const devices = boot.devices.map((d) => {
    if (d.kind === 'disk') return { ...d, serial: d.serial ?? d.volume, volume: disks.get(d.name)?.volume ?? d.volume }
    const nic = d.kind === 'nic' ? nics.get(d.name) : undefined
    return d.kind === 'nic' && nic ? { ...d, mac: nic.mac, network: nic.network } : d
  })
  const { vm, uuid, name, kernel } = record
  return {
    record: { ...boot, vm, uuid, name, ...(kernel ? { kernel } : {}), devices },
    local: {
      ...plan.local,
      ...(plan.local.tb_size_mib === null ? {} : { tb_size_mib: CLONE_TB_MIB }),
      incoming,
      warm: { image: warm.image, share: false, identity: warm.identity },
    },
  }
}
