/**
 * Whether a folder is really the same one on several hosts, whether locks taken on one are seen on another (QEMU guards disks by
 * them, `file.locking`, and there are file systems on which they only seem to work), and whether what one writes the other reads (trial.ts).
 */
import { randomBytes } from 'node:crypto'
import { spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { PoolDefinition, SharedPools } from '@wadah/ports/volumes'
import { errno, syncDir } from '../system/files.ts'
import { missingProgram, run } from '../system/run.ts'
import { mountAt } from './file-system.ts'
import { folders, prepareFolders } from './pool-folder.ts'
import { trialFiles } from './trial.ts'

const lockOf = (mark: string) => `${mark}.lock`
const NAME = /^[a-z0-9-]{1,60}$/
const MARK_BYTES = 256
const HOLD_MS = 10_000
/** One that nobody lets go of ends by itself. */
const HELD_MOST_MS = 60_000

export function sharedPools(allowedDirs: readonly string[], uid: number): SharedPools {
  const file = (pool: PoolDefinition, name: string) => {
    if (!NAME.test(name)) throw fail('internal', `not the name of a mark: ${name}`)
    return join(folders(pool).root, `.mark-${name}`)
  }
  return {
    ...trialFiles(file),

    async mark(pool, name, text) {
      await prepareFolders(pool, allowedDirs, uid)
      const to = file(pool, name)
      const beside = `${to}.${randomBytes(4).toString('hex')}`
      const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
      {
        await using handle = await open(beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
        await handle.writeFile(text)
        await handle.sync()
      }
      await rename(beside, to)
      await syncDir(folders(pool).root)
    },

    async read(pool, name) {
      try {
        await using handle = await open(file(pool, name), constants.O_RDONLY | constants.O_NOFOLLOW)
        const { buffer, bytesRead } = await handle.read(Buffer.alloc(MARK_BYTES), 0, MARK_BYTES, 0)
        return buffer.toString('utf8', 0, bytesRead)
      } catch (error) {
        if (['ENOENT', 'ENOTDIR'].includes(errno(error))) return undefined
        throw fail('tool_failed', `${pool.path} can't be read (${errno(error)}).`, { cause: error })
      }
    },

    async mounted(pool) {
      return mountAt(await readFile('/proc/self/mountinfo', 'utf8'), pool.path)
    },

    async unmark(pool, name) {
      for (const path of [file(pool, name), lockOf(file(pool, name))]) await rm(path, { force: true })
    },

    async hold(pool, name) {
      // QEMU's own programs, for these are the locks that matter. Of a raw file it lets others write; of qcow2 never.
      const lock = lockOf(file(pool, name))
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', lock, '64K'], { timeout_ms: HOLD_MS })
      const child = spawn('qemu-io', ['-f', 'qcow2', lock], { stdio: ['pipe', 'pipe', 'pipe'] })
      const late = setTimeout(() => child.kill('SIGKILL'), HELD_MOST_MS)
      const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
      void ended.then(() => clearTimeout(late))
      await new Promise<void>((resolve, reject) => {
        let said = ''
        const slow = setTimeout(() => reject(fail('timeout', `${pool.path}: the lock was not taken in time.`)), HOLD_MS)
        child.stderr.on('data', (part: Buffer) => (said += part.toString().slice(0, 1000)))
        child.once('error', (error: NodeJS.ErrnoException) =>
          reject(error.code === 'ENOENT' ? missingProgram('qemu-io') : error),
        )
        child.once('close', () =>
          reject(fail('tool_failed', `${pool.path}: the lock could not be taken: ${said.trim()}`)),
        )
        child.stdout.once('data', () => {
          clearTimeout(slow)
          resolve()
        })
        // It answers once the file is open, and locked.
        child.stdin.write('length\n')
      }).catch((error: unknown) => {
        child.kill('SIGKILL')
        throw error
      })
      return async () => {
        child.stdin.end()
        await ended
      }
    },

    async isFree(pool, name) {
      const { code, stderr } = await run('qemu-img', ['info', '-f', 'qcow2', lockOf(file(pool, name))], {
        timeout_ms: HOLD_MS,
        ok_codes: [1],
      })
      if (code === 0) return true
      if (/lock/.test(stderr)) return false
      throw fail('tool_failed', `${pool.path}: ${stderr.trim()}`)
    },
  }
}
