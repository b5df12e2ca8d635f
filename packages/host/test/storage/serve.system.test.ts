/** A disk read by another host: served by qemu-nbd, copied by qemu-img, both confined, over a stream that the test holds. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, lstat, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { newId } from '@wadah/api/ids'
import { createVolumes } from '@wadah/host/storage/volumes'
import { Confinement } from '@wadah/host/system/confine'
import type { PoolDefinition, ServedVolume, VolumeDefinition } from '@wadah/ports/volumes'

const exec = promisify(execFile)
const MiB = 2 ** 20
const FIRST_UID = 232_000
let dir = ''
let [here, there]: PoolDefinition[] = []
let volumes: ReturnType<typeof createVolumes>
const mounts: string[] = []
const signal = new AbortController().signal

const io = (file: string, ...commands: string[]) =>
  exec('qemu-io', ['-f', 'qcow2', ...commands.flatMap((c) => ['-c', c]), file])
const path = (pool: PoolDefinition | undefined, v: VolumeDefinition) => volumes.path(pool as PoolDefinition, v)
const tmp = (pool: PoolDefinition | undefined) => readdir(join(pool?.path ?? '', 'wadah/tmp'))
/** Programs of those that read disks. */
const programs = async () =>
  (await exec('ps', ['-eo', 'args'])).stdout.split('\n').filter((line) => line.includes('qemu-') && line.includes(dir))
const owner = async (file: string) => {
  const { uid, gid, mode } = await lstat(file)
  return [uid, gid, mode & 0o7777]
}

async function poolIn(path: string): Promise<PoolDefinition> {
  await mkdir(path, { recursive: true })
  const pool = { id: newId('pool', randomBytes), path, direct_io: true }
  await volumes.openPool(pool)
  return pool
}
/** A clone that has written over a part of what it stands on; most of both is holes. */
async function disk(): Promise<VolumeDefinition> {
  const pool = here as PoolDefinition
  const base = { id: newId('volume', randomBytes), pool: pool.id, format: 'qcow2' as const, size_bytes: 64 * MiB }
  await volumes.create(pool, base, { signal })
  await io(path(pool, base), 'write -P 0x11 0 8M', 'write -P 0x22 20M 4M')
  await volumes.grant(pool, base, 'read-only')
  const top = {
    ...base,
    id: newId('volume', randomBytes),
    size_bytes: 96 * MiB,
    base: { id: base.id, format: base.format },
  }
  await volumes.clone(pool, { pool, volume: base }, top, 'linked', { signal })
  await io(path(pool, top), 'write -P 0x33 4M 6M', 'write -z 20M 1M', 'write -P 0x44 90M 1M')
  await volumes.grant(pool, top, { uid: FIRST_UID + 500 })
  return top
}
const receive = (
  v: VolumeDefinition,
  stream: ServedVolume,
  more: { bytes?: number; bytes_per_s?: number; signal?: AbortSignal } = {},
) => {
  const { signal: limit = signal, ...rest } = more
  return volumes.receive(there as PoolDefinition, v, { stream, bytes: 0, ...rest }, { signal: limit })
}

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-serve-'))
  await chmod(dir, 0o711)
  const confinement = new Confinement(process.getuid?.() === 0 ? FIRST_UID : null, join(dir, 'lent'))
  volumes = createVolumes({ allowedDirs: [dir], confinement, sockets: join(dir, 'nbd') })
  here = await poolIn(join(dir, 'a'))
  there = await poolIn(join(dir, 'b'))
})
afterEach(async () => {
  expect(await programs()).toEqual([])
  expect(await readdir(join(dir, 'nbd')).catch(() => [])).toEqual([])
  expect(await readdir(join(dir, 'lent')).catch(() => [])).toEqual([])
  for (const at of mounts.splice(0)) await exec('umount', ['-l', at])
  await rm(dir, { recursive: true, force: true })
})

test.each(['qcow2', 'raw'] as const)('what the guest would read is there, as %s, and as sparse', async (format) => {
  const from = await disk()
  const file = path(here, from)
  const before = await owner(file)
  const served = await volumes.serve(here as PoolDefinition, from, signal)
  const { base: _, ...to } = { ...from, pool: there?.id ?? '', format }
  const seen: number[] = []
  await volumes.receive(
    there as PoolDefinition,
    to,
    { stream: served, bytes: MiB },
    {
      signal,
      progress: (done, total) => seen.push(done / total),
    },
  )
  served.close()
  await served.ended
  await exec('qemu-img', ['compare', '-f', 'qcow2', '-F', format, file, path(there, to)])
  expect(await volumes.allocatedBytes(there as PoolDefinition, to)).toBeLessThan(24 * MiB)
  expect(seen.at(-1)).toBe(1)
  expect(seen).toEqual(seen.toSorted((a, b) => a - b))
  expect(await owner(file)).toEqual(before)
  expect(await tmp(there)).toEqual([])
  // What has its name is not replaced.
  const again = await volumes.serve(here as PoolDefinition, from, signal)
  await expect(receive(to, again)).rejects.toMatchObject({ fault: { code: 'conflict' } })
  again.close()
  await again.ended
})

