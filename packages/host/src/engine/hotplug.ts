/** Disks (and, in hot-nic.ts, NICs) that come and go while the guest runs. The boot record follows, so that a restarted daemon finds what is there. */
import { fail } from '@wadah/api/fault'
import type { BootDevice, BootRecord, LocalDisk, Running } from '@wadah/ports/machine'
import { blockdev, diskDevice } from './argv.ts'

/** The first root port with nothing behind it: where a cold start would put one disk more, if none came or went before. Pure. */
export function freePort(record: BootRecord): string | undefined {
  const used = new Set(record.devices.flatMap((d) => ('bus' in d ? [d.bus] : [])))
  return record.devices.find((d) => d.kind === 'root-port' && !used.has(d.id))?.id
}

/**
 * Puts a disk behind a free port. Undefined when there is none left: it comes at the next start.
 * @throws WadahError `qemu_failed`; then nothing of it is left
 */
export async function plugDisk(
  running: Running,
  disk: { name: string; volume: string },
  local: LocalDisk,
): Promise<(BootDevice & { kind: 'disk' }) | undefined> {
  const bus = freePort(running.record)
  if (bus === undefined) return undefined
  const device = { kind: 'disk' as const, id: `disk-${disk.name}`, bus, name: disk.name, volume: disk.volume }
  const node = `vol-${disk.name}`
  await running.execute('blockdev-add', blockdev(node, local))
  try {
    await running.execute('device_add', diskDevice(device))
  } catch (error) {
    await running.execute('blockdev-del', { 'node-name': node }).catch(() => {})
    throw error
  }
  return device
}

/** What is told when a guest keeps what it was asked to let go of. */
export const notLetGo = (what: 'disk' | 'NIC', name: string) =>
  fail('busy', `The guest did not let go of the ${what} "${name}".`, {
    effect: 'unknown',
    remedy: `${what === 'disk' ? 'unmount it in the guest and try again' : 'try again once the guest is up'}, or wadah vm shutdown NAME first`,
  })
