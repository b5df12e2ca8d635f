/** Volumes of `dir` pools. What it promises is written in packages/ports/src/volumes.ts and docs/storage.md. */
import { sharedPools } from './shared.ts'
import { constants } from 'node:fs'
import { link, lstat, readdir, rename, unlink, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { human } from '@wadah/api/admit'
import { fail, WadahError } from '@wadah/api/fault'
import type { PoolDefinition, PoolFacts, VolumeDefinition, Volumes, VolumeWork } from '@wadah/ports/volumes'
import { createExclusive, errno, ignoreMissing, openRegular, syncDir } from '../system/files.ts'
import { run } from '../system/run.ts'
import { room } from './file-system.ts'
import { coalesce, keyed } from './order.ts'
import { fileName, folders, parseFileName, prepareFolders, probeDirectIo, removeFolders } from './pool-folder.ts'
import { HEAD_BYTES, headProblem, MAX_SIZE_BYTES, newQcow2, readHead, type Overlay, withBacking } from './qcow2.ts'
import { commitLayer, type Convert, convert, resize, type Source } from './qemu-img.ts'
import { serveDisk } from './serve.ts'
import { Confinement } from '../system/confine.ts'

export type VolumesOptions = {
  /** Folders of the host, inside of which pools may be made; from the configuration. */
  allowedDirs: readonly string[]
  /** Where qemu-img runs; default: without a user of its own. */
  confinement?: Confinement
  /** A folder of ours for the sockets through which disks are read; what lies in it at the start is rubbish. Default: the system's for temporary files. */
  sockets?: string
}
/** What only this machine's other rooms use. */
export type HostVolumes = Volumes & {
  /** Makes a volume that stands by itself and lets `fill` write it: the file has the head of an empty disk of this size. Whole or not at all. */
  fill(
    pool: PoolDefinition,
    volume: VolumeDefinition,
    work: VolumeWork,
    fill: (tmp: string, handle: FileHandle) => Promise<void>,
  ): Promise<void>
  /** A raw volume that `write` fills, at most so large; its length is what came, rounded up to whole sectors. Whole or not at all. */
  capture(
    pool: PoolDefinition,
    volume: { id: string; format: 'raw' },
    most_bytes: number,
    write: (handle: FileHandle) => Promise<void>,
  ): Promise<number>
  /** Merges a layer that no QEMU has open into the one below (`chain[1]`), which grows if it must. Both then belong to `uid`. */
  merge(pool: PoolDefinition, chain: VolumeDefinition[], uid: number, work: VolumeWork): Promise<void>
  /** Puts a layer that no QEMU has open on another base, which holds the same as the one it stood on. */
  rebase(pool: PoolDefinition, volume: VolumeDefinition, base: VolumeDefinition): Promise<void>
  /** What was written to its file, by whomever, lies on the disk. */
  flush(pool: PoolDefinition, volume: VolumeDefinition): Promise<void>
  /** Puts aside what is the volume's file no more: it lies where half-made ones do, and goes with `delete`. A QEMU may have it open. */
  retire(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): Promise<void>
  isRetired(pool: PoolDefinition, volume: { id: string; format: 'qcow2' | 'raw' }): Promise<boolean>
  /** The files a volume consists of, topmost first, each with its head checked. */
  chain(pool: PoolDefinition, volume: VolumeDefinition): Promise<Source>
}
type Name = { id: string; format: 'qcow2' | 'raw' }

/** Only its owner while it is made; `grant` says who may after. */
const FILE_MODE = 0o600
/** How deep layers may stand on one another; no VM gets more snapshots in a row than leave room for an image below. */
const MAX_CHAIN = 40
const SECTOR = 512
const BLOCK = 4096
/** A large layer may take long; what stands still is ended by the job's own signal. */
const COPY_TIMEOUT_MS = 24 * 3600 * 1000

export function createVolumes(options: VolumesOptions): HostVolumes {
  const confinement = options.confinement ?? new Confinement(null)
  const uid = process.geteuid?.() ?? 0
  const alone = keyed()
  const durable = coalesce(syncDir)
  const directIo = new Map<string, boolean>()

  const path = (pool: PoolDefinition, volume: Name): string => join(folders(pool).volumes, fileName(volume))
  const tmpPath = (pool: PoolDefinition, volume: Name): string => join(folders(pool).tmp, fileName(volume))

  async function facts(pool: PoolDefinition): Promise<PoolFacts> {
    const { root } = folders(pool)
    const seen = await room(root).catch((error: unknown) => {
      throw poolAway(pool, error)
    })
    let direct = directIo.get(root)
    if (direct === undefined) {
      direct = await probeDirectIo(pool)
      directIo.set(root, direct)
    }
    return { ...seen, direct_io: direct }
  }
  const usesDirectIo = async (pool: PoolDefinition): Promise<boolean> => pool.direct_io && (await facts(pool)).direct_io

  /** Makes a file in tmp/, fills it, and only then gives it its name: a crash leaves the volume whole or not at all. */
  async function publish(
    pool: PoolDefinition,
    volume: Name,
    wanted_bytes: number,
    fill: (tmp: string, handle: FileHandle) => Promise<void>,
  ): Promise<void> {
    const tmp = tmpPath(pool, volume)
    try {
      // What an interrupted try left. Its qemu-img, should it still run, writes into a file without a name.
      await unlink(tmp).catch(ignoreMissing)
      const handle = await createExclusive(tmp, FILE_MODE)
      try {
        await fill(tmp, handle)
        await handle.datasync()
      } finally {
        await handle.close()
      }
      await name(tmp, path(pool, volume))
    } catch (error) {
      await unlink(tmp).catch(() => {})
      throw await explain(pool, error, wanted_bytes)
    }
    await durable(folders(pool).volumes)
  }

  /** A copy of the topmost layer alone: the file as it is, on the same base. Its guest must not be writing. */
  async function copyLayer(
    pool: PoolDefinition,
    from: { pool: PoolDefinition; volume: VolumeDefinition },
    to: VolumeDefinition,
    work: VolumeWork,
  ): Promise<void> {
    const source = from.volume
    if (source.base === undefined || from.pool.path !== pool.path || source.format !== to.format) {
      throw fail('invalid', 'Only a linked clone can be copied by its own layer, in its own pool and format.')
    }
    if (to.size_bytes !== source.size_bytes) throw fail('invalid', 'A copy of a layer has the size of its source.')
    if (await isThere(pool, { ...to, base: source.base })) return await settle(pool, to)
    await check(pool, source).catch(missing(source))
    const least = await allocated(from.pool, source)
    if (least > (await facts(pool)).free_bytes) throw await noRoom(pool, least)
    work.log?.(`copying the layer of ${source.id} to ${to.id}`)
    await publish(pool, to, least, async (tmp) => {
      const argv = ['--sparse=always', '--reflink=auto', '--', path(pool, source), tmp]
      const options = { timeout_ms: COPY_TIMEOUT_MS, signal: work.signal, die_with_us: true }
      await run('cp', argv, options).catch((error: unknown) => {
        const full = error instanceof WadahError && error.fault.detail.includes('No space left on device')
        throw full ? Object.assign(new Error('no space'), { code: 'ENOSPC', cause: error }) : error
      })
    })
  }

  /** It is there already. A crash between giving it its name and taking away the temporary one left both. */
  async function settle(pool: PoolDefinition, volume: Name): Promise<void> {
    await unlink(tmpPath(pool, volume)).catch(ignoreMissing)
    await durable(folders(pool).volumes)
  }

  async function explain(pool: PoolDefinition, error: unknown, wanted_bytes: number): Promise<unknown> {
    const code = errno(error)
    if (code === 'ENOSPC' || code === 'EDQUOT') return await noRoom(pool, wanted_bytes, error)
    if (code === 'ENOENT') return poolAway(pool, error)
    if (code === 'EEXIST')
      return fail('conflict', 'A volume of this name appeared meanwhile; it was left alone.', { cause: error })
    if (code === 'EFBIG')
      return fail('no_room', `The file system of ${pool.path} can't hold a file of ${human(wanted_bytes)}.`, {
        cause: error,
      })
    return error
  }

  async function noRoom(pool: PoolDefinition, wanted_bytes: number, cause?: unknown): Promise<Error> {
    const seen = await room(folders(pool).root).catch(() => undefined)
    const left = seen === undefined ? '' : `: ${human(seen.free_bytes)} of ${human(seen.capacity_bytes)} are free`
    return fail(
      'no_room',
      `The file system of the pool at ${pool.path} is full${left}, and up to ${human(wanted_bytes)} were to be written. What was begun has been removed.`,
      {
        remedy: `make room on it (df -h ${pool.path}), or use another pool`,
        cause,
      },
    )
  }

  /** True when the volume is there and is what is recorded; a fault when another thing has its name. */
  async function isThere(pool: PoolDefinition, volume: VolumeDefinition): Promise<boolean> {
    const handle = await openRegular(path(pool, volume)).catch(ignoreMissing)
    if (handle === undefined) return false
    await handle.close()
    await check(pool, volume)
    return true
  }

  /** Throws `image_corrupt` unless the file's head says what is recorded; `not_found` when there is none. */
  async function check(pool: PoolDefinition, volume: VolumeDefinition): Promise<void> {
    const problem = await fileProblem(path(pool, volume), volume)
    if (problem !== undefined) {
      throw fail('image_corrupt', `The volume ${volume.id} can't be used: ${problem}.`, {
        remedy: `qemu-img info -U -f ${volume.format} ${path(pool, volume)}`,
      })
    }
  }

  /** The volume and everything it stands on. Names below the first come from files of root's, and must still be ours. */
  async function checkChain(pool: PoolDefinition, volume: VolumeDefinition): Promise<Source> {
    await check(pool, volume)
    const chain: Source = [{ path: path(pool, volume), format: volume.format }]
    let next: Name | undefined = volume.base
    for (let depth = 0; next !== undefined; depth += 1) {
      const at: Name = next
      next = undefined
      chain.push({ path: path(pool, at), format: at.format })
      if (at.format === 'raw') return chain
      const head = readHead(await firstBytes(path(pool, at)).catch(missing(at)))
      const backing: Overlay | undefined = typeof head === 'string' ? undefined : (head.backing as Overlay | undefined)
      const below = backing === undefined ? undefined : parseFileName(backing.file)
      const problem =
        typeof head === 'string'
          ? head
          : depth >= MAX_CHAIN
            ? `more than ${MAX_CHAIN} volumes stand on one another`
            : backing !== undefined && (below === undefined || below.format !== backing.format)
              ? 'it is based on something that is no volume'
              : headProblem(head, { size_bytes: head.size_bytes, backing })
      if (problem !== undefined)
        throw fail('image_corrupt', `The volume ${at.id}, on which ${volume.id} is based, can't be used: ${problem}.`)
      next = below
    }
    return chain
  }

  async function fillEmpty(handle: FileHandle, volume: VolumeDefinition, backing?: Overlay): Promise<void> {
    if (volume.format === 'raw') {
      await handle.truncate(volume.size_bytes)
      return
    }
    const layout = newQcow2(volume.size_bytes, backing)
    for (const { offset, data } of layout.writes) await writeAll(handle, data, offset)
    await handle.truncate(layout.file_bytes)
  }

  async function grantTo(file: string, volume: Name, to: { uid: number } | 'read-only'): Promise<void> {
    const handle = await openRegular(file).catch(missing(volume))
    try {
      const stat = await handle.stat()
      // Without root there is one user, of daemon and VMs alike.
      const owner = to === 'read-only' || uid !== 0 ? uid : to.uid
      const mode = to === 'read-only' ? 0o444 : FILE_MODE
      if (stat.uid === owner && (stat.mode & 0o7777) === mode) return
      // Ours in between: whoever owned it could otherwise widen the mode again before the owner changes.
      if (stat.uid !== uid && uid === 0) await handle.chown(uid, 0)
      await handle.chmod(mode)
      if (owner !== uid) await handle.chown(owner, uid === 0 ? 0 : stat.gid)
      // Of a disk it is done again at each start; of what it stands on never.
      if (to === 'read-only') await handle.sync()
    } finally {
      await handle.close()
    }
  }

  async function removeTmp(pool: PoolDefinition, volume: Name): Promise<void> {
    await unlink(tmpPath(pool, volume)).catch(ignoreMissing)
  }

  return {
    path,
    facts,

    shared: sharedPools(options.allowedDirs, uid),

    async openPool(pool) {
      await prepareFolders(pool, options.allowedDirs, uid)
      directIo.delete(folders(pool).root)
      return await facts(pool)
    },

    async closePool(pool) {
      directIo.delete(folders(pool).root)
      await removeFolders(pool)
    },

    async create(pool, volume, work) {
      checkSize(volume)
      await alone(fileName(volume), async () => {
        stopIfAborted(work)
        if (!(await isThere(pool, volume))) {
          await publish(pool, volume, volume.size_bytes, async (_tmp, handle) => await fillEmpty(handle, volume))
        } else await settle(pool, volume)
      })
    },

    async clone(pool, from, to, how, work) {
      checkSize(to)
      const source = from.volume
      if (to.size_bytes < source.size_bytes) {
        throw fail(
          'invalid',
          `A clone can't be smaller than what it is made from: ${human(source.size_bytes)} at least.`,
          { field: '/size_bytes' },
        )
      }
      await alone(fileName(to), async () => {
        stopIfAborted(work)
        if (how === 'linked') {
          if (from.pool.path !== pool.path)
            throw fail('invalid', 'A linked clone lies in the pool of what it is based on; use a full clone.', {
              field: '/pool',
            })
          if (to.format !== 'qcow2') throw fail('invalid', 'A linked clone has the format qcow2.', { field: '/format' })
          const linked: VolumeDefinition = { ...to, base: { id: source.id, format: source.format } }
          if (await isThere(pool, linked)) return await settle(pool, to)
          await check(pool, source).catch(missing(source))
          const backing: Overlay = { file: fileName(source), format: source.format }
          await publish(pool, to, 1 << 20, async (_tmp, handle) => await fillEmpty(handle, to, backing))
          return
        }
        if (how === 'delta') return await copyLayer(pool, from, to, work)
        const { base: _, ...alonestanding } = to
        if (await isThere(pool, alonestanding)) return await settle(pool, to)
        const chain = await checkChain(from.pool, source).catch(missing(source))
        const least = await allocated(from.pool, source)
        if (least > (await facts(pool)).free_bytes) throw await noRoom(pool, least)
        const direct_io = { from: await usesDirectIo(from.pool), to: await usesDirectIo(pool) }
        work.log?.(`copying ${source.id} (${human(source.size_bytes)}) to ${to.id}`)
        await publish(pool, to, source.size_bytes, async (tmp, handle) => {
          await fillEmpty(handle, alonestanding)
          const ends = { from: chain, to: { path: tmp, format: to.format }, size_bytes: to.size_bytes, direct_io }
          await confinement.use({ reads: chain.map((c) => c.path), writes: handle }, (confined) =>
            convert(confined, ends, work.signal, (percent) =>
              work.progress?.(Math.round((source.size_bytes * percent) / 100), source.size_bytes),
            ),
          )
          await mustFit(tmp, alonestanding)
        })
      })
    },

    async serve(pool, volume, signal, as) {
      const common = { confinement, size_bytes: volume.size_bytes, sockets: options.sockets, signal }
      if (as === 'layer') {
        await check(pool, volume).catch(missing(volume))
        // Its file may end anywhere, too.
        return await serveDisk({ ...common, chain: [{ path: path(pool, volume), format: 'raw' }], direct_io: false })
      }
      const chain = await checkChain(pool, volume).catch(missing(volume))
      return await serveDisk({ ...common, chain, direct_io: inBlocks(volume) && (await usesDirectIo(pool)) })
    },

    async receive(pool, volume, from, work) {
      checkSize(volume)
      const { base: _, ...alonestanding } = volume
      const isLayer = from.as === 'layer'
      await alone(fileName(volume), async () => {
        stopIfAborted(work)
        if (from.bytes > (await facts(pool)).free_bytes) throw await noRoom(pool, from.bytes)
        const direct_io = { from: false, to: !isLayer && inBlocks(volume) && (await usesDirectIo(pool)) }
        await publish(pool, volume, volume.size_bytes, async (tmp, handle) => {
          if (!isLayer) await fillEmpty(handle, alonestanding)
          const ends: Convert = {
            from: { stream: from.stream },
            // Of a layer the bytes of the file come: it is as long as they are.
            to: isLayer ? { path: tmp, format: 'raw', fresh: { options: [] } } : { path: tmp, format: volume.format },
            size_bytes: volume.size_bytes,
            direct_io,
            bytes_per_s: from.bytes_per_s,
          }
          await confinement.use(
            { reads: [], writes: handle },
            (confined) =>
              convert(confined, ends, work.signal, (percent) =>
                work.progress?.(Math.round((volume.size_bytes * percent) / 100), volume.size_bytes),
              ),
            work.signal,
          )
          await mustFit(tmp, isLayer ? volume : alonestanding)
        })
      })
    },

    async grow(pool, volume, to_bytes, work) {
      const grown = { ...volume, size_bytes: to_bytes }
      checkSize(grown)
      await alone(fileName(volume), async () => {
        stopIfAborted(work)
        const file = path(pool, volume)
        // An earlier try did it, and could not say so any more.
        if ((await fileProblem(file, grown).catch(missing(volume))) === undefined) return
        const chain = await checkChain(pool, volume).catch(missing(volume))
        if (to_bytes < volume.size_bytes) throw fail('invalid', 'A volume can only grow.', { field: '/size_mib' })
        work.log?.(`${volume.id}: ${human(volume.size_bytes)} to ${human(to_bytes)}`)
        try {
          if (volume.format === 'qcow2') {
            // As the user whose file it is: what a guest wrote into it gains no more than its own QEMU has.
            const owner = (await lstat(file)).uid
            return await resize(confinement.as(owner), chain, to_bytes, work.signal)
          }
          const handle = await openRegular(file, constants.O_RDWR)
          try {
            await handle.truncate(to_bytes)
            await handle.datasync()
          } finally {
            await handle.close()
          }
        } catch (error) {
          throw await explain(pool, error, to_bytes - volume.size_bytes)
        }
      })
    },

    async fill(pool, volume, work, fill) {
      checkSize(volume)
      const { base: _, ...alonestanding } = volume
      await alone(fileName(volume), async () => {
        stopIfAborted(work)
        if (await isThere(pool, alonestanding)) return await settle(pool, volume)
        await publish(pool, volume, volume.size_bytes, async (tmp, handle) => {
          await fillEmpty(handle, alonestanding)
          await fill(tmp, handle)
          await mustFit(tmp, alonestanding)
        })
      })
    },

    async capture(pool, volume, most_bytes, write) {
      return await alone(fileName(volume), async () => {
        await unlink(path(pool, volume)).catch(ignoreMissing)
        let bytes = 0
        await publish(pool, volume, most_bytes, async (_tmp, handle) => {
          await write(handle)
          bytes = Math.ceil((await handle.stat()).size / SECTOR) * SECTOR
          await handle.truncate(bytes)
        })
        return bytes
      })
    },

    async merge(pool, chain, owner, work) {
      const [child, parent] = chain
      if (!child || !parent) throw fail('internal', 'a merge needs two layers')
      await alone(fileName(parent), async () => {
        stopIfAborted(work)
        const layers = await checkChain(pool, child).catch(missing(child))
        work.log?.(`merging ${child.id} into ${parent.id}`)
        // As the user whose disks these are: what a guest wrote into them gains no more than its own QEMU has.
        for (const layer of [child, parent]) await grantTo(path(pool, layer), layer, { uid: owner })
        try {
          await commitLayer(confinement.as(owner), layers, child.size_bytes, work.signal)
        } catch (error) {
          if (errno(error) === 'ENOSPC')
            throw fail('no_room', `The pool at ${pool.path} is too full to merge a layer. Nothing is lost.`, {
              remedy: `make room on it (df -h ${pool.path})`,
              cause: error,
            })
          throw await explain(pool, error, child.size_bytes)
        }
      })
    },

    async rebase(pool, volume, base) {
      const handle = await openRegular(path(pool, volume), constants.O_RDWR).catch(missing(volume))
      try {
        const { buffer, bytesRead } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0)
        const head = withBacking(buffer.subarray(0, bytesRead), { file: fileName(base), format: base.format })
        await writeAll(handle, head, 0)
        await handle.datasync()
      } finally {
        await handle.close()
      }
    },

    async flush(pool, volume) {
      const handle = await openRegular(path(pool, volume)).catch(missing(volume))
      await handle.datasync().finally(() => handle.close())
    },

    async retire(pool, volume) {
      await alone(fileName(volume), async () => {
        const aside = await rename(path(pool, volume), tmpPath(pool, volume)).then(() => true, ignoreMissing)
        if (aside !== true && !(await isAside(pool, volume))) throw poolAway(pool, undefined)
        for (const folder of [folders(pool).tmp, folders(pool).volumes]) await durable(folder)
      })
    },

    isRetired: isAside,

    chain: (pool, volume) => checkChain(pool, volume).catch(missing(volume)),

    async adopt(pool, file, volume, work) {
      checkSize(volume)
      const { base: _, ...alonestanding } = volume
      await alone(fileName(volume), async () => {
        stopIfAborted(work)
        if (await isThere(pool, alonestanding)) {
          await unlink(file).catch(ignoreMissing)
          return await settle(pool, volume)
        }
        const problem = await fileProblem(file, alonestanding).catch((error: unknown) => {
          throw fail('image_corrupt', `The file ${file} can't become a volume (${errno(error)}).`, { cause: error })
        })
        if (problem !== undefined) throw fail('image_corrupt', `The file ${file} can't become a volume: ${problem}.`)
        const tmp = tmpPath(pool, volume)
        try {
          await removeTmp(pool, volume)
          await moveOrCopy(file, tmp, work)
          const handle = await openRegular(tmp, constants.O_RDWR)
          try {
            if (uid === 0) await handle.chown(0, 0)
            await handle.chmod(FILE_MODE)
            await handle.datasync()
          } finally {
            await handle.close()
          }
          await name(tmp, path(pool, volume))
        } catch (error) {
          await unlink(tmp).catch(() => {})
          throw await explain(pool, error, volume.size_bytes)
        }
        await durable(folders(pool).volumes)
        await unlink(file).catch(ignoreMissing)
      })
    },

    grant: (pool, volume, to) => grantTo(path(pool, volume), volume, to),

    async delete(pool, volume) {
      await alone(fileName(volume), async () => {
        await removeTmp(pool, volume)
        const was = await unlink(path(pool, volume)).then(() => true, ignoreMissing)
        // Not there, or its whole file system is not there: only the first is gone for good.
        if (was !== true && !(await lstat(folders(pool).volumes).catch(ignoreMissing))) throw poolAway(pool, undefined)
        if (was === true) await durable(folders(pool).volumes)
      })
    },

    async exists(pool, volume) {
      const stat = await lstat(path(pool, volume)).catch(ignoreMissing)
      return stat?.isFile() ?? false
    },

    async allocatedBytes(pool, volume) {
      return await allocated(pool, volume)
    },

    async list(pool) {
      const { volumes, tmp } = folders(pool)
      const named = async (dir: string, temporary: boolean) =>
        (
          await readdir(dir).catch((error: unknown) => {
            throw poolAway(pool, error)
          })
        ).flatMap((file) => {
          const volume = parseFileName(file)
          return volume === undefined ? [] : [{ ...volume, temporary }]
        })
      return [...(await named(volumes, false)), ...(await named(tmp, true))]
    },
  }

  async function isAside(pool: PoolDefinition, volume: Name): Promise<boolean> {
    const there = async (file: string) => (await lstat(file).catch(ignoreMissing)) !== undefined
    return (await there(tmpPath(pool, volume))) && !(await there(path(pool, volume)))
  }

  async function allocated(pool: PoolDefinition, volume: Name): Promise<number> {
    const stat = await lstat(path(pool, volume)).catch(missing(volume))
    return stat.blocks * 512
  }
}

