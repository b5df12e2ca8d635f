/** A file that holds secrets: whole or not at all, its owner's only, and where it goes is decided by nobody but who asked. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { lstat, open, realpath, rename, unlink } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { basename, dirname, join, resolve } from 'node:path'
import { fail } from '@wadah/api/fault'
import { broken, checkWhole } from './files.ts'

const GROUP_OR_OTHERS_WRITE = 0o022
const STICKY = 0o1000

/**
 * Writes beside `path` and then renames: nothing that lies there is followed or written into.
 * @param named what the file is called when `path` is a folder
 * @param check looks at the whole file before it gets its name
 */
export async function savePrivately(
  path: string,
  named: string,
  data: IncomingMessage,
  check: (file: string) => Promise<void>,
): Promise<{ path: string; size_bytes: number }> {
  const uid = process.geteuid?.() ?? 0
  const target = await choose(path, named, uid)
  const temporary = join(dirname(target), `.${basename(target)}.wadah-${randomBytes(6).toString('hex')}`)
  const { O_CREAT, O_EXCL, O_WRONLY, O_NOFOLLOW } = constants
  const handle = await open(temporary, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0o600).catch((cause: unknown) => {
    throw fail('invalid', `${dirname(target)} cannot be written to (${errno(cause)})`, { field: 'file', cause })
  })
  let size_bytes = 0
  try {
    for await (const part of data as AsyncIterable<Buffer>) {
      await handle.writeFile(part)
      size_bytes += part.length
    }
    checkWhole(data, size_bytes)
    await check(temporary)
    await handle.sync()
    await handle.close()
    await rename(temporary, target)
    const folder = await open(dirname(target), constants.O_RDONLY | constants.O_DIRECTORY)
    await folder.sync().finally(() => folder.close())
  } catch (error) {
    await handle.close().catch(() => {})
    await unlink(temporary).catch(() => {})
    throw broken(error)
  }
  return { path: target, size_bytes }
}

async function choose(path: string, named: string, uid: number): Promise<string> {
  const refuse = (why: string) =>
    fail('invalid', `${why}: a copy that holds secrets is not put there`, {
      field: 'file',
      remedy: 'name a new file in a folder that only you may write to',
    })
  const asked = resolve(path)
  // The folder may be reached by links, as /var/run is; what they lead to must be nobody else's to change.
  const real = await realpath(dirname(asked)).catch((cause: unknown) => {
    throw fail('invalid', `${dirname(asked)} cannot be looked at (${errno(cause)})`, { field: 'file', cause })
  })
  let target = join(real, basename(asked))
  let there = await look(target)
  if (there?.isDirectory() || path.endsWith('/')) {
    target = join(target, named)
    there = await look(target)
  }
  const problem = await folderProblem(dirname(target), uid)
  if (problem !== undefined) throw refuse(problem)
  if (there?.isSymbolicLink()) throw refuse(`${target} is a symbolic link`)
  if (there && !there.isFile()) throw refuse(`${target} is no plain file`)
  if (there && there.uid !== uid) throw refuse(`${target} belongs to uid ${there.uid}`)
  return target
}

async function look(path: string) {
  return await lstat(path).catch((cause: unknown) => {
    if (errno(cause) === 'ENOENT') return undefined
    throw fail('invalid', `${path} cannot be looked at (${errno(cause)})`, { field: 'file', cause })
  })
}

/** Who else could put another thing in the place of a part of this folder (without links), from `/` on. */
async function folderProblem(folder: string, uid: number): Promise<string | undefined> {
  if (folder !== dirname(folder)) {
    const above = await folderProblem(dirname(folder), uid)
    if (above !== undefined) return above
  }
  const stat = await look(folder)
  if (!stat?.isDirectory()) return `${folder} is no folder`
  if (stat.uid !== 0 && stat.uid !== uid) return `${folder} belongs to uid ${stat.uid}`
  // In a sticky folder nobody renames what is not theirs.
  if ((stat.mode & GROUP_OR_OTHERS_WRITE) !== 0 && (stat.mode & STICKY) === 0)
    return `${folder} may be written to by its group or by everybody`
  return undefined
}

function errno(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? String(error)
}
