import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { newId } from '@wadah/api/ids'
import { newQcow2 } from '@wadah/host/storage/qcow2'
import { createVolumes } from '@wadah/host/storage/volumes'
import { Confinement } from '@wadah/host/system/confine'
import type { PoolDefinition, VolumeDefinition, VolumeWork } from '@wadah/ports/volumes'

const exec = promisify(execFile)
const MiB = 2 ** 20
let dir = ''
let pool: PoolDefinition
let volumes: ReturnType<typeof createVolumes>
let mounts: string[] = []
const work: VolumeWork = { signal: new AbortController().signal }

const volume = (extra: Partial<VolumeDefinition> = {}): VolumeDefinition => ({
  id: newId('volume', randomBytes),
  pool: pool.id,
  format: 'qcow2',
  size_bytes: 64 * MiB,
  ...extra,
})
const qemuImg = async (...argv: string[]): Promise<string> => (await exec('qemu-img', argv)).stdout
const io = async (file: string, format: string, ...commands: string[]): Promise<string> =>
  (await exec('qemu-io', ['-f', format, ...commands.flatMap((c) => ['-c', c]), file])).stdout
const path = (v: VolumeDefinition): string => volumes.path(pool, v)
const leftovers = async (): Promise<string[]> => await readdir(join(pool.path, 'wadah/tmp'))
async function smallFileSystem(size: string): Promise<string> {
  const at = join(dir, `fs${mounts.length}`)
  await mkdir(at)
  await exec('mount', ['-t', 'tmpfs', '-o', `size=${size},mode=0755`, 'tmpfs', at])
  mounts.push(at)
  return at
}

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-vol-'))
  await mkdir(join(dir, 'pool'))
  pool = { id: newId('pool', randomBytes), path: join(dir, 'pool'), direct_io: true }
  // qemu-img runs as another user, who must get through.
  await chmod(dir, 0o711)
  volumes = createVolumes({
    allowedDirs: [dir],
    confinement: new Confinement(process.getuid?.() === 0 ? 231_000 : null),
  })
  await volumes.openPool(pool)
})
afterEach(async () => {
  for (const at of mounts) await exec('umount', ['-l', at])
  mounts = []
  await rm(dir, { recursive: true, force: true })
})

describe('our qcow2 against QEMU', () => {
  const MAGIC_FEATURES = 0x6803f857
  /** A qcow2 head with the table of feature names cut out (it depends on the version of QEMU), and what lies in the other clusters. */
  async function parts(
    file: string,
  ): Promise<{ head: string; extensions: string[]; name: string; rest: string; length: number }> {
    const bytes = await readFile(file)
    const at = Number(bytes.readBigUInt64BE(8))
    const name = at === 0 ? '' : bytes.toString('utf8', at, at + bytes.readUInt32BE(16))
    const extensions: string[] = []
    for (let i = 112; bytes.readUInt32BE(i) !== 0; i += 8 + Math.ceil(bytes.readUInt32BE(i + 4) / 8) * 8) {
      if (bytes.readUInt32BE(i) !== MAGIC_FEATURES)
        extensions.push(bytes.toString('hex', i, i + 8 + bytes.readUInt32BE(i + 4)))
    }
    const head = Buffer.from(bytes.subarray(0, 112))
    head.fill(0, 8, 16)
    // QEMU ends the file with the last L1 entry, we with its cluster.
    const rest = bytes.subarray(65536, 3 * 65536).toString('hex')
    expect(bytes.subarray(3 * 65536).every((byte) => byte === 0)).toBe(true)
    return { head: head.toString('hex'), extensions, name, rest, length: Math.ceil(bytes.length / 65536) }
  }
  const SIZES = [512, MiB, MiB + 512, 2 ** 29, 2 ** 29 + 512, 10 * 2 ** 30, 2 ** 42 + 512, 2 ** 46 + 512]

  test.each(SIZES)('%d bytes: the same bytes as qemu-img, which finds nothing wrong', async (size_bytes) => {
    const base = volume({ size_bytes })
    const theirs = join(dir, 'theirs.qcow2')
    await volumes.create(pool, base, work)
    await qemuImg(
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      'compat=1.1,cluster_size=64k,lazy_refcounts=off',
      theirs,
      String(size_bytes),
    )
    expect(await parts(path(base))).toEqual(await parts(theirs))
    expect(await qemuImg('check', '-f', 'qcow2', path(base))).toContain('No errors')

    const clone = volume({ size_bytes: size_bytes + 512 })
    await volumes.clone(pool, { pool, volume: base }, clone, 'linked', work)
    const name = `${base.id}.qcow2`
    const theirClone = join(dir, 'pool/wadah/volumes/theirs.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', '-b', name, '-F', 'qcow2', theirClone, String(clone.size_bytes))
    expect(await parts(path(clone))).toEqual(await parts(theirClone))
    expect(await qemuImg('check', '-f', 'qcow2', path(clone))).toContain('No errors')
    const info = JSON.parse(await qemuImg('info', '-f', 'qcow2', '--output=json', path(clone))) as Record<
      string,
      unknown
    >
    expect(info).toMatchObject({
      'virtual-size': clone.size_bytes,
      'backing-filename': name,
      'backing-filename-format': 'qcow2',
    })
  })

  test('a disk holds what is written to it, to its last sector, and stays whole', async () => {
    const size_bytes = 2 ** 42 + 512
    const base = volume({ size_bytes: 2 ** 40 })
    await volumes.create(pool, base, work)
    await io(path(base), 'qcow2', 'write -P 17 0 1M', 'write -P 18 700G 64k')
    await volumes.grant(pool, base, 'read-only')
    const clone = volume({ size_bytes })
    await volumes.clone(pool, { pool, volume: base }, clone, 'linked', work)
    await io(path(clone), 'qcow2', 'write -P 33 512k 4k', `write -P 34 ${size_bytes - 512} 512`, 'write -P 35 3T 3M')
    const read = await io(
      path(clone),
      'qcow2',
      'read -P 17 0 512k',
      'read -P 33 512k 4k',
      'read -P 17 516k 508k',
      'read -P 18 751619276800 64k',
      'read -P 35 3T 3M',
      `read -P 34 ${size_bytes - 512} 512`,
      'read -P 0 2T 1M',
    )
    expect(read).not.toContain('Pattern verification failed')
    expect(await qemuImg('check', '-f', 'qcow2', path(clone))).toContain('No errors')
    expect(await qemuImg('check', '-f', 'qcow2', path(base))).toContain('No errors')
  })
})

