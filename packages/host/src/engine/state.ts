/** What QEMU says it is → what we call it. Pure. */
import type { PausedBy, VmState } from '@wadah/api/schema/vm'

/** `note`: who paused it, as written down before the pause. */
export function stateOf(status: string, note: PausedBy | undefined): { state: VmState; paused_by?: PausedBy } {
  switch (status) {
    case 'running':
      return { state: 'running' }
    case 'paused':
    case 'debug':
      return { state: 'paused', paused_by: note ?? 'qemu' }
    case 'io-error':
      return { state: 'paused', paused_by: 'io-error' }
    case 'prelaunch':
      return { state: 'prepared' }
    case 'inmigrate':
      return { state: 'incoming' }
    case 'postmigrate':
    case 'finish-migrate':
      // Its RAM was saved while it was paused: it still is.
      return note === 'user' ? { state: 'paused', paused_by: 'user' } : { state: 'postmigrate' }
    case 'postcopy-paused':
      return { state: 'postcopy-paused' }
    case 'save-vm':
    case 'restore-vm':
      return { state: 'saving' }
    case 'shutdown':
      return { state: 'stopping' }
    case 'suspended':
      return { state: 'suspended' }
    case 'guest-panicked':
      return { state: 'panicked' }
    case 'internal-error':
    case 'watchdog':
      return { state: 'internal-error' }
    default:
      return { state: 'unknown' }
  }
}

/** Events after which the state may be another. */
export const STATE_EVENTS: ReadonlySet<string> = new Set([
  'STOP',
  'RESUME',
  'RESET',
  'SHUTDOWN',
  'SUSPEND',
  'WAKEUP',
  'GUEST_PANICKED',
  'BLOCK_IO_ERROR',
  'WATCHDOG',
])

/** Translation cache for TCG: QEMU's own default (a gibibyte) lets fifty small guests fill a machine. */
export function tbSizeMib(accelerator: 'kvm' | 'tcg', memoryMib: number): number | null {
  if (accelerator === 'kvm') return null
  if (memoryMib <= 128) return 32
  return memoryMib <= 1024 ? 128 : 256
}

/** What QEMU may use in all before the kernel ends it, bytes: RAM, translation cache, video memory, and air. */
export function memoryCeiling(memoryMib: number, tbMib: number | null, overheadMib: number | undefined): number {
  const overhead = overheadMib ?? 256 + Math.ceil(memoryMib / 32)
  return (memoryMib + (tbMib ?? 0) + overhead) * 1024 * 1024
}
