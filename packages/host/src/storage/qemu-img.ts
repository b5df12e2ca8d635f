/**
 * The one place that starts qemu-img (and serve.ts qemu-nbd). It reads files that a guest or a stranger has written, so every node is spelled out (format,
 * protocol, backing; nothing is probed and no header chooses a file), heads are checked before, and it runs confined (system/confine.ts).
 */
import { fail, WadahError } from '@wadah/api/fault'
import type { ByteStream } from '@wadah/ports/volumes'
import { bridge, byteStream } from '../system/byte-stream.ts'
import type { Confined, ConfineLimits } from '../system/confine.ts'
import type { DiskFormat } from './qcow2.ts'

/** A copy of a whole disk may take long; only one that stands still is a fault, and the job's own signal is there for the rest. */
export const CONVERT_TIMEOUT_MS = 24 * 3600 * 1000
const RESIZE_TIMEOUT_MS = 300_000
const CHECK_TIMEOUT_MS = 3600 * 1000
const GIB = 2 ** 30
/** Tables of the largest disks, coroutine stacks and glibc's arenas; far from what would hurt the host. */
const MEMORY_BYTES = 4 * GIB

export type SourceFormat = DiskFormat | 'vmdk' | 'vdi' | 'vhdx' | 'vpc'
export type TargetFormat = SourceFormat
type Json = { [key: string]: unknown }

/** The first is read; what follows is what it stands on. `part`: only these bytes of the file (a disk inside an archive). */
export type Source = { path: string; format: SourceFormat; part?: { offset: number; bytes: number } | undefined }[]

/** What another program serves by NBD, over a socket that qemu-img has as this descriptor. */
export type Served = { stream: ByteStream }
const SOCKET_FD = 3

export type Convert = {
  from: Source | Served
  /** Exists, is empty (but for its head), and at least as large. `fresh`: qemu-img makes it (for export). */
  to: { path: string; format: TargetFormat; fresh?: { options: string[] } }
  size_bytes: number
  direct_io: { from: boolean; to: boolean }
  bytes_per_s?: number | undefined
}

/** A block node with everything in it said. Pure. */
export function sourceNode(chain: Source): Json {
  const [top, ...below] = chain
  if (!top) throw new Error('a source without a file')
  const file: Json = { driver: 'file', filename: top.path }
  return {
    driver: top.format,
    'read-only': true,
    // The size it says, not what old tools made of its geometry.
    ...(top.format === 'vpc' ? { force_size_calc: 'current_size' } : {}),
    file: top.part ? { driver: 'raw', offset: top.part.offset, size: top.part.bytes, file } : file,
    ...(below.length > 0
      ? { backing: sourceNode(below) }
      : top.format === 'qcow2' || top.format === 'vmdk'
        ? { backing: null }
        : {}),
  }
}

const servedNode: Json = {
  driver: 'raw',
  'read-only': true,
  file: { driver: 'nbd', server: { type: 'fd', str: String(SOCKET_FD) }, export: '' },
}

/** Pure. */
export function convertArgv(c: Convert): string[] {
  const node = 'stream' in c.from ? servedNode : sourceNode(c.from)
  const cache = (direct: boolean): string => (direct ? 'none' : 'writeback')
  return [
    'convert',
    '-p',
    ...(c.to.fresh ? c.to.fresh.options.flatMap((o) => ['-o', o]) : ['-n', '--target-is-zero']),
    '-O',
    c.to.format,
    '-T',
    cache(c.direct_io.from),
    '-t',
    cache(c.direct_io.to),
    ...(c.bytes_per_s === undefined ? [] : ['-r', String(c.bytes_per_s)]),
    '--',
    `json:${JSON.stringify(node)}`,
    c.to.path,
  ]
}

/** Percent (0 to 100) from a piece of what `-p` prints: `    (12.34/100%)\r`; the last one in it. Pure. */
export function percentOf(text: string): number | undefined {
  const found = [...text.matchAll(/\((\d{1,3}\.\d\d)\/100%\)/g)].at(-1)?.[1]
  return found === undefined ? undefined : Math.min(100, Number(found))
}

