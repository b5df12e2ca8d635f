/** What `Imports` of @wadah/ports promises. See docs/images.md, "From elsewhere". */
import { constants } from 'node:fs'
import { lstat, open, rename, unlink } from 'node:fs/promises'
import { human } from '@wadah/api/admit'
import { fail, WadahError } from '@wadah/api/fault'
import type { ImportFormat } from '@wadah/api/schema/imports'
import type { Found, FoundDisk, ImportWork, Imports } from '@wadah/ports/imports'
import type { PoolDefinition } from '@wadah/ports/volumes'
import { checkTables, convert, type Source } from '../storage/qemu-img.ts'
import type { HostVolumes } from '../storage/volumes.ts'
import type { Confinement } from '../system/confine.ts'
import { errno, ignoreMissing } from '../system/files.ts'
import type { AddressRules } from './addresses.ts'
import { download, parseUrl } from './download.ts'
import { pack, readPacked } from './export.ts'
import { readDiskHead } from './heads.ts'
import { type Content, type DiskKind, identify, type Kind, type Packing } from './identify.ts'
import { readOva } from './ova.ts'
import { checkSum, receiveInto } from './receive.ts'
import { cleanStaging, listStaging, makeStaging, openContent, staging } from './staging.ts'

export type ImportsOptions = {
  volumes: HostVolumes
  confinement: Confinement
  rules: AddressRules
}

const UNPACK_TIMEOUT_MS = 24 * 3600 * 1000
const UNPACKERS: Record<Packing, string[]> = {
  gzip: ['gzip', '-dc'],
  // Also keeps a file that asks for an enormous dictionary from getting it.
  xz: ['xz', '-dc', '--memlimit-decompress=1GiB'],
  zstd: ['zstd', '-dcq', '--sparse', '--memory=1024MB'],
}

export function createImports(o: ImportsOptions): Imports {
  const { confinement, volumes } = o

  /** The file to look into: unpacked, if it was packed. */
  async function source(pool: PoolDefinition, id: string): Promise<string> {
    const { file, plain } = staging(pool, id)
    return (await lstat(plain).catch(ignoreMissing)) === undefined ? file : plain
  }

  async function unpack(
    pool: PoolDefinition,
    id: string,
    by: Packing,
    limit_bytes: number,
    work: ImportWork,
  ): Promise<void> {
    const { file, plain } = staging(pool, id)
    const part = `${plain}.part`
    const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants
    const [from, to] = [
      await open(file, constants.O_RDONLY | O_NOFOLLOW),
      await open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600),
    ]
    try {
      const [program = '', ...argv] = UNPACKERS[by]
      await confinement.use({ reads: [] }, (confined) =>
        confined.run(program, argv, {
          // By the limit on file size an archive that unpacks to far more than it may is stopped by the kernel.
          limits: { memory_bytes: 4 * 2 ** 30, cpu_s: 600 + limit_bytes / (10 * 2 ** 20), file_bytes: limit_bytes },
          timeout_ms: UNPACK_TIMEOUT_MS,
          signal: work.signal,
          stdin_fd: from.fd,
          stdout_fd: to.fd,
          // gzip: trailing garbage.
          ok_codes: by === 'gzip' ? [2] : [],
        }),
      )
      await to.datasync()
    } catch (error) {
      const { size } = await to.stat()
      await unlink(part).catch(() => {})
      if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') throw error
      if (size >= limit_bytes)
        throw fail(
          'too_large',
          `Unpacked it would be larger than ${human(limit_bytes)}, which is what may be taken in here.`,
          {
            remedy: 'use a pool with more room, or raise import_max_gib in wadahd.toml',
            cause: error,
          },
        )
      if (error.fault.detail.includes('No space left')) throw noRoom(pool, error)
      throw fail('image_corrupt', `The ${by} file is damaged or was cut off.`, { cause: error })
    } finally {
      await from.close()
      await to.close()
    }
    await rename(part, plain)
  }

  return {
    async receive(pool, id, data, options) {
      await makeStaging(pool, id)
      try {
        return await receiveInto(staging(pool, id).file, data, options)
      } catch (error) {
        await cleanStaging(pool, id)
        throw explain(pool, error)
      }
    },

    checkUrl(url) {
      parseUrl(url)
    },

    async download(pool, id, { url, sha256, limit_bytes }, work) {
      await makeStaging(pool, id)
      try {
        const done = await download({
          url,
          file: staging(pool, id).file,
          limit_bytes,
          rules: o.rules,
          signal: work.signal,
          log: work.log,
          progress: (bytes, total) => work.progress?.(total === undefined ? bytes / limit_bytes : bytes / total),
        })
        checkSum(done.sha256, sha256)
        return done
      } catch (error) {
        throw explain(pool, error)
      }
    },

    async inspect(pool, id, wanted, work) {
      const { file } = staging(pool, id)
      const first = await looked(file, identify)
      if (first.kind === 'packed' && (await source(pool, id)) === file) {
        work.log?.(`unpacking (${first.by})`)
        await unpack(pool, id, first.by, wanted.limit_bytes, work).catch((error: unknown) => {
          throw explain(pool, error)
        })
      }
      const path = await source(pool, id)
      const content = await openContent(path)
      try {
        const kind = first.kind === 'packed' ? await identify(content) : first
        const format = decide(kind, wanted.format)
        const found = format === 'ova' ? await readOva(content, work.signal, work.log) : await single(content, format)
        if (first.kind === 'packed') found.packed_by = first.by
        for (const [i, disk] of found.disks.entries()) {
          if (disk.size_bytes > wanted.disk_limit_bytes)
            throw fail(
              'too_large',
              `A disk in it has ${human(disk.size_bytes)}; at most ${human(wanted.disk_limit_bytes)} are taken.`,
              {
                remedy: 'raise import_max_gib in wadahd.toml',
              },
            )
          const from = sourceOf(path, disk)
          if (!from) continue
          const problem = await confinement.use({ reads: [path] }, (c) =>
            checkTables(c, from, disk.size_bytes, work.signal),
          )
          if (problem !== undefined) throw unusable(problem)
          work.progress?.((i + 1) / found.disks.length)
        }
        return found
      } finally {
        await content.close()
      }
    },

    async convert(pool, id, disk, volume, work) {
      const path = await source(pool, id)
      await volumes.fill(pool, volume, work, async (tmp, handle) => {
        const from = sourceOf(path, disk)
        if (!from) return
        const direct_io = { from: false, to: pool.direct_io && (await volumes.facts(pool)).direct_io }
        await confinement.use({ reads: [path], writes: handle }, (c) =>
          convert(
            c,
            { from: [from], to: { path: tmp, format: volume.format }, size_bytes: volume.size_bytes, direct_io },
            work.signal,
            (percent) => work.progress?.(Math.round((volume.size_bytes * percent) / 100), volume.size_bytes),
          ),
        )
      })
    },

    async pack(pool, id, request, work) {
      await makeStaging(pool, id)
      try {
        return await pack({ confinement, volumes, dir: staging(pool, id).out }, request, work)
      } catch (error) {
        throw explain(pool, error)
      }
    },

    read: (pool, id, signal) => readPacked(staging(pool, id).out, signal),
    clean: cleanStaging,
    list: listStaging,
  }
}