test('a layer comes as it is, on the base it stood on, which is not copied', async () => {
  const from = await disk()
  const file = path(here, from)
  const served = await volumes.serve(here as PoolDefinition, from, signal, 'layer')
  const to = { ...from, pool: there?.id ?? '' }
  const taken = await volumes.allocatedBytes(here as PoolDefinition, from)
  await volumes.receive(there as PoolDefinition, to, { stream: served, bytes: taken, as: 'layer' }, { signal })
  served.close()
  await served.ended
  expect((await exec('cmp', [file, path(there, to)])).stdout).toBe('')
  expect(await volumes.allocatedBytes(there as PoolDefinition, to)).toBeLessThan(taken + MiB)
  expect(await tmp(there)).toEqual([])
  // With its base beside it it reads the same.
  const base = { ...from, ...(from.base as { id: string; format: 'qcow2' }), size_bytes: 64 * MiB }
  await exec('cp', [path(here, base), path(there, base)])
  await exec('qemu-img', ['compare', '-f', 'qcow2', '-F', 'qcow2', file, path(there, to)])
})

test('saved RAM, which ends in the middle of a block, comes as long as it is', async () => {
  const ram = {
    id: newId('volume', randomBytes),
    pool: here?.id ?? '',
    format: 'raw' as const,
    size_bytes: 3 * 4096 + 512,
  }
  await volumes.create(here as PoolDefinition, ram, { signal })
  await exec('dd', ['if=/dev/urandom', `of=${path(here, ram)}`, 'bs=512', 'count=25', 'conv=notrunc'])
  const served = await volumes.serve(here as PoolDefinition, ram, signal)
  await receive({ ...ram, pool: there?.id ?? '' }, served)
  served.close()
  await served.ended
  expect((await exec('cmp', [path(here, ram), path(there, ram)])).stdout).toBe('')
})

test('what comes as a layer and stands on another file is not taken', async () => {
  const from = await disk()
  const served = await volumes.serve(here as PoolDefinition, from, signal, 'layer')
  const to = { ...from, pool: there?.id ?? '', base: { id: newId('volume', randomBytes), format: 'qcow2' as const } }
  await expect(
    volumes.receive(there as PoolDefinition, to, { stream: served, bytes: 0, as: 'layer' }, { signal }),
  ).rejects.toMatchObject({ fault: { code: 'image_corrupt' } })
  served.close()
  await served.ended
  expect([await tmp(there), await readdir(join(there?.path ?? '', 'wadah/volumes'))]).toEqual([[], []])
})

test('cut off on the way, or given up: nothing is there, and the disk is free at once', async () => {
  const from = await disk()
  const { base: _, ...to } = from
  const first = await volumes.serve(here as PoolDefinition, from, signal)
  const broken = receive(to, first, { bytes_per_s: 2 * MiB })
  await expect.poll(() => tmp(there)).toHaveLength(1)
  first.close()
  await expect(broken).rejects.toMatchObject({ fault: { code: 'tool_failed' } })
  await first.ended
  // QEMU would take the lock now.
  await io(path(here, from), 'write -P 0x55 0 64k')
  const second = await volumes.serve(here as PoolDefinition, from, signal)
  const stop = new AbortController()
  const given = receive(to, second, { bytes_per_s: 2 * MiB, signal: stop.signal })
  await expect.poll(() => tmp(there)).toHaveLength(1)
  stop.abort()
  await expect(given).rejects.toMatchObject({ fault: { code: 'cancelled' } })
  second.close()
  await second.ended
  expect(await tmp(there)).toEqual([])
  expect(await volumes.list(there as PoolDefinition)).toEqual([])
})

test('no room there: said before, or when it is used up', async () => {
  const from = await disk()
  const { base: _, ...to } = from
  const at = join(dir, 'small')
  await mkdir(at)
  await exec('mount', ['-t', 'tmpfs', '-o', 'size=8m,mode=0755', 'tmpfs', at])
  mounts.push(at)
  there = await poolIn(at)
  for (const bytes of [100 * MiB, 0]) {
    const served = await volumes.serve(here as PoolDefinition, from, signal)
    await expect(receive(to, served, { bytes })).rejects.toMatchObject({ fault: { code: 'no_room' } })
    served.close()
    await served.ended
  }
  expect(await volumes.list(there)).toEqual([])
})

test('a disk whose file is not what is recorded is not served', async () => {
  const from = await disk()
  await expect(volumes.serve(here as PoolDefinition, { ...from, size_bytes: 128 * MiB }, signal)).rejects.toMatchObject(
    { fault: { code: 'image_corrupt' } },
  )
  const stop = new AbortController()
  stop.abort(new Error('given up'))
  await expect(volumes.serve(here as PoolDefinition, from, stop.signal)).rejects.toThrow('given up')
})