/** Generous for honest work: tables add a few percent, and even slow CPUs unpack 10 MiB a second. */
export function limitsFor(size_bytes: number): ConfineLimits {
  return {
    memory_bytes: MEMORY_BYTES,
    cpu_s: 600 + size_bytes / (10 * 2 ** 20),
    file_bytes: size_bytes * 1.05 + 64 * 2 ** 20,
  }
}

/** Copies the guest's view of a disk, holes stay holes. Killed with us, and on abort. ENOSPC comes as an error with `code: 'ENOSPC'`. */
export async function convert(
  confined: Confined,
  c: Convert,
  signal: AbortSignal,
  onPercent: (percent: number) => void,
): Promise<void> {
  let rest = ''
  const { from } = c
  try {
    await confined.run('qemu-img', convertArgv(c), {
      limits: limitsFor(c.size_bytes),
      timeout_ms: CONVERT_TIMEOUT_MS,
      signal,
      ...('stream' in from ? { on_socket: (socket) => void bridge(byteStream(socket), from.stream) } : {}),
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
export async function resize(confined: Confined, chain: Source, to_bytes: number, signal: AbortSignal): Promise<void> {
  try {
    const node = { ...sourceNode(chain), 'read-only': false }
    await confined.run('qemu-img', ['resize', '-q', `json:${JSON.stringify(node)}`, String(to_bytes)], {
      limits: limitsFor(to_bytes),
      timeout_ms: RESIZE_TIMEOUT_MS,
      signal,
    })
  } catch (error) {
    throw explained(error)
  }
}

/** The topmost layer's content goes into the one below it. What it held stays in it: the caller removes it when that is recorded. */
export async function commitLayer(
  confined: Confined,
  chain: Source,
  size_bytes: number,
  signal: AbortSignal,
): Promise<void> {
  try {
    const node = { ...sourceNode(chain), 'read-only': false }
    await confined.run('qemu-img', ['commit', '-q', '-d', '-t', 'writeback', `json:${JSON.stringify(node)}`], {
      limits: limitsFor(size_bytes),
      timeout_ms: CONVERT_TIMEOUT_MS,
      signal,
    })
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

/** Formats whose tables qemu-img can go through; the others have none, or are looked at by our own readers. */
const CHECKED: readonly SourceFormat[] = ['qcow2', 'vmdk', 'vhdx', 'vdi', 'vpc']

/**
 * Goes through a disk's tables without following anything to other files. Returns what is wrong, or undefined. A disk that was cut
 * off is found here: reading beyond the end of its file would give zeros instead.
 */
export async function checkTables(
  confined: Confined,
  source: Source[0],
  size_bytes: number,
  signal: AbortSignal,
): Promise<string | undefined> {
  if (!CHECKED.includes(source.format)) return undefined
  // 2: corrupt, 3: leaked clusters (harmless here), 63: this format has no check, but it was opened.
  const { code, stdout } = await confined
    .run('qemu-img', ['check', '--output=json', `json:${JSON.stringify(sourceNode([source]))}`], {
      limits: limitsFor(size_bytes),
      timeout_ms: CHECK_TIMEOUT_MS,
      signal,
      ok_codes: [1, 2, 3, 63],
    })
    .catch((error: unknown) => {
      if (error instanceof WadahError && error.fault.code === 'tool_failed') return { code: 1, stdout: '' }
      throw error
    })
  if (code === 63) return undefined
  try {
    const found = JSON.parse(stdout) as { corruptions?: number; 'check-errors'?: number }
    if ((found.corruptions ?? 0) > 0 || (found['check-errors'] ?? 0) > 0)
      return 'its tables are damaged, or it was cut off'
    return undefined
  } catch {
    return 'it cannot be opened: it is damaged, or was cut off'
  }
}
