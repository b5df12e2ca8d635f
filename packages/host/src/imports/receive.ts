/** Takes an upload into a file, hashing it on the way. */
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { human } from '@wadah/api/admit'
import { fail } from '@wadah/api/fault'
import type { Staged } from '@wadah/ports/imports'

/** Pieces come small (64 KiB): they are written together, and hashed while the last ones are being written. */
const BATCH = 1024 * 1024

/** @throws WadahError `too_large`, `image_corrupt` */
export async function receiveInto(
  file: string,
  data: AsyncIterable<Uint8Array>,
  o: { limit_bytes: number; sha256?: string; signal: AbortSignal },
): Promise<Staged> {
  const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants
  const handle = await open(file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600)
  const hash = createHash('sha256')
  let size_bytes = 0
  let batch: Uint8Array[] = []
  let waiting = 0
  let writing: Promise<void> = Promise.resolve()
  const flush = async (): Promise<void> => {
    const pieces = batch
    batch = []
    waiting = 0
    await writing
    writing = writeAll(handle, pieces)
    writing.catch(() => {})
    for (const piece of pieces) hash.update(piece)
  }
  try {
    for await (const piece of data) {
      o.signal.throwIfAborted()
      size_bytes += piece.length
      if (size_bytes > o.limit_bytes) throw overLimit(o.limit_bytes)
      batch.push(piece)
      waiting += piece.length
      if (waiting >= BATCH) await flush()
    }
    await flush()
    await writing
    if (size_bytes === 0) throw fail('image_corrupt', 'The file is empty.')
    await handle.datasync()
  } finally {
    await writing.catch(() => {})
    await handle.close()
  }
  const sha256 = hash.digest('hex')
  checkSum(sha256, o.sha256)
  return { size_bytes, sha256 }
}

export function overLimit(limit_bytes: number): Error {
  return fail('too_large', `The file is larger than ${human(limit_bytes)}, which is what may be taken in here.`, {
    remedy: 'make room in the pool, use another one, or raise import_max_gib in wadahd.toml',
  })
}

export function checkSum(found: string, wanted: string | undefined): void {
  if (wanted === undefined || wanted === found) return
  throw fail(
    'image_corrupt',
    `The checksum is wrong: SHA-256 ${found} came, ${wanted} was expected. It was thrown away.`,
    {
      field: '/sha256',
      remedy: 'compare it with what the publisher says, and get the file again',
    },
  )
}

async function writeAll(handle: Awaited<ReturnType<typeof open>>, pieces: Uint8Array[]): Promise<void> {
  let rest = pieces
  while (rest.length > 0) {
    const { bytesWritten } = await handle.writev(rest)
    let done = bytesWritten
    let i = 0
    while (i < rest.length && done >= (rest[i] as Uint8Array).length) done -= (rest[i++] as Uint8Array).length
    rest = done > 0 ? [(rest[i] as Uint8Array).subarray(done), ...rest.slice(i + 1)] : rest.slice(i)
  }
}