async function looked<T>(path: string, look: (content: Content) => Promise<T>): Promise<T> {
  const content = await openContent(path)
  try {
    return await look(content)
  } finally {
    await content.close()
  }
}

const unusable = (why: string): Error => fail('image_corrupt', `This disk can't be used: ${why}.`)

/** What was found, held against what was asked for. @throws WadahError `invalid`, `image_corrupt` */
export function decide(kind: Kind, wanted: ImportFormat | undefined): DiskKind | 'ova' {
  switch (kind.kind) {
    case 'refused':
      throw fail('image_corrupt', `This file ${kind.why}.`)
    case 'packed':
      throw fail('image_corrupt', 'This file was packed twice.', { remedy: 'unpack it first' })
    case 'unknown':
      if (wanted === 'raw') return 'raw'
      throw fail('image_corrupt', 'This file is no disk that is known here, and has no boot sector.', {
        remedy: 'if it is a raw disk all the same, say so: --format raw',
      })
    default: {
      const found = kind.kind === 'ova' ? 'ova' : kind.format
      if (wanted !== undefined && wanted !== found)
        throw fail('invalid', `The file is ${found}, and not ${wanted}.`, {
          field: '/format',
          remedy: `leave the format out, or say ${found}`,
        })
      return found
    }
  }
}

async function single(content: Content, format: DiskKind): Promise<Found> {
  const head = await readDiskHead(format, content)
  if (typeof head === 'string') throw unusable(head)
  return { format, disks: [{ format, size_bytes: head.size_bytes }], notes: head.notes }
}

function sourceOf(path: string, disk: FoundDisk): Source[0] | undefined {
  if (disk.format === 'empty') return undefined
  return { path, format: disk.format, ...(disk.part ? { part: disk.part } : {}) }
}

function noRoom(pool: PoolDefinition, cause: unknown): Error {
  return fail('no_room', `The file system of the pool at ${pool.path} is full. What was begun is removed.`, {
    remedy: `make room on it (df -h ${pool.path}), or use another pool`,
    cause,
  })
}

function explain(pool: PoolDefinition, error: unknown): unknown {
  const code = errno(error)
  return code === 'ENOSPC' || code === 'EDQUOT' ? noRoom(pool, error) : error
}
