/** Opening files where a less privileged user may own something on the way: no links, nothing but what was expected. */
import { constants } from 'node:fs'
import { lstat, open, rename, rm, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'

/** `error.code` of a file-system error, or ''. */
export function errno(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}

/** For `.catch`: a thing that is not there is as good as gone. */
export function ignoreMissing(error: unknown): undefined {
  if (errno(error) === 'ENOENT') return undefined
  throw error
}

/** Opens an existing regular file without following a link in its last component; O_NONBLOCK so that a FIFO can't hang us. */
export async function openRegular(path: string, flags: number = constants.O_RDONLY): Promise<FileHandle> {
  const handle = await open(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    if ((await handle.stat()).isFile()) return handle
  } catch (error) {
    await handle.close()
    throw error
  }
  await handle.close()
  throw Object.assign(new Error(`not a regular file: ${path}`), { code: 'EINVAL' })
}

/** Creates a file that must not exist yet, and opens it for reading and writing. */
export async function createExclusive(path: string, mode: number): Promise<FileHandle> {
  const { O_CREAT, O_EXCL, O_RDWR, O_NOFOLLOW } = constants
  return await open(path, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW, mode)
}

/** Makes renames and unlinks in a folder durable. */
export async function syncDir(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/**
 * Puts a small text file in place: a reader sees the old one or the new one, also after a crash. It has exactly `mode`, whatever the
 * umask; it belongs to the daemon's user and the group `gid`, if one is given.
 */
export async function replaceFile(path: string, text: string, mode: number, gid: number | null = null): Promise<void> {
  const beside = `${path}.new`
  await rm(beside, { force: true })
  {
    await using file = await createExclusive(beside, 0o600)
    await file.writeFile(`${text.trimEnd()}\n`)
    if (gid !== null) await file.chown(process.getuid?.() ?? 0, gid)
    await file.chmod(mode)
    await file.sync()
  }
  await rename(beside, path)
  await syncDir(dirname(path))
}

const GROUP_OR_OTHERS_WRITE = 0o022
const STICKY = 0o1000

/**
 * What would let somebody else swap a part of `path` (absolute, normalized) under our feet, or undefined: a link, an owner other than
 * root and `uid`, or a folder that others may write to (unless sticky). Looks at every component from `/` on, the last included;
 * when there is nothing to complain about, later look-ups of the same path by us can't be led elsewhere.
 */
export async function pathProblem(path: string, uid: number): Promise<string | undefined> {
  const parts: string[] = []
  for (let at = path; ; at = dirname(at)) {
    parts.unshift(at)
    if (at === dirname(at)) break
  }
  for (const part of parts) {
    const stat = await lstat(part).catch((error: unknown) => errno(error))
    if (typeof stat === 'string')
      return stat === 'ENOENT' ? `${part} does not exist` : `${part} cannot be looked at (${stat})`
    if (stat.isSymbolicLink()) return `${part} is a symbolic link`
    if (!stat.isDirectory()) return `${part} is not a folder`
    if (stat.uid !== 0 && stat.uid !== uid)
      return `${part} belongs to uid ${stat.uid}, who could put another folder in its place`
    // In a sticky folder nobody can rename what is not theirs; the pool itself must be ours alone.
    const guarded = part !== path && (stat.mode & STICKY) !== 0
    if ((stat.mode & GROUP_OR_OTHERS_WRITE) !== 0 && !guarded) {
      return `${part} may be written to by its group or by everybody (mode ${mode(stat.mode)})`
    }
  }
  return undefined
}

function mode(value: number): string {
  return (value & 0o7777).toString(8).padStart(4, '0')
}
