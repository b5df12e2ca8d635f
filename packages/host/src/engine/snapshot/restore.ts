/** Starting a machine from saved RAM. */
import { fail } from '@wadah/api/fault'
import { olderQemu } from '@wadah/api/qemu-version'
import type { BootPlan, BootRecord } from '@wadah/ports/machine'
import type { RunningVm } from '../running-vm.ts'

const LOAD_MS = 600_000
const LOOK_MS = 5

/**
 * The plan of a start, with the machine as it was when its RAM was saved. Only where its disks lie may differ.
 * @throws WadahError `wrong_state` that names what differs
 */
export function restorePlan(
  plan: BootPlan,
  saved: { boot: BootRecord; qemu_version: string },
  incoming: string,
  here: { qemu_version: string },
): BootPlan {
  const { boot } = saved
  const refuse = (what: string) =>
    fail('wrong_state', `Its RAM can't be gone on from: ${what}.`, {
      remedy: 'revert without RAM: wadah snapshot revert VM NAME --no-ram',
    })
  if (boot.accelerator !== plan.record.accelerator)
    throw refuse(`it was saved under ${boot.accelerator.toUpperCase()}, and this host has ${plan.record.accelerator}`)
  if (olderQemu(here.qemu_version, saved.qemu_version))
    throw refuse(`it was saved by QEMU ${saved.qemu_version}, and this host has the older ${here.qemu_version}`)
  const names = (record: BootRecord, kind: 'disk' | 'nic' | 'cdrom') =>
    record.devices.flatMap((d) =>
      d.kind === kind ? [kind === 'nic' ? `${d.name} ${'mac' in d ? d.mac : ''}` : d.name] : [],
    )
  for (const kind of ['disk', 'nic', 'cdrom'] as const) {
    const [then, now] = [names(boot, kind), names(plan.record, kind)].map((list) => list.sort().join(', '))
    if (then !== now) throw refuse(`its ${kind}s were ${then || 'none'} then, and are ${now || 'none'} now`)
  }
  const lent = (record: BootRecord) => record.devices.some((d) => d.kind === 'hostdev-pci' || d.kind === 'hostdev-usb')
  if (lent(boot) || lent(plan.record)) throw refuse("it has devices of the host, which can't be wound back")
  const tpm = ({ devices }: BootRecord) => (devices.some((d) => d.kind === 'tpm') ? 'a TPM' : 'no TPM')
  if (tpm(boot) !== tpm(plan.record)) throw refuse(`it had ${tpm(boot)} then, and has ${tpm(plan.record)} now`)
  const volumes = new Map(plan.record.devices.flatMap((d) => (d.kind === 'disk' ? [[d.name, d.volume] as const] : [])))
  const devices = boot.devices.map((d) =>
    d.kind === 'disk' ? { ...d, serial: d.serial ?? d.volume, volume: volumes.get(d.name) ?? d.volume } : d,
  )
  return {
    record: { ...boot, name: plan.record.name, devices },
    local: { ...plan.local, incoming },
  }
}

/** Until QEMU has read it all; it then stands, ready to go on. */
export async function loaded(running: RunningVm, signal: AbortSignal): Promise<void> {
  for (const end = performance.now() + LOAD_MS; ; ) {
    if ((await running.status({ timeout_ms: LOAD_MS, signal })) !== 'inmigrate') return
    if (performance.now() > end) throw fail('timeout', 'QEMU did not read the saved RAM in time.')
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
}
