/**
 * Files of a shared pool, written and read as QEMU does with a disk: past this host's page cache where the pool can (`cache.direct`). What a host
 * reads there of what another has just written is what a guest finds once its VM has moved.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readFile } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import type { PoolDefinition, SharedPools } from '@wadah/ports/volumes'
import { errno } from '../system/files.ts'
import { run } from '../system/run.ts'
import { mountedAt } from './file-system.ts'

const BLOCK = 4096
const LOOK_MS = 10_000
/** Files that nobody lets go of are closed by themselves. */
const KEPT_MOST_MS = 60_000

/** O_DIRECT wants memory that begins at a page, which Node has nowhere else: the engine protects this kind of memory page by page. */
declare const WebAssembly: { Memory: new (o: { initial: number }) => { buffer: ArrayBuffer } }

type Trial = Pick<SharedPools, 'writeBlocks' | 'look' | 'letGo'>

/** @param file the path of a file by its name */
export function trialFiles(file: (pool: PoolDefinition, name: string) => string): Trial {
  const kept = new Map<string, { handle: FileHandle; late: NodeJS.Timeout }>()
  const { O_RDONLY, O_RDWR, O_NOFOLLOW, O_DIRECT } = constants
  const how = (pool: PoolDefinition, flags: number) => flags | O_NOFOLLOW | (pool.direct_io ? O_DIRECT : 0)
  const memory = () => Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, BLOCK)

  async function read(handle: FileHandle, blocks: readonly number[]): Promise<string[]> {
    const into = memory()
    const texts: string[] = []
    for (const block of blocks) {
      const { bytesRead } = await handle.read(into, 0, BLOCK, block * BLOCK)
      texts.push(into.toString('utf8', 0, bytesRead).trimEnd())
    }
    return texts
  }

  async function letGo(path: string): Promise<void> {
    const held = kept.get(path)
    kept.delete(path)
    clearTimeout(held?.late)
    await held?.handle.close()
  }

  async function keep(pool: PoolDefinition, path: string): Promise<FileHandle> {
    const held = kept.get(path)
    if (held) return held.handle
    // As QEMU opens a disk that it writes: there are file systems that read otherwise then.
    const handle = await open(path, how(pool, O_RDWR))
    const late = setTimeout(() => void letGo(path).catch(() => undefined), KEPT_MOST_MS)
    late.unref()
    kept.set(path, { handle, late })
    return handle
  }

  const away = (pool: PoolDefinition) => (error: unknown) => {
    if (errno(error) === '') throw error
    throw fail('tool_failed', `${pool.path} can't be tried as QEMU uses it (${errno(error)}).`, { cause: error })
  }

  return {
    async writeBlocks(pool, name, blocks, text) {
      const work = async () => {
        await using handle = await open(file(pool, name), how(pool, O_RDWR))
        const from = memory()
        from.fill(' ').write(text)
        for (const block of blocks) await handle.write(from, 0, BLOCK, block * BLOCK)
        await handle.sync()
      }
      await work().catch(away(pool))
    },

    async look(pool, name, blocks) {
      const path = file(pool, name)
      const work = async () => {
        // Where it reads through the page cache QEMU drops what is in it when it takes a disk over.
        if (!pool.direct_io)
          await run('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none'], { timeout_ms: LOOK_MS })
        const held = await keep(pool, path)
        await using handle = await open(path, how(pool, O_RDONLY))
        // First: caches of attributes that time lets go of are caught only by who is quick. Of the file just opened, for NFS makes sure of
        // it then only; QEMU asks in a way (lseek) in which NFS makes sure of it always, and FUSE does not.
        const length = (await handle.stat()).size / BLOCK
        const seen = { length, kept: await read(held, blocks), anew: await read(handle, blocks) }
        // Again, for a cache that holds it: reading makes the kernel ask anew for times, and so for all of what fstat tells.
        await handle.stat()
        return seen
      }
      const seen = await work().catch(away(pool))
      return { ...seen, mounted: mountedAt(await readFile('/proc/self/mountinfo', 'utf8'), path) }
    },

    async letGo(pool, name) {
      await letGo(file(pool, name))
    },
  }
}