/** Direct I/O would round up what ends in the middle of a block, as saved RAM does. */
const inBlocks = ({ size_bytes }: VolumeDefinition): boolean => size_bytes % BLOCK === 0

/** What a program wrote that read a stranger's disk is looked at like a stranger's. */
async function mustFit(file: string, volume: VolumeDefinition): Promise<void> {
  const problem = await fileProblem(file, volume)
  if (problem !== undefined) throw fail('image_corrupt', `The copy can't become a volume: ${problem}.`)
}

function stopIfAborted(work: VolumeWork): void {
  if (work.signal.aborted) throw fail('cancelled', 'Cancelled before anything was done.', { cause: work.signal.reason })
}

function checkSize(volume: VolumeDefinition): void {
  const { size_bytes } = volume
  if (!Number.isSafeInteger(size_bytes) || size_bytes <= 0 || size_bytes % 512 !== 0 || size_bytes > MAX_SIZE_BYTES) {
    throw fail(
      'invalid',
      `A volume can't have ${size_bytes} bytes: a multiple of 512, up to ${human(MAX_SIZE_BYTES)}, is right.`,
      { field: '/size_bytes' },
    )
  }
}

function poolAway(pool: PoolDefinition, error: unknown): Error {
  return fail(
    'unavailable',
    `The pool at ${pool.path} can't be reached (${errno(error) || 'its folder is not there'}).`,
    {
      remedy: `is its file system mounted? ls ${pool.path}`,
      cause: error,
    },
  )
}

