/** Logs that QEMU appends to and that may not grow without end: when one is too long, its older half goes. */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'

export const LOG_LIMIT_BYTES = 1024 * 1024

/** Opens for appending, to be inherited by QEMU. O_APPEND makes the trimming below safe: writes go to the new end. */
export async function openLog(path: string) {
  return open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW, 0o600)
}

/** Cuts the file to its last half when it is over the limit. */
export async function trimLog(path: string, limit_bytes = LOG_LIMIT_BYTES): Promise<void> {
  const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW).catch(() => undefined)
  if (!file) return
  try {
    const { size } = await file.stat()
    if (size <= limit_bytes) return
    const keep = Buffer.alloc(Math.floor(limit_bytes / 2))
    const { bytesRead } = await file.read(keep, 0, keep.length, size - keep.length)
    // What the guest writes between the two is lost with what is cut: the end matters, not each byte.
    await file.truncate(0)
    await file.write(keep.subarray(0, bytesRead), 0, bytesRead, 0)
  } finally {
    await file.close()
  }
}

/** The last `bytes` of a log, as text; control characters are left to the reader. */
export async function tailLog(path: string, bytes: number): Promise<{ text: string; size_bytes: number }> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW).catch(() => undefined)
  if (!file) return { text: '', size_bytes: 0 }
  try {
    const { size } = await file.stat()
    const length = Math.min(bytes, size)
    const buffer = Buffer.alloc(length)
    const { bytesRead } = await file.read(buffer, 0, length, size - length)
    return { text: buffer.subarray(0, bytesRead).toString('utf8'), size_bytes: size }
  } finally {
    await file.close()
  }
}

/** The last lines of a log in one, printable: for messages about a program that ended. */
export async function lastLines(path: string, bytes: number, lines: number): Promise<string> {
  const { text } = await tailLog(path, bytes)
  return text
    .trimEnd()
    .split('\n')
    .slice(-lines)
    .join(' / ')
    .replaceAll(/[^\x20-\x7e]/g, '?')
}