describe('volumes', () => {
  test('create, grant, delete: done twice is done once', async () => {
    for (const format of ['qcow2', 'raw'] as const) {
      const v = volume({ format })
      await Promise.all([volumes.create(pool, v, work), volumes.create(pool, v, work)])
      await io(path(v), format, 'write -P 5 0 64k')
      await volumes.create(pool, v, work)
      expect(await io(path(v), format, 'read -P 5 0 64k')).not.toContain('failed')
      await volumes.grant(pool, v, { uid: 71234 })
      await volumes.grant(pool, v, { uid: 71234 })
      expect(await lstat(path(v))).toMatchObject({ uid: 71234, mode: 0o100600 })
      await volumes.grant(pool, v, 'read-only')
      expect(await lstat(path(v))).toMatchObject({ uid: 0, mode: 0o100444 })
      expect(await volumes.exists(pool, v)).toBe(true)
      expect(await volumes.allocatedBytes(pool, v)).toBeLessThan(MiB)
      expect(await volumes.list(pool)).toEqual([{ id: v.id, format, temporary: false }])
      await volumes.delete(pool, v)
      await volumes.delete(pool, v)
      expect(await volumes.exists(pool, v)).toBe(false)
    }
    expect(await leftovers()).toEqual([])
    await expect(volumes.grant(pool, volume(), 'read-only')).rejects.toMatchObject({ fault: { code: 'not_found' } })
    await expect(volumes.allocatedBytes(pool, volume())).rejects.toMatchObject({ fault: { code: 'not_found' } })
  })

  test('what an interrupted try left is in the list, in nobody’s way, and goes with the volume', async () => {
    const v = volume()
    const tmp = join(pool.path, 'wadah/tmp', `${v.id}.qcow2`)
    await writeFile(tmp, 'half')
    expect(await volumes.list(pool)).toEqual([{ id: v.id, format: 'qcow2', temporary: true }])
    await volumes.create(pool, v, work)
    expect(await leftovers()).toEqual([])
    await writeFile(tmp, 'half')
    await volumes.delete(pool, v)
    expect(await volumes.list(pool)).toEqual([])
  })

  test('twenty linked clones at once, each its own disk', async () => {
    const base = volume()
    await volumes.create(pool, base, work)
    await io(path(base), 'qcow2', 'write -P 1 0 1M')
    const clones = Array.from({ length: 20 }, () => volume())
    await Promise.all(clones.map((c) => volumes.clone(pool, { pool, volume: base }, c, 'linked', work)))
    for (const c of clones) await volumes.clone(pool, { pool, volume: base }, c, 'linked', work)
    expect((await volumes.list(pool)).length).toBe(21)
    for (const c of clones.slice(0, 3)) {
      await io(path(c), 'qcow2', 'write -P 2 0 4k')
      expect(await io(path(c), 'qcow2', 'read -P 1 4k 4k')).not.toContain('failed')
    }
    expect(await io(path(base), 'qcow2', 'read -P 1 0 1M')).not.toContain('failed')
  })

  test('a full clone of a linked clone stands by itself, may be larger, and reports its progress', async () => {
    const base = volume({ format: 'raw' })
    await volumes.create(pool, base, work)
    await io(path(base), 'raw', 'write -P 1 0 8M')
    const middle = volume()
    await volumes.clone(pool, { pool, volume: base }, middle, 'linked', work)
    await io(path(middle), 'qcow2', 'write -P 2 1M 1M')
    const source = { ...middle, base: { id: base.id, format: base.format } }
    for (const format of ['qcow2', 'raw'] as const) {
      const copy = volume({ format, size_bytes: 128 * MiB })
      const seen: number[] = []
      const progress = (done: number, total: number): void => void seen.push(done / total)
      await volumes.clone(pool, { pool, volume: source }, copy, 'full', { ...work, progress })
      await volumes.clone(pool, { pool, volume: source }, copy, 'full', work)
      expect(seen.at(-1)).toBe(1)
      expect([...seen].sort((a, b) => a - b)).toEqual(seen)
      expect(JSON.parse(await qemuImg('info', '-f', format, '--output=json', path(copy)))).not.toHaveProperty(
        'backing-filename',
      )
      expect(
        await io(path(copy), format, 'read -P 1 0 1M', 'read -P 2 1M 1M', 'read -P 1 2M 6M', 'read -P 0 8M 120M'),
      ).not.toContain('failed')
      expect(await volumes.allocatedBytes(pool, copy)).toBeLessThan(16 * MiB)
    }
    await expect(
      volumes.clone(pool, { pool, volume: source }, volume({ size_bytes: MiB }), 'full', work),
    ).rejects.toMatchObject({
      fault: { code: 'invalid', field: '/size_bytes' },
    })
  })

  test('aborting a full clone leaves nothing', async () => {
    const base = volume({ size_bytes: 2 ** 31 })
    await volumes.create(pool, base, work)
    await io(path(base), 'qcow2', 'write -P 1 0 512M')
    const controller = new AbortController()
    const copy = volume({ size_bytes: 2 ** 31 })
    const done = volumes.clone(pool, { pool, volume: base }, copy, 'full', {
      signal: controller.signal,
      progress: () => controller.abort(),
    })
    await expect(done).rejects.toMatchObject({ fault: { code: 'cancelled' } })
    expect(await leftovers()).toEqual([])
    expect(await volumes.exists(pool, copy)).toBe(false)
    await expect(volumes.create(pool, volume(), { signal: AbortSignal.abort() })).rejects.toMatchObject({
      fault: { code: 'cancelled', effect: 'none' },
    })
  })

  test('a disk whose head was tampered with is not read: no file of the host can be smuggled into a clone', async () => {
    await writeFile(join(dir, 'secret'), 'x'.repeat(1024))
    const base = volume()
    await volumes.create(pool, base, work)
    const plant = async (v: VolumeDefinition, backing?: string): Promise<void> => {
      const layout = newQcow2(v.size_bytes, backing === undefined ? undefined : { file: backing, format: 'raw' })
      const file = Buffer.alloc(layout.file_bytes)
      for (const { offset, data } of layout.writes) file.set(data, offset)
      await writeFile(path(v), file)
    }
    for (const [recorded, backing] of [
      [undefined, join(dir, 'secret')],
      [{ id: base.id, format: base.format }, join(dir, 'secret')],
      [{ id: base.id, format: base.format }, undefined],
      [
        { id: base.id, format: base.format },
        `json:{"driver":"raw","file":{"driver":"file","filename":"${join(dir, 'secret')}"}}`,
      ],
    ] as const) {
      const v: VolumeDefinition = { ...volume(), ...(recorded === undefined ? {} : { base: recorded }) }
      await plant(v, backing)
      for (const how of ['linked', 'full'] as const) {
        const clone = volumes.clone(pool, { pool, volume: v }, volume(), how, work)
        await expect(clone).rejects.toMatchObject({ fault: { code: 'image_corrupt' } })
      }
    }
    const shrunk = volume({ format: 'raw' })
    await volumes.create(pool, shrunk, work)
    await truncate(path(shrunk), MiB)
    await expect(volumes.clone(pool, { pool, volume: shrunk }, volume(), 'linked', work)).rejects.toMatchObject({
      fault: { code: 'image_corrupt' },
    })
    // A link or a pipe in place of a disk is not followed and not waited for.
    const linked = volume({ format: 'raw', size_bytes: 1024 })
    await symlink(join(dir, 'secret'), path(linked))
    await expect(volumes.grant(pool, linked, { uid: 71234 })).rejects.toThrow('ELOOP')
    expect((await lstat(join(dir, 'secret'))).uid).toBe(0)
    const pipe = volume({ format: 'raw', size_bytes: 512 })
    await exec('mkfifo', [path(pipe)])
    await expect(volumes.clone(pool, { pool, volume: pipe }, volume(), 'full', work)).rejects.toThrow()
    expect(await leftovers()).toEqual([])
  })

  test('a full file system: said with numbers, and nothing half-made stays', async () => {
    const small: PoolDefinition = { id: newId('pool', randomBytes), path: await smallFileSystem('6m'), direct_io: true }
    const facts = await volumes.openPool(small)
    expect(facts).toMatchObject({ capacity_bytes: 6 * MiB, file_system: 'tmpfs' })
    const base = volume()
    await volumes.create(pool, base, work)
    await io(path(base), 'qcow2', 'write -P 1 0 8M')
    const tooMuch = volumes.clone(small, { pool, volume: base }, volume(), 'full', work)
    await expect(tooMuch).rejects.toMatchObject({
      fault: { code: 'no_room', detail: expect.stringContaining('of 6 MiB are free') },
    })

    // Full in the middle: what is allocated fits, what comes out does not.
    await writeFile(join(small.path, 'filler'), Buffer.alloc(3 * MiB))
    const sparse = volume()
    await volumes.create(pool, sparse, work)
    await io(path(sparse), 'qcow2', 'write -P 1 0 8M')
    const packed = volume()
    await qemuImg('convert', '-c', '-f', 'qcow2', '-O', 'qcow2', path(sparse), path(packed))
    expect(await volumes.allocatedBytes(pool, packed)).toBeLessThan(MiB)
    const middle = volumes.clone(small, { pool, volume: packed }, volume(), 'full', work)
    await expect(middle).rejects.toMatchObject({ fault: { code: 'no_room', remedy: expect.stringContaining('df -h') } })
    expect(await volumes.list(small)).toEqual([])

    await writeFile(join(small.path, 'filler2'), Buffer.alloc(4 * MiB)).catch(() => {})
    await expect(volumes.create(small, volume(), work)).rejects.toMatchObject({ fault: { code: 'no_room' } })
    expect(await volumes.list(small)).toEqual([])
  })

  test('a builder’s file becomes a volume, by rename or by copy; a wrong one does not', async () => {
    const make = async (name: string, at = dir): Promise<string> => {
      const file = join(at, name)
      await qemuImg('create', '-q', '-f', 'qcow2', file, String(64 * MiB))
      await io(file, 'qcow2', 'write -P 9 0 1M')
      return file
    }
    const elsewhere = await smallFileSystem('16m')
    for (const file of [await make('here.qcow2'), await make('there.qcow2', elsewhere)]) {
      const v = volume()
      await volumes.adopt(pool, file, v, work)
      await volumes.adopt(pool, file, v, work)
      expect(await lstat(path(v))).toMatchObject({ uid: 0, mode: 0o100600 })
      expect(await io(path(v), 'qcow2', 'read -P 9 0 1M')).not.toContain('failed')
      await expect(lstat(file)).rejects.toThrow('ENOENT')
    }
    const file = await make('wrong.qcow2')
    for (const wrong of [volume({ size_bytes: 128 * MiB }), volume({ format: 'raw' })]) {
      await expect(volumes.adopt(pool, file, wrong, work)).rejects.toMatchObject({ fault: { code: 'image_corrupt' } })
    }
    await symlink(file, join(dir, 'link.qcow2'))
    await expect(volumes.adopt(pool, join(dir, 'link.qcow2'), volume(), work)).rejects.toMatchObject({
      fault: { code: 'image_corrupt' },
    })
    expect(await readFile(file)).toBeDefined()
    expect(await leftovers()).toEqual([])
  })
})

