import type { AgentChannel, RequestOptions } from './agent-channel.ts'
import { asBoolean, asBytes, asInteger, asObject, lie } from './agent-checks.ts'
import { QmpError, isQmpError } from './errors.ts'

export type FileOptions = {
  /** Deadline of each chunk's request, not of the whole transfer; end that by `signal`. */
  timeout_ms?: number
  signal?: AbortSignal | undefined
  /** Bytes per request. Default 192 KiB. */
  chunk_bytes?: number
}

const CHUNK_BYTES = 192 * 1024
/** qemu-ga itself refuses reads above 48 MB. */
const MAX_CHUNK_BYTES = 16 * 1024 * 1024
/** A guest could send without end. */
const MAX_FILE_BYTES = 1024 ** 3
const CLEAN_UP_MS = 2_000
const MAX_OFFSET = Number.MAX_SAFE_INTEGER

/**
 * Writes a file in the guest, replacing what it held, and compares the size in the end.
 * @returns bytes written
 * @throws QmpError; the file in the guest may then be half written
 */
export async function putFile(
  channel: AgentChannel,
  path: string,
  content: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  options: FileOptions = {},
): Promise<number> {
  const size = chunkSize(options)
  return withFile(channel, path, 'w', options, async (handle) => {
    const write = 'guest-file-write'
    let total = 0
    for await (const piece of content instanceof Uint8Array ? [content] : content) {
      for (let from = 0; from < piece.length; ) {
        const part = Buffer.from(piece.buffer, piece.byteOffset + from, Math.min(size, piece.length - from))
        const args = { handle, 'buf-b64': part.toString('base64') }
        const answer = asObject(write, await channel.request(write, args, request(options)))
        const count = asInteger(write, answer.count, 'count', 0, part.length)
        if (count === 0)
          throw new QmpError('protocol', `the guest wrote nothing of ${path}`, { command: write, sent: true })
        from += count
        total += count
      }
    }
    await channel.request('guest-file-flush', { handle }, request(options))
    const found = await seek(channel, handle, 0, 'end', options)
    if (found !== total) throw lie('guest-file-seek', `${path} has ${found} bytes after ${total} were written`)
    return total
  })
}

/**
 * Reads a file from the guest piece by piece. Ends with an error if it is longer than `max_bytes` (default 1 GiB), or if a
 * regular file's size is not what was read: it may have changed meanwhile.
 */
export async function* getFile(
  channel: AgentChannel,
  path: string,
  options: FileOptions & { max_bytes?: number } = {},
): AsyncGenerator<Buffer> {
  const size = chunkSize(options)
  const max_bytes = options.max_bytes ?? MAX_FILE_BYTES
  const read = 'guest-file-read'
  const handle = await open(channel, path, 'r', options)
  try {
    const expected = await sizeOf(channel, handle, options)
    let total = 0
    for (;;) {
      const value = await channel.request(
        read,
        { handle, count: size },
        { ...request(options), max_answer_bytes: 2 * size + 4096 },
      )
      const answer = asObject(read, value)
      const bytes = asBytes(read, answer['buf-b64'] ?? '', 'buf-b64', size)
      const count = asInteger(read, answer.count, 'count', 0, size)
      const eof = asBoolean(read, answer.eof, 'eof')
      if (count !== bytes.length) throw lie(read, `count is ${count} but ${bytes.length} bytes came`)
      if (count === 0 && !eof) throw lie(read, 'neither bytes nor the end of the file came')
      total += count
      if (total > max_bytes) {
        throw new QmpError('limit', `${path} in the guest is longer than ${max_bytes} bytes`, {
          command: read,
          sent: true,
        })
      }
      if (count > 0) yield bytes
      // Files of /proc and the like have no size; others end there.
      if (eof || (expected > 0 && total > expected)) break
    }
    if (expected > 0 && total !== expected) throw lie(read, `${path} has ${expected} bytes but ${total} came`)
  } finally {
    await closeQuietly(channel, handle)
  }
}

async function withFile<T>(
  channel: AgentChannel,
  path: string,
  mode: string,
  options: FileOptions,
  use: (handle: number) => Promise<T>,
): Promise<T> {
  const handle = await open(channel, path, mode, options)
  let result: T
  try {
    result = await use(handle)
  } catch (error) {
    await closeQuietly(channel, handle)
    throw error
  }
  // A full disk in the guest may show up only here.
  await channel.request('guest-file-close', { handle }, request(options))
  return result
}

async function open(channel: AgentChannel, path: string, mode: string, options: FileOptions): Promise<number> {
  const command = 'guest-file-open'
  return asInteger(
    command,
    await channel.request(command, { path, mode }, request(options)),
    'the handle',
    0,
    MAX_OFFSET,
  )
}

async function seek(
  channel: AgentChannel,
  handle: number,
  offset: number,
  whence: 'set' | 'end',
  options: FileOptions,
): Promise<number> {
  const command = 'guest-file-seek'
  const answer = asObject(command, await channel.request(command, { handle, offset, whence }, request(options)))
  return asInteger(command, answer.position, 'position', 0, MAX_OFFSET)
}

/** Bytes in the file, its position set back to the start; 0 for what cannot be measured. */
async function sizeOf(channel: AgentChannel, handle: number, options: FileOptions): Promise<number> {
  try {
    const size = await seek(channel, handle, 0, 'end', options)
    await seek(channel, handle, 0, 'set', options)
    return size
  } catch (error) {
    if (isQmpError(error, 'command-failed')) return 0
    throw error
  }
}

/** The agent keeps handles open for ever; the error that led here matters more than a failure of this. */
async function closeQuietly(channel: AgentChannel, handle: number): Promise<void> {
  await channel.request('guest-file-close', { handle }, { timeout_ms: CLEAN_UP_MS }).catch(() => {})
}

function chunkSize(options: FileOptions): number {
  return Math.min(Math.max(1, Math.floor(options.chunk_bytes ?? CHUNK_BYTES)), MAX_CHUNK_BYTES)
}

function request(options: FileOptions): RequestOptions {
  return { timeout_ms: options.timeout_ms, signal: options.signal }
}
