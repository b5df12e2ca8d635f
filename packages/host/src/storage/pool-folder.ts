/**
 * The folders of a pool and the rules for reaching them:
 *
 *     <path>/wadah/            0711, root
 *     <path>/wadah/volumes/    0711: QEMU's uids pass through to the one file that is theirs; <id>.<format>
 *     <path>/wadah/tmp/        0711: half-made files; what lies here after a crash is rubbish
 */
import { randomBytes } from 'node:crypto'
import { chmod, lstat, mkdir, readdir, realpath, rm, rmdir, unlink } from 'node:fs/promises'
import { isAbsolute, join, normalize, sep } from 'node:path'
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { PoolDefinition } from '@wadah/ports/volumes'
import { errno, ignoreMissing, pathProblem, syncDir } from '../system/files.ts'
import { run } from '../system/run.ts'

export type VolumeName = { id: string; format: 'qcow2' | 'raw' }
const FOLDER_MODE = 0o711

export function folders(pool: PoolDefinition): { root: string; volumes: string; tmp: string } {
  const root = join(pool.path, 'wadah')
  return { root, volumes: join(root, 'volumes'), tmp: join(root, 'tmp') }
}

/** `<id>.<format>`; refuses anything that is not an id of a volume, so that no name can lead elsewhere. */
export function fileName(volume: VolumeName): string {
  if (!isId(volume.id) || (volume.format !== 'qcow2' && volume.format !== 'raw')) {
    throw fail(
      'invalid',
      `"${String(volume.id).slice(0, 80)}" with format "${String(volume.format).slice(0, 20)}" does not name a volume.`,
    )
  }
  return `${volume.id}.${volume.format}`
}

/** The reverse; undefined for what is not ours. */
export function parseFileName(name: string): VolumeName | undefined {
  const dot = name.indexOf('.')
  const id = name.slice(0, dot)
  const format = name.slice(dot + 1)
  if (dot < 0 || !isId(id) || (format !== 'qcow2' && format !== 'raw')) return undefined
  return { id, format }
}

/**
 * Checks that `pool.path` may be a pool and makes its folders. The path must be an existing folder inside an allowed one, without
 * links, and nobody but root and us may be able to change what lies on the way.
 */
export async function prepareFolders(pool: PoolDefinition, allowedDirs: readonly string[], uid: number): Promise<void> {
  const { path } = pool
  const field = '/path'
  if (!isAbsolute(path) || normalize(path) !== path || (path.endsWith(sep) && path !== sep) || path.includes('\0')) {
    throw fail('invalid', `"${path.slice(0, 200)}" is not an absolute path without "..", "." and a slash at its end.`, {
      field,
    })
  }
  const allowed = await Promise.all(allowedDirs.map(async (dir) => await realpath(dir).catch(() => dir)))
  if (
    ![...allowedDirs, ...allowed].some((dir) => path === dir || path.startsWith(dir.endsWith(sep) ? dir : dir + sep))
  ) {
    throw fail('forbidden', `Pools may lie in ${allowedDirs.join(', ') || 'no folder'} only, and ${path} is outside.`, {
      field,
      remedy: 'choose a folder inside, or add its parent to `pool_dirs` in wadahd.toml',
    })
  }
  // A link may be part of an allowed folder (the administrator wrote it), never of what follows.
  const real = await realpath(path).catch((error: unknown) => {
    if (errno(error) === 'ENOENT') {
      throw fail('invalid', `The folder ${path} does not exist.`, { field, remedy: `mkdir -m 0755 ${path}` })
    }
    throw fail('invalid', `The folder ${path} cannot be looked at (${errno(error)}).`, { field })
  })
  if (!allowed.some((dir) => real === dir || real.startsWith(dir.endsWith(sep) ? dir : dir + sep))) {
    throw fail(
      'forbidden',
      `${path} leads to ${real} by a symbolic link, which is outside of ${allowedDirs.join(', ')}.`,
      { field },
    )
  }
  const within = [...allowedDirs].find((dir) => path === dir || path.startsWith(dir.endsWith(sep) ? dir : dir + sep))
  if (within !== undefined && join(await realpath(within), path.slice(within.length)) !== real) {
    throw fail('invalid', `There is a symbolic link in ${path}; it leads to ${real}.`, { field, remedy: `use ${real}` })
  }
  const problem = await pathProblem(real, uid)
  if (problem !== undefined) {
    throw fail(
      'invalid',
      `${path} can't be a pool: ${problem}. Every folder on the way must belong to root or the user of wadahd and be writable by its owner only.`,
      {
        field,
        remedy: `chmod go-w ${path}`,
      },
    )
  }
  const { root, volumes, tmp } = folders(pool)
  for (const dir of [root, volumes, tmp]) await makeFolder(dir, uid, field)
  await syncDir(root)
  await syncDir(path)
}

async function makeFolder(dir: string, uid: number, field: string): Promise<void> {
  try {
    await mkdir(dir, { mode: FOLDER_MODE })
  } catch (error) {
    const code = errno(error)
    if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
      throw fail('invalid', `${dir} can't be made: the folder is not writable here (${code}).`, { field })
    }
    if (code !== 'EEXIST') throw fail('tool_failed', `${dir} can't be made (${code}).`, { field, cause: error })
  }
  const stat = await lstat(dir)
  if (!stat.isDirectory() || (stat.uid !== uid && stat.uid !== 0)) {
    throw fail('invalid', `${dir} exists and is not a folder of ours.`, { field, remedy: `look at it: ls -ld ${dir}` })
  }
  // The mode given to mkdir is cut by the umask, and a folder from elsewhere may be wider.
  if ((stat.mode & 0o7777) !== FOLDER_MODE) await chmod(dir, FOLDER_MODE)
}

/** Takes the folders away if no volume is left. Half-made files go with them. */
export async function removeFolders(pool: PoolDefinition): Promise<void> {
  const { root, volumes, tmp } = folders(pool)
  const left = await readdir(volumes).catch(ignoreMissing)
  if (left !== undefined && left.length > 0) {
    throw fail('in_use', `There are still ${left.length} files in ${volumes}.`, {
      remedy: 'delete the volumes first (`wadah volume list`)',
    })
  }
  for (const name of (await readdir(tmp).catch(ignoreMissing)) ?? []) {
    if (parseFileName(name) !== undefined || name.startsWith(PROBE)) await unlink(join(tmp, name)).catch(ignoreMissing)
  }
  // What an import left whose job is long over.
  await rm(join(root, 'imports'), { recursive: true, force: true })
  for (const dir of [volumes, tmp, root]) {
    await rmdir(dir).catch((error: unknown) => {
      if (errno(error) === 'ENOTEMPTY') {
        throw fail('in_use', `${dir} holds files that are not ours.`, { remedy: `look at them: ls -la ${dir}` })
      }
      return ignoreMissing(error)
    })
  }
}

const PROBE = '.probe-'

/** Whether O_DIRECT works in the pool, found by writing one aligned block. dd is asked because Node has no aligned buffers. */
export async function probeDirectIo(pool: PoolDefinition): Promise<boolean> {
  const file = join(folders(pool).tmp, PROBE + randomBytes(8).toString('hex'))
  try {
    await run(
      'dd',
      ['if=/dev/zero', `of=${file}`, 'bs=4096', 'count=1', 'oflag=direct,nofollow', 'conv=excl', 'status=none'],
      {
        timeout_ms: 30_000,
      },
    )
    return true
  } catch {
    return false
  } finally {
    await unlink(file).catch(ignoreMissing)
  }
}