/** For `.catch`: a missing file becomes `not_found`. */
function missing(volume: Name): (error: unknown) => never {
  return (error) => {
    if (errno(error) !== 'ENOENT') throw error
    throw fail('not_found', `The file of volume ${volume.id} is not there.`, { cause: error })
  }
}

async function firstBytes(file: string): Promise<Uint8Array> {
  const handle = await openRegular(file)
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await handle.close()
  }
}

/** What is wrong with a file for what is recorded, or undefined. */
async function fileProblem(file: string, volume: VolumeDefinition): Promise<string | undefined> {
  if (volume.format === 'raw') {
    const handle = await openRegular(file)
    try {
      const { size } = await handle.stat()
      return size === volume.size_bytes ? undefined : `it has ${size} bytes and should have ${volume.size_bytes}`
    } finally {
      await handle.close()
    }
  }
  const head = readHead(await firstBytes(file))
  if (typeof head === 'string') return head
  const { base } = volume
  return headProblem(head, {
    size_bytes: volume.size_bytes,
    backing: base === undefined ? undefined : { file: fileName(base), format: base.format },
  })
}

async function writeAll(handle: FileHandle, data: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < data.length; ) {
    done += (await handle.write(data, done, data.length - done, offset + done)).bytesWritten
  }
}

/** Gives a finished file its name without ever replacing another. Where there are no hard links (FAT, some FUSE), rename after a look. */
async function name(tmp: string, path: string): Promise<void> {
  try {
    await link(tmp, path)
  } catch (error) {
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(errno(error))) throw error
    if ((await lstat(path).catch(ignoreMissing)) !== undefined)
      throw Object.assign(new Error('exists'), { code: 'EEXIST' })
    await rename(tmp, path)
    return
  }
  await unlink(tmp)
}

async function moveOrCopy(file: string, tmp: string, work: VolumeWork): Promise<void> {
  try {
    await rename(file, tmp)
    return
  } catch (error) {
    if (errno(error) !== 'EXDEV') throw error
  }
  work.log?.(`copying ${file} into the pool, which is another file system`)
  try {
    await run('cp', ['--sparse=always', '--reflink=auto', '--no-dereference', '--', file, tmp], {
      timeout_ms: 24 * 3600 * 1000,
      signal: work.signal,
      die_with_us: true,
    })
  } catch (error) {
    if (error instanceof Error && error.message.includes('No space left on device'))
      throw Object.assign(new Error('no space'), { code: 'ENOSPC', cause: error })
    throw error
  }
}
