/** Local ends of a copy: a file is replaced whole or not at all. */
import { randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream, type Stats } from 'node:fs'
import { open, realpath, rename, stat, unlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fail } from '@wadah/api/fault'

export async function openSource(
  path: string,
): Promise<{ data: Readable; size_bytes: number | undefined; name: string }> {
  const stats = await look(path)
  if (!stats) throw fail('not_found', `There is no file ${path} here`)
  if (stats.isDirectory()) {
    throw fail('invalid', `${path} is a folder; only files are copied`, {
      remedy: `tar -cf - ${path} | wadah vm exec NAME -- tar -xf - -C /tmp`,
    })
  }
  const data = createReadStream(path)
  await new Promise<void>((resolve, reject) => {
    data.once('open', () => resolve())
    data.once('error', (cause: NodeJS.ErrnoException) =>
      reject(fail('invalid', `${path} cannot be read (${cause.code})`, { cause })),
    )
  })
  return { data, size_bytes: stats.isFile() ? stats.size : undefined, name: basename(path) }
}

/** Writes a download to `path` (a folder takes the name of `remote`). What was there stays until all of the new file is. */
export async function saveTo(
  path: string,
  remote: string,
  data: IncomingMessage,
): Promise<{ path: string; size_bytes: number }> {
  let target = path
  let stats = await look(target)
  if (stats?.isDirectory() || (!stats && path.endsWith('/'))) {
    const name = basename(remote)
    if (name === '' || name === '.' || name === '..') throw fail('invalid', `"${remote}" does not name a file`)
    target = join(path, name)
    stats = await look(target)
    if (stats?.isDirectory()) throw fail('invalid', `${target} is a folder`)
  }
  let size_bytes = 0
  if (stats && !stats.isFile()) {
    await pipeline(data, createWriteStream(target, { flags: 'w' }))
    return { path: target, size_bytes }
  }
  // A link is followed, so that the file behind it is replaced and not the link.
  const real = stats ? await realpath(target) : target
  const temporary = join(dirname(real), `.${basename(real)}.wadah-${randomBytes(6).toString('hex')}`)
  const handle = await open(temporary, 'wx', stats ? stats.mode & 0o777 : 0o666).catch(
    (cause: NodeJS.ErrnoException) => {
      throw fail('invalid', `${dirname(real)} cannot be written to (${cause.code})`, { cause })
    },
  )
  try {
    for await (const part of data as AsyncIterable<Buffer>) {
      await handle.writeFile(part)
      size_bytes += part.length
    }
    checkWhole(data, size_bytes)
    await handle.sync()
    await handle.close()
    await rename(temporary, real)
  } catch (error) {
    await handle.close().catch(() => {})
    await unlink(temporary).catch(() => {})
    throw broken(error)
  }
  return { path: target, size_bytes }
}

export function checkWhole(data: IncomingMessage, size_bytes: number): void {
  const promised = data.headers['content-length']
  if (!data.complete || (promised !== undefined && Number(promised) !== size_bytes)) {
    throw fail('unreachable', 'The connection broke before the whole file had come')
  }
}

export function broken(error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException).code
  if (code === 'ENOSPC')
    return fail('no_room', 'The disk here is full; what was there before is untouched', { cause: error })
  if (code === 'ECONNRESET' || code === 'ERR_STREAM_PREMATURE_CLOSE' || (error as Error).message === 'aborted') {
    return fail(
      'unreachable',
      'The connection broke before the whole file had come; what was there before is untouched',
      { cause: error },
    )
  }
  return error
}

async function look(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw fail('invalid', `${path} cannot be looked at (${(error as NodeJS.ErrnoException).code})`, { cause: error })
  }
}
