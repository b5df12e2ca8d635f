/** Limits of disks, as QEMU is told them. */
import type { BootPlan } from '@wadah/ports/machine'
import type { RunningVm } from './running-vm.ts'

/** Of all disks that have limits. */
export async function throttle(running: RunningVm, disks: BootPlan['local']['disks']): Promise<void> {
  for (const [name, { limits }] of Object.entries(disks)) {
    if (limits.iops === undefined && limits.bytes_per_s === undefined) continue
    await setThrottle(running, name, limits)
  }
}

export async function setThrottle(
  running: RunningVm,
  disk: string,
  limits: { iops?: number; bytes_per_s?: number },
): Promise<void> {
  const zero = { bps_rd: 0, bps_wr: 0, iops_rd: 0, iops_wr: 0 }
  await running.execute('block_set_io_throttle', {
    // The PCI device is a shell; the disk is what sits in it (QEMU, hw/virtio/virtio-blk-pci.c).
    id: `/machine/peripheral/disk-${disk}/virtio-backend`,
    bps: limits.bytes_per_s ?? 0,
    iops: limits.iops ?? 0,
    ...zero,
  })
}
