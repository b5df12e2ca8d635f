/** What went wrong on a monitor, in our words. QEMU's own text is shown, never matched. */
import { type WadahError, fail } from '@wadah/api/fault'
import { isQmpError } from '@wadah/qmp/errors'

/** Of a QmpError; anything else comes back as it is. Pure. */
export function monitorFault(error: unknown, pid: number): unknown {
  if (!isQmpError(error)) return error
  const effect = error.sent ? 'unknown' : 'none'
  const with_ = (code: Parameters<typeof fail>[0], detail: string, remedy?: string): WadahError =>
    fail(code, detail, { cause: error, effect, remedy })
  switch (error.kind) {
    case 'closed':
      return with_('wrong_state', 'The VM ended, or its QEMU closed the monitor, at the same moment.', 'wadah vm list')
    case 'timeout':
      return with_(
        'monitor_silent',
        `QEMU (process ${pid}) did not answer in time: ${error.message}.`,
        'wadah vm stop NAME ends it; its disks are kept',
      )
    case 'aborted':
      return with_('cancelled', `It was given up: ${error.message}.`)
    case 'command-failed':
      return fail('qemu_failed', `QEMU refused: ${error.message}.`, { cause: error })
    default:
      return with_('qemu_failed', `The monitor of QEMU (process ${pid}) failed: ${error.message}.`)
  }
}