describe('pools', () => {
  const at = (path: string): PoolDefinition => ({ id: newId('pool', randomBytes), path, direct_io: false })
  const refused = async (path: string, code: string, words: string): Promise<void> =>
    await expect(volumes.openPool(at(path))).rejects.toMatchObject({
      fault: { code, field: '/path', detail: expect.stringContaining(words) },
    })

  test('opened twice, closed when empty, closed twice', async () => {
    expect(await volumes.openPool(pool)).toMatchObject({
      file_system: expect.any(String),
      direct_io: expect.any(Boolean),
    })
    expect(await lstat(join(pool.path, 'wadah/volumes'))).toMatchObject({ mode: 0o040711 })
    const v = volume()
    await volumes.create(pool, v, work)
    await expect(volumes.closePool(pool)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await volumes.delete(pool, v)
    await volumes.closePool(pool)
    await volumes.closePool(pool)
    expect(await readdir(pool.path)).toEqual([])
    await expect(volumes.facts(pool)).rejects.toMatchObject({ fault: { code: 'unavailable' } })
    await expect(volumes.create(pool, v, work)).rejects.toMatchObject({ fault: { code: 'unavailable' } })
  })

  test.each([
    ['past the page cache', true],
    ['through it', false],
  ])('blocks of a shared file, %s: read by who has it open, and by who opens it', async (_how, direct_io) => {
    const { shared } = volumes
    const where = { ...pool, direct_io }
    await expect(shared.writeBlocks(where, 'trial', [0], 'one')).rejects.toMatchObject({
      fault: { code: 'tool_failed' },
    })
    await shared.mark(where, 'trial', '')
    await shared.writeBlocks(where, 'trial', [0, 2], 'one')
    const seen = await shared.look(where, 'trial', [0, 1, 2, 3])
    const texts = ['one', '\0'.repeat(4096), 'one', '']
    expect(seen).toEqual({ length: 3, kept: texts, anew: texts, mounted: expect.stringMatching(/./) })
    await shared.writeBlocks(where, 'trial', [0], 'two')
    expect(await shared.look(where, 'trial', [0, 2])).toMatchObject({ kept: ['two', 'one'], anew: ['two', 'one'] })
    // Another file of the name: what was open is the old one, until it is let go of.
    await shared.unmark(where, 'trial')
    await shared.mark(where, 'trial', '')
    await shared.writeBlocks(where, 'trial', [0], 'three')
    expect(await shared.look(where, 'trial', [0])).toMatchObject({ length: 1, kept: ['two'], anew: ['three'] })
    await shared.letGo(where, 'trial')
    await shared.letGo(where, 'trial')
    expect(await shared.look(where, 'trial', [0])).toMatchObject({ kept: ['three'] })
    await shared.letGo(where, 'trial')
    await shared.unmark(where, 'trial')
  })

  test('only a real folder inside an allowed one, that nobody else can swap', async () => {
    await refused('/etc', 'forbidden', 'outside')
    await refused(`${dir}/../etc`, 'invalid', 'without ".."')
    await refused('pool', 'invalid', 'absolute')
    await refused(join(dir, 'nothing'), 'invalid', 'does not exist')
    await symlink('/etc', join(dir, 'out'))
    await refused(join(dir, 'out'), 'forbidden', 'symbolic link')
    await symlink(pool.path, join(dir, 'in'))
    await refused(join(dir, 'in'), 'invalid', 'symbolic link')
    await mkdir(join(dir, 'open'))
    await chmod(join(dir, 'open'), 0o1777)
    await refused(join(dir, 'open'), 'invalid', 'written to')
    await mkdir(join(dir, 'open/inner'))
    await volumes.openPool(at(join(dir, 'open/inner')))
    await chmod(join(dir, 'open'), 0o777)
    await refused(join(dir, 'open/inner'), 'invalid', 'written to')
    await writeFile(join(dir, 'file'), '')
    await refused(join(dir, 'file'), 'invalid', 'not a folder')
    await mkdir(join(dir, 'trap'))
    await symlink('/etc', join(dir, 'trap/wadah'))
    await refused(join(dir, 'trap'), 'invalid', 'not a folder of ours')
  })

  test('an allowed folder may itself be reached by a link, as its administrator wrote it', async () => {
    await mkdir(join(dir, 'real/p'), { recursive: true })
    await symlink(join(dir, 'real'), join(dir, 'alias'))
    const other = createVolumes({ allowedDirs: [join(dir, 'alias')] })
    await other.openPool(at(join(dir, 'alias/p')))
    await rename(join(dir, 'real/p'), join(dir, 'real/q'))
    await symlink(pool.path, join(dir, 'real/p'))
    await expect(other.openPool(at(join(dir, 'alias/p')))).rejects.toMatchObject({ fault: { field: '/path' } })
  })
})
