/**
 * The one place that starts qemu-img. It reads files that a guest has written, so the format is always given, never probed, and heads
 * are checked before. To run it with fewer rights, this is the function to change.
 */
import { fail, WadahError } from '@wadah/api/fault'
import { run } from '../system/run.ts'
import type { DiskFormat } from './qcow2.ts'

/** A copy of a whole disk may take long; only one that stands still is a fault, and the job's own signal is there for the rest. */
const CONVERT_TIMEOUT_MS = 24 * 3600 * 1000
const RESIZE_TIMEOUT_MS = 300_000

export type Convert = {
  from: { path: string; format: DiskFormat }
  /** Exists, is empty, and at least as large. */
  to: { path: string; format: DiskFormat }
  direct_io: { from: boolean; to: boolean }
}

/** Pure. */
export function convertArgv(c: Convert): string[] {
  const cache = (direct: boolean): string => (direct ? 'none' : 'writeback')
  return [
    'convert',
    '-p',
    '-n',
    '--target-is-zero',
    '-f',
    c.from.format,
    '-O',
    c.to.format,
    '-T',
    cache(c.direct_io.from),
    '-t',
    cache(c.direct_io.to),
    '--',
    c.from.path,
    c.to.path,
  ]
}

/** Percent (0 to 100) from a piece of what `-p` prints: `    (12.34/100%)\r`; the last one in it. Pure. */
export function percentOf(text: string): number | undefined {
  const found = [...text.matchAll(/\((\d{1,3}\.\d\d)\/100%\)/g)].at(-1)?.[1]
  return found === undefined ? undefined : Math.min(100, Number(found))
}

/** Copies the guest's view of a disk, holes stay holes. Killed with us, and on abort. ENOSPC comes as an error with `code: 'ENOSPC'`. */
export async function convert(c: Convert, signal: AbortSignal, onPercent: (percent: number) => void): Promise<void> {
  let rest = ''
  try {
    await run('qemu-img', convertArgv(c), {
      timeout_ms: CONVERT_TIMEOUT_MS,
      signal,
      die_with_us: true,
      on_stdout(text) {
        rest = (rest + text).slice(-64)
        const percent = percentOf(rest)
        if (percent !== undefined) onPercent(percent)
      },
    })
  } catch (error) {
    throw explained(error)
  }
}

/** A qcow2 whose head was checked gets a larger size; its clusters come when they are written. */
export async function resize(path: string, to_bytes: number, signal: AbortSignal): Promise<void> {
  try {
    const argv = ['resize', '-q', '-f', 'qcow2', '--', path, String(to_bytes)]
    await run('qemu-img', argv, { timeout_ms: RESIZE_TIMEOUT_MS, signal, die_with_us: true })
  } catch (error) {
    throw explained(error)
  }
}

/** The two failures that have a remedy of their own. qemu-img has no codes: its text is all there is. */
function explained(error: unknown): unknown {
  if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') return error
  const { detail } = error.fault
  if (detail.includes('No space left on device'))
    return Object.assign(new Error('no space'), { code: 'ENOSPC', cause: error })
  if (detail.includes('Failed to get "write" lock'))
    return fail('in_use', 'The disk is in use by a running QEMU.', { remedy: 'stop the VM first', cause: error })
  return error
}
