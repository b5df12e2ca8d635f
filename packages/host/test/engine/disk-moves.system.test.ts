/** Disks of a real guest go to another pool while it writes to them; and what is left when that is cut off anywhere. */
import { spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { newId } from '@wadah/api/ids'
import type { DiskCopy } from '@wadah/ports/disk-moves'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { PoolDefinition, VolumeDefinition } from '@wadah/ports/volumes'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import type { HostMachine } from '../../src/engine/machine.ts'
import { folders } from '../../src/storage/pool-folder.ts'
import { machineKit, until } from './kit.ts'

const never = new AbortController().signal
const work = { signal: never }
const MIB = 2 ** 20
const SIZE = 64 * MIB

/** Numbered blocks, one after the other, each safe on the disk before the next: a gap would show. */
const WRITER = `(i=0; while :; do i=$((i+1)); printf '%-511s\\n' "block $i" | dd of=/dev/vda bs=512 seek=$((65536+i%512)) conv=notrunc,fsync 2>/dev/null; echo $i >/last; done) >/dev/null 2>&1 &`
const SUM = 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=12 2>/dev/null | md5sum'

describe('a disk that goes to another pool while its guest runs', () => {
  let kit: Awaited<ReturnType<typeof machineKit>>
  let machine: HostMachine
  const opened: HostMachine[] = []
  const mounts: string[] = []
  let from: PoolDefinition
  let to: PoolDefinition

  async function poolAt(name: string, mib?: number): Promise<PoolDefinition> {
    const path = `${kit.dir}/${name}`
    mkdirSync(path, { mode: 0o755 })
    if (mib !== undefined) {
      const done = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${mib}m,mode=0755`, 'wadah-test', path])
      if (done.status !== 0) throw new Error(String(done.stderr))
      mounts.push(path)
    }
    const pool = { id: newId('pool', randomBytes), path, direct_io: false }
    await machine.volumes.openPool(pool)
    return pool
  }
  beforeAll(async () => {
    kit = await machineKit()
    machine = kit.machine
    opened.push(machine)
    from = await poolAt('from')
    to = await poolAt('to')
  })
  afterAll(async () => {
    for (const vm of await machine.known()) await machine.forget(vm)
    for (const path of mounts) spawnSync('umount', ['-l', path])
    await kit.close(opened)
  })
  afterEach(async () => {
    for (const vm of await machine.known()) await machine.forget(vm)
    for (const pool of [from, to])
      for (const v of await machine.volumes.list(pool)) await machine.volumes.delete(pool, v)
  })

  /** The daemon dies, and the next one knows nothing but what is there. */
  async function anotherDaemon(): Promise<void> {
    const next = await kit.open()
    await machine.close()
    opened.push(next)
    machine = next
  }

  type Made = { request: LaunchRequest; moved: LaunchRequest; copy: DiskCopy; vm: string }
  /** A guest with one disk, a clone unless said. */
  async function made(o: { format?: 'raw'; from?: PoolDefinition; to?: PoolDefinition } = {}): Promise<Made> {
    const [source, target] = [o.from ?? from, o.to ?? to]
    const { volumes } = machine
    const wanted = kit.request()
    const { uid } = wanted.spec
    const volume = (): VolumeDefinition => ({
      id: newId('volume', randomBytes),
      pool: source.id,
      format: o.format ?? 'qcow2',
      size_bytes: SIZE,
    })
    let disk = volume()
    const chain = [disk]
    if (o.format === 'raw') await volumes.create(source, disk, work)
    else {
      const base = volume()
      await volumes.create(source, base, work)
      await volumes.grant(source, base, 'read-only')
      disk = { ...disk, base: { id: base.id, format: base.format } }
      chain[0] = disk
      chain.push(base)
      await volumes.clone(source, { pool: source, volume: base }, disk, 'linked', work)
    }
    await volumes.grant(source, disk, { uid })
    const request: LaunchRequest = {
      ...wanted,
      spec: { ...wanted.spec, disks: [{ name: 'root', volume: disk.id, limits: {} }] },
      disks: [{ name: 'root', chain, pool: source }],
    }
    const { base: _, ...alone } = disk
    const whole = { ...alone, pool: target.id }
    const copy: DiskCopy = {
      vm: request.vm,
      disk: 'root',
      from: { pool: source, volume: disk },
      to: { pool: target, volume: whole },
    }
    await volumes.create(target, whole, work)
    await volumes.grant(target, whole, { uid })
    await launch(request)
    return {
      request,
      copy,
      vm: request.vm,
      moved: { ...request, disks: [{ name: 'root', chain: [whole], pool: target }] },
    }
  }
  async function launch(request: LaunchRequest): Promise<void> {
    const plan = await machine.plan(request)
    await machine.prepare(plan, never)
    await machine.launch(plan, 'fresh', never)
    await until('the agent', async () => (await machine.observe(request.vm)).agent === 'connected')
  }
  const sh = async (vm: string, script: string) => {
    const done = await machine.guest(vm).exec({ argv: ['sh', '-c', script], timeout_ms: 60_000 }, never)
    const text = Buffer.from(done.stdout, 'base64').toString()
    if (done.exit_code !== 0) throw new Error(`${script}: ${text}${Buffer.from(done.stderr, 'base64').toString()}`)
    return text.trim()
  }
  const qmp = async (vm: string, command: string, args: Record<string, unknown> = {}) =>
    (await machine.attach(vm))?.execute(command, args)
  const jobs = async (vm: string) => (await qmp(vm, 'query-jobs')) as { id: string; status: string }[]
  /** Files that QEMU has open as disks. */
  const open = async (vm: string) =>
    ((await qmp(vm, 'query-named-block-nodes', { flat: true })) as { drv: string; file: string }[])
      .filter((n) => n.drv === 'file')
      .map((n) => n.file)
      .toSorted()
  const pathOf = (place: DiskCopy['from']) => machine.volumes.path(place.pool, place.volume)
  const aside = (place: DiskCopy['from']) => `${folders(place.pool).tmp}/${place.volume.id}.${place.volume.format}`
  const fill = (vm: string, mib = 12) =>
    sh(vm, `dd if=/dev/urandom of=/dev/vda bs=1M count=${mib} conv=notrunc,fsync 2>/dev/null`)
  /** Every block that the guest counted is on its disk, up to the last. */
  async function noGap(vm: string): Promise<number> {
    await sh(vm, 'echo 3 >/proc/sys/vm/drop_caches')
    const last = Number(await sh(vm, 'cat /last'))
    const text = await sh(vm, "dd if=/dev/vda bs=512 skip=65536 count=512 2>/dev/null | grep -ao 'block [0-9]*'")
    const blocks = new Set(text.split('\n').map((l) => Number(l.slice(6))))
    const expected = Array.from({ length: Math.min(last, 500) }, (_, i) => last - i).filter((n) => n > 0)
    expect(expected.filter((n) => !blocks.has(n) && !blocks.has(n + 512))).toEqual([])
    return last
  }
  /** Slow enough to be met in the middle of it. */
  async function inTheMiddle(m: Made, signal = never): Promise<{ ended: Promise<unknown> }> {
    const running = machine.running(m.vm)
    if (!running) throw new Error('it does not run')
    const execute = running.execute.bind(running)
    running.execute = (command, args, options) =>
      execute(command, command === 'blockdev-mirror' ? { ...args, speed: MIB } : args, options)
    const ended = machine.diskMoves.copy(m.copy, { signal }).then(
      () => 'done',
      (error: unknown) => error,
    )
    await until('the copying', async () => (await jobs(m.vm)).some((j) => j.status === 'running'))
    return { ended }
  }
  /** The same the other way round, with a place for it. */
  async function wayBack(m: Made, copy: DiskCopy): Promise<DiskCopy> {
    const { pool } = copy.from
    const back = { ...copy, from: copy.to, to: { pool, volume: { ...copy.to.volume, pool: pool.id } } }
    await machine.volumes.create(pool, back.to.volume, work)
    await machine.volumes.grant(pool, back.to.volume, { uid: m.request.spec.uid })
    return back
  }
  const finish = async (m: Made) => {
    await qmp(m.vm, 'block-job-set-speed', { device: 'move-root', speed: 0 }).catch(() => {})
    await machine.diskMoves.copy(m.copy, work)
    const switched = await machine.diskMoves.switch(m.copy)
    await machine.diskMoves.settle(m.copy)
    await machine.volumes.delete(m.copy.from.pool, m.copy.from.volume)
    return switched
  }

  test.each(['qcow2', 'raw'] as const)(
    '%s, written to all the while',
    async (format) => {
      const m = await made(format === 'raw' ? { format } : {})
      await fill(m.vm)
      const sum = await sh(m.vm, SUM)
      await sh(m.vm, WRITER)
      const seen: number[] = []
      await machine.diskMoves.copy(m.copy, { signal: never, progress: (done) => seen.push(done) })
      expect(seen.at(-1)).toBeGreaterThanOrEqual(12 * MIB)
      // The two are the same from here on: a second call finds it so.
      await machine.diskMoves.copy(m.copy, work)
      const { stall_ms } = await machine.diskMoves.switch(m.copy)
      expect(stall_ms).toBeLessThan(2_000)
      expect([existsSync(pathOf(m.copy.from)), existsSync(aside(m.copy.from))]).toEqual([false, true])
      expect(await machine.diskMoves.switch(m.copy)).toEqual({})
      await machine.diskMoves.settle(m.copy)
      expect(await open(m.vm)).toEqual([pathOf(m.copy.to)])
      await machine.volumes.delete(m.copy.from.pool, m.copy.from.volume)
      expect(existsSync(aside(m.copy.from))).toBe(false)
      expect(await jobs(m.vm)).toEqual([])
      expect(machine.running(m.vm)?.live.pools).toEqual([to.path])
      expect(await machine.observe(m.vm)).toMatchObject({ state: 'running' })
      expect(await sh(m.vm, SUM)).toBe(sum)
      expect(await noGap(m.vm)).toBeGreaterThan(5)
      // Sparse as it was; and what is written now is written there: it starts from it.
      expect(statSync(pathOf(m.copy.to)).blocks * 512).toBeLessThan(20 * MIB)
      await machine.stop(m.vm)
      await launch(m.moved)
      expect(await sh(m.vm, SUM)).toBe(sum)
    },
    120_000,
  )

  test('there and back, and a snapshot after: its nodes are what the next one expects', async () => {
    const m = await made()
    await fill(m.vm, 2)
    const sum = await sh(m.vm, SUM)
    await finish(m)
    const { volumes } = machine
    const back = await wayBack(m, m.copy)
    await finish({ ...m, copy: back })
    expect(await open(m.vm)).toEqual([pathOf(back.to)])
    const layer: VolumeDefinition = {
      ...back.to.volume,
      id: newId('volume', randomBytes),
      base: { id: back.to.volume.id, format: 'qcow2' },
    }
    await volumes.clone(from, back.to, layer, 'linked', work)
    await volumes.grant(from, layer, { uid: m.request.spec.uid })
    await machine.snapshots.take(
      { vm: m.vm, layers: [{ disk: 'root', pool: from, volume: layer }], freeze: 'never' },
      work,
    )
    expect(await machine.snapshots.heads(m.vm)).toEqual({ root: layer.id })
    expect(await sh(m.vm, SUM)).toBe(sum)
    // A disk with a layer on top does not go by the name of what lies below.
    await expect(machine.diskMoves.copy({ ...m.copy, from: back.to }, work)).rejects.toMatchObject({
      fault: { code: 'wrong_state', effect: 'none' },
    })
  }, 120_000)

  test('the daemon dies while it copies: the next one goes on with it', async () => {
    const m = await made()
    await fill(m.vm)
    const sum = await sh(m.vm, SUM)
    await sh(m.vm, WRITER)
    await inTheMiddle(m)
    await anotherDaemon()
    expect((await jobs(m.vm)).map((j) => [j.id, j.status])).toEqual([['move-root', 'running']])
    await finish(m)
    expect(await open(m.vm)).toEqual([pathOf(m.copy.to)])
    expect(await sh(m.vm, SUM)).toBe(sum)
    await noGap(m.vm)
  }, 120_000)

  test('the daemon dies in the pause, before and after QEMU has taken the new file', async () => {
    const m = await made()
    await fill(m.vm, 4)
    const sum = await sh(m.vm, SUM)
    await sh(m.vm, WRITER)
    // The job is given up: the guest goes on with its old file.
    await machine.diskMoves.copy(m.copy, work)
    await machine.pause(m.vm, 'job')
    await anotherDaemon()
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'paused', paused_by: 'job' })
    await machine.diskMoves.drop(m.copy)
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'running' })
    expect(await open(m.vm)).not.toContain(pathOf(m.copy.to))
    // It is taken up: forward, then the way back with QEMU further on.
    let copy = m.copy
    for (const completed of [false, true]) {
      await machine.diskMoves.copy(copy, work)
      await machine.pause(m.vm, 'job')
      if (completed) {
        await qmp(m.vm, 'job-complete', { id: 'move-root' })
        await until('its end', async () => (await jobs(m.vm))[0]?.status === 'concluded')
      }
      await anotherDaemon()
      await finish({ ...m, copy })
      expect(await machine.observe(m.vm)).toMatchObject({ state: 'running' })
      expect(await open(m.vm)).toEqual([pathOf(copy.to)])
      expect(await jobs(m.vm)).toEqual([])
      expect(await sh(m.vm, SUM)).toBe(sum)
      await noGap(m.vm)
      copy = await wayBack(m, copy)
    }
  }, 120_000)

  test('QEMU is killed: what counts is known by the files alone', async () => {
    const kill = async (m: Made) => {
      const pid = machine.running(m.vm)?.pid
      if (pid === undefined) throw new Error('it does not run')
      process.kill(pid, 'SIGKILL')
      await until('its end', () => machine.running(m.vm) === undefined)
    }
    // While it copies, and when both are the same: the old one.
    const first = await made()
    await fill(first.vm)
    const { ended } = await inTheMiddle(first)
    await kill(first)
    expect(await ended).toMatchObject({ fault: { code: 'wrong_state', effect: 'none' } })
    await machine.diskMoves.drop(first.copy)
    await launch(first.request)
    await machine.volumes.delete(to, first.copy.to.volume)
    await machine.volumes.create(to, first.copy.to.volume, work)
    await machine.volumes.grant(to, first.copy.to.volume, { uid: first.request.spec.uid })
    await machine.diskMoves.copy(first.copy, work)
    await kill(first)
    await expect(machine.diskMoves.switch(first.copy)).rejects.toMatchObject({ fault: { effect: 'none' } })
    // Once the old one is put aside: the new one, with what was written since.
    await launch(first.request)
    await machine.diskMoves.copy(first.copy, work)
    await machine.diskMoves.switch(first.copy)
    await sh(first.vm, 'echo after the switch | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null')
    await kill(first)
    await anotherDaemon()
    expect(await machine.diskMoves.switch(first.copy)).toEqual({})
    await machine.diskMoves.settle(first.copy)
    await machine.volumes.delete(from, first.copy.from.volume)
    await launch(first.moved)
    expect(await sh(first.vm, 'head -c 16 /dev/vda')).toBe('after the switch')
    await machine.stop(first.vm)
    // Neither can be looked at: nothing is decided.
    const lost: DiskCopy = {
      ...first.copy,
      from: { ...first.copy.from, pool: { ...from, path: `${kit.dir}/not-mounted` } },
    }
    await expect(machine.diskMoves.switch(lost)).rejects.toMatchObject({ fault: { effect: 'unknown' } })
  }, 180_000)

  test('cancelled: nothing of it is open any more, and the guest has lost nothing', async () => {
    const m = await made()
    await fill(m.vm)
    const sum = await sh(m.vm, SUM)
    const stop = new AbortController()
    const { ended } = await inTheMiddle(m, stop.signal)
    stop.abort(new Error('cancelled'))
    expect(await ended).toMatchObject({ message: 'cancelled' })
    for (let i = 0; i < 2; i++) await machine.diskMoves.drop(m.copy)
    expect(await jobs(m.vm)).toEqual([])
    expect(await open(m.vm)).toHaveLength(2)
    expect(machine.running(m.vm)?.live.pools).toEqual([from.path])
    // A switch without a copy changes nothing.
    await expect(machine.diskMoves.switch(m.copy)).rejects.toMatchObject({ fault: { effect: 'none' } })
    expect(await sh(m.vm, SUM)).toBe(sum)
  }, 60_000)

  test('the other pool fills up: no_room, and the guest writes on where it was', async () => {
    const small = await poolAt('small', 8)
    const m = await made({ to: small })
    await fill(m.vm)
    const sum = await sh(m.vm, SUM)
    await sh(m.vm, WRITER)
    await expect(machine.diskMoves.copy(m.copy, work)).rejects.toMatchObject({
      fault: { code: 'no_room', effect: 'none', detail: expect.stringContaining('8 MiB') },
    })
    await machine.diskMoves.drop(m.copy)
    await machine.volumes.delete(small, m.copy.to.volume)
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'running' })
    expect(await open(m.vm)).toHaveLength(2)
    expect(await sh(m.vm, SUM)).toBe(sum)
    await noGap(m.vm)
  }, 60_000)

  test('a guest that stands because its pool is full goes on in the other one', async () => {
    const full = await poolAt('full', 30)
    writeFileSync(`${full.path}/ballast`, Buffer.alloc(18 * MIB))
    const m = await made({ from: full, format: 'raw' })
    const writing = sh(m.vm, `yes wadah | head -c ${24 * MIB} | dd of=/dev/vda bs=1M conv=fsync 2>/dev/null`)
    await until('the pause', async () => (await machine.observe(m.vm)).paused_by === 'io-error')
    await finish(m)
    await until('it to go on', async () => (await machine.observe(m.vm)).state === 'running')
    await writing
    const wanted = createHash('md5')
      .update('wadah\n'.repeat(4 * MIB))
      .digest('hex')
    expect(await sh(m.vm, `echo 3 >/proc/sys/vm/drop_caches; head -c ${24 * MIB} /dev/vda | md5sum`)).toBe(
      `${wanted}  -`,
    )
    expect(existsSync(pathOf(m.copy.from))).toBe(false)
    await machine.stop(m.vm)
    await rm(`${full.path}/ballast`)
  }, 90_000)

  test('one that its user has paused stays paused', async () => {
    const m = await made()
    await fill(m.vm, 2)
    const sum = await sh(m.vm, SUM)
    await machine.pause(m.vm, 'user')
    expect(await finish(m)).toEqual({})
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    await machine.resume(m.vm)
    expect(await sh(m.vm, SUM)).toBe(sum)
  }, 60_000)

  test('the old pool is broken at the switch: the guest is held until the change is recorded', async () => {
    const odd = await poolAt('odd', 40)
    const m = await made({ from: odd })
    await machine.diskMoves.copy(m.copy, work)
    spawnSync('mount', ['-o', 'remount,ro', odd.path])
    // What QEMU has open for writing keeps tmpfs from becoming read-only; then the folder is taken away instead.
    const { volumes, tmp } = folders(odd)
    const readOnly = spawnSync('touch', [`${volumes}/x`]).status !== 0
    if (!readOnly) await rm(`${volumes}/x`)
    if (!readOnly) await rm(tmp, { recursive: true })
    expect(await machine.diskMoves.switch(m.copy)).toEqual({})
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'paused', paused_by: 'job' })
    if (!readOnly) mkdirSync(tmp, { mode: 0o711 })
    await machine.diskMoves.settle(m.copy)
    expect(await machine.observe(m.vm)).toMatchObject({ state: 'running' })
    expect(await open(m.vm)).toEqual([pathOf(m.copy.to)])
  }, 60_000)
})
