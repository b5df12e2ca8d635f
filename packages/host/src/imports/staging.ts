/**
 * Where what comes in lies until it is a volume: `<pool>/wadah/imports/<id>/`, in the pool because that is where there is room.
 *
 *     file        as it came        file.json   what a download is part of
 *     plain       unpacked          out/        made for an export
 */
import { lstat, mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { PoolDefinition } from '@wadah/ports/volumes'
import { folders } from '../storage/pool-folder.ts'
import { errno, ignoreMissing, openRegular } from '../system/files.ts'
import type { Content } from './identify.ts'

const FOLDER_MODE = 0o711

const root = (pool: PoolDefinition): string => join(folders(pool).root, 'imports')

export function staging(pool: PoolDefinition, id: string): { dir: string; file: string; plain: string; out: string } {
  if (!isId(id)) throw fail('internal', `not an id: ${id.slice(0, 40)}`)
  const dir = join(root(pool), id)
  return { dir, file: join(dir, 'file'), plain: join(dir, 'plain'), out: join(dir, 'out') }
}

export async function makeStaging(pool: PoolDefinition, id: string): Promise<void> {
  for (const dir of [root(pool), staging(pool, id).dir]) {
    await mkdir(dir, { mode: FOLDER_MODE }).catch((error: unknown) => {
      if (errno(error) === 'ENOENT')
        throw fail('unavailable', `The pool at ${pool.path} can't be reached.`, {
          remedy: `is its file system mounted? ls ${pool.path}`,
        })
      if (errno(error) !== 'EEXIST') throw error
    })
    const stat = await lstat(dir)
    if (!stat.isDirectory() || stat.uid !== (process.getuid?.() ?? 0))
      throw fail('tool_failed', `${dir} is not a folder of ours.`, { remedy: `look at it: ls -ld ${dir}` })
  }
}

/** The folder of all imports stays: taking it away would pull it from under one that begins at the same moment. */
export async function cleanStaging(pool: PoolDefinition, id: string): Promise<void> {
  await rm(staging(pool, id).dir, { recursive: true, force: true })
}

export async function listStaging(pool: PoolDefinition): Promise<string[]> {
  return ((await readdir(root(pool)).catch(ignoreMissing)) ?? []).filter(isId)
}

/** Reads parts of a file; the returned function closes it. */
export async function openContent(path: string): Promise<Content & { close(): Promise<void>; fd: number }> {
  const handle = await openRegular(path)
  const { size } = await handle.stat()
  return {
    bytes: size,
    fd: handle.fd,
    async read(offset, length) {
      const wanted = Math.max(0, Math.min(length, size - offset))
      const buffer = Buffer.alloc(wanted)
      let done = 0
      while (done < wanted) {
        const { bytesRead } = await handle.read(buffer, done, wanted - done, offset + done)
        if (bytesRead === 0) break
        done += bytesRead
      }
      return buffer.subarray(0, done)
    },
    close: () => handle.close(),
  }
}
