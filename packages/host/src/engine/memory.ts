/**
 * RAM that comes while the guest runs: one DIMM in a free slot for each time it grows. A DIMM never leaves (a guest rarely can let go
 * of RAM); the next cold start has it all as plain RAM.
 */
import type { BootDevice, BootRecord } from '@wadah/ports/machine'
import { dimmArgs } from './argv.ts'
import type { RunningVm } from './running-vm.ts'

/** What Linux on x86 takes RAM in (Documentation/admin-guide/mm/memory-hotplug.rst); less, or a crooked size, it refuses. */
export const DIMM_STEP_MIB = 128

type Dimm = BootDevice & { kind: 'dimm' }
const dimms = (record: Pick<BootRecord, 'devices'>): Dimm[] => record.devices.filter((d) => d.kind === 'dimm')

/** RAM of a VM as it is, MiB: what it started with and what came since. */
export function memoryMib(record: Pick<BootRecord, 'memory' | 'devices'>): number {
  return dimms(record).reduce((sum, d) => sum + d.mib, record.memory.mib)
}

/** The DIMM that makes it `to_mib`; undefined when there is none: not larger, no slot or room left, or no multiple of the step. Pure. */
export function dimmFor(record: Pick<BootRecord, 'memory' | 'devices'>, to_mib: number): Dimm | undefined {
  const mib = to_mib - memoryMib(record)
  const slot = dimms(record).length
  if (mib <= 0 || mib % DIMM_STEP_MIB !== 0 || slot >= record.memory.slots || to_mib > record.memory.max_mib)
    return undefined
  return { kind: 'dimm', id: `dimm${slot}`, slot, mib }
}

/**
 * @param ceiling sets what QEMU may use in all, for so much RAM; raised before, and taken back when it comes to nothing
 * @throws WadahError `qemu_failed`; then the VM is as it was
 */
export async function growMemory(
  running: RunningVm,
  to_mib: number,
  ceiling: (mib: number) => Promise<void>,
): Promise<void> {
  const dimm = dimmFor(running.record, to_mib)
  if (!dimm) return
  const { object, device } = dimmArgs(dimm)
  await ceiling(to_mib)
  try {
    await running.execute('object-add', object)
    try {
      await running.execute('device_add', device)
    } catch (error) {
      await running.execute('object-del', { id: object.id }).catch(() => {})
      throw error
    }
  } catch (error) {
    await ceiling(memoryMib(running.record)).catch(() => {})
    throw error
  }
  await running.deviceCame(dimm)
}
