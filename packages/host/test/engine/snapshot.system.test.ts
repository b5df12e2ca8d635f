/** Snapshots of a real guest: layers on top, RAM saved and gone on from, layers merged under it and beside it. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs'
import { chmod, open, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { VolumeDefinition } from '@wadah/ports/volumes'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import type { RunningVm } from '../../src/engine/running-vm.ts'
import { saveRam } from '../../src/engine/snapshot/ram.ts'
import { headProblem, readHead } from '../../src/storage/qcow2.ts'
import { machineKit, until } from './kit.ts'

const never = new AbortController().signal
const work = { signal: never }
const MIB = 2 ** 20
const SIZE = 32 * MIB

const USERFAULTS = '/proc/sys/vm/unprivileged_userfaultfd'
function mayAllowUserfaults(): boolean {
  try {
    accessSync(USERFAULTS, constants.W_OK)
    return true
  } catch {
    return false
  }
}
/** Takes so many bytes in a second, as a disk that is slow or busy would. */
async function slowSink(path: string, file: string, bytes_per_s: number) {
  await rm(path, { force: true })
  const handle = await open(file, 'w')
  const { promise: done, resolve, reject } = Promise.withResolvers<void>()
  done.catch(() => {})
  const server = createServer(async (connection) => {
    server.close()
    try {
      for await (const chunk of connection) {
        await handle.write(chunk as Buffer)
        await new Promise((next) => setTimeout(next, ((chunk as Buffer).length / bytes_per_s) * 1000))
      }
      resolve()
    } catch (error) {
      reject(error as Error)
    } finally {
      await handle.close()
    }
  })
  await new Promise<void>((ready) => server.listen(path, ready))
  await chmod(path, 0o666)
  return { path, done, close: () => void server.close() }
}

describe('snapshots of a real guest', () => {
  let kit: Awaited<ReturnType<typeof machineKit>>
  const pool = { id: 'pool-aaaaaaaaaa', path: '', direct_io: false }
  beforeAll(async () => {
    kit = await machineKit()
    pool.path = kit.dir
    await kit.machine.volumes.openPool(pool)
  })
  afterAll(async () => {
    await kit.close()
  })

  const volume = (base?: VolumeDefinition): VolumeDefinition => ({
    id: newId('volume', randomBytes),
    pool: pool.id,
    format: 'qcow2',
    size_bytes: SIZE,
    ...(base ? { base: { id: base.id, format: base.format } } : {}),
  })
  async function make(uid: number, base?: VolumeDefinition): Promise<VolumeDefinition> {
    const made = volume(base)
    if (base) await kit.machine.volumes.clone(pool, { pool, volume: base }, made, 'linked', work)
    else await kit.machine.volumes.create(pool, made, work)
    await kit.machine.volumes.grant(pool, made, { uid })
    return made
  }

  /** A VM whose one disk has these layers, topmost first. */
  const withDisk = (request: LaunchRequest, chain: VolumeDefinition[], serial: string): LaunchRequest => ({
    ...request,
    spec: { ...request.spec, disks: [{ name: 'root', volume: chain[0]?.id ?? '', limits: {}, serial }] },
    disks: [{ name: 'root', chain, pool }],
  })
  async function launch(request: LaunchRequest) {
    const plan = await kit.machine.plan(request)
    await kit.machine.prepare(plan, never)
    const running = await kit.machine.launch(plan, 'fresh', never)
    await until('the agent', async () => (await kit.machine.observe(request.vm)).agent === 'connected')
    return running
  }
  const sh = async (vm: string, script: string) => {
    const done = await kit.machine.guest(vm).exec({ argv: ['sh', '-c', script], timeout_ms: 20_000 }, never)
    const text = Buffer.from(done.stdout, 'base64').toString()
    if (done.exit_code !== 0) throw new Error(`${script}: ${text}${Buffer.from(done.stderr, 'base64').toString()}`)
    return text.trim()
  }
  const write = (vm: string, at: number, text: string) =>
    sh(vm, `printf %-512s ${text} | dd of=/dev/vda bs=512 seek=${at} conv=notrunc,fsync 2>/dev/null`)
  const read = (vm: string, at: number) => sh(vm, `dd if=/dev/vda bs=512 skip=${at} count=1 2>/dev/null | tr -d '\\0 '`)
  const fresh = (vm: string) => sh(vm, 'echo 3 > /proc/sys/vm/drop_caches')

  test('with RAM: the guest goes on where it was, disks and all; then layers are merged again', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const v1 = await make(uid)
    const request = withDisk(base, [v1], v1.id)
    const { vm } = request
    const first = await launch(request)
    await write(vm, 0, 'one')
    await sh(vm, 'echo ram-one > /mark')

    const v2 = await make(uid, v1)
    const ram = { pool, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
    const taken = await kit.machine.snapshots.take(
      { vm, layers: [{ disk: 'root', pool, volume: v2 }], ram, freeze: 'auto' },
      work,
    )
    expect(taken.consistency).toBe('ram')
    expect(taken.stall_ms).toBeGreaterThan(0)
    expect(await kit.machine.observe(vm)).toMatchObject({ state: 'running' })
    expect(await kit.machine.snapshots.heads(vm)).toEqual({ root: v2.id })
    expect(await sh(vm, 'cat /sys/block/vda/serial')).toBe(v1.id)
    await write(vm, 0, 'two')
    await sh(vm, 'echo ram-two > /mark')

    // Back: another layer on what was.
    await kit.machine.stop(vm)
    const v3 = await make(uid, v1)
    const { boot, qemu_version } = taken.ram ?? {}
    if (!boot || !qemu_version) throw new Error('no RAM')
    const back = { ...withDisk(base, [v3, v1], v1.id), restore: { boot, qemu_version, ...ram } }
    const again = await launch(back)
    expect(again.pid).not.toBe(first.pid)
    expect(await sh(vm, 'cat /mark')).toBe('ram-one')
    await fresh(vm)
    expect(await read(vm, 0)).toBe('one')
    expect(await sh(vm, 'cat /sys/block/vda/serial')).toBe(v1.id)

    // Two more layers under the running guest, then the one in the middle goes, then the topmost.
    await write(vm, 1, 'three')
    const v4 = await make(uid, v3)
    const plain = await kit.machine.snapshots.take(
      { vm, layers: [{ disk: 'root', pool, volume: v4 }], freeze: 'never' },
      work,
    )
    expect(plain).toMatchObject({ consistency: 'crash' })
    await write(vm, 2, 'four')
    // As they lie when the snapshot is done: nobody may write them.
    for (const layer of [v1, v3]) await kit.machine.volumes.grant(pool, layer, 'read-only')
    const common = { vm, disk: 'root', pool, active: true, uid }
    const middle = await kit.machine.snapshots.merge({ ...common, chain: [v3, v1], above: [v4] }, work)
    expect(middle).toEqual({ paused: false })
    const onV1: VolumeDefinition = { ...v4, base: { id: v1.id, format: v1.format } }
    const head = readHead(await readFile(kit.machine.volumes.path(pool, v4)))
    if (typeof head === 'string') throw new Error(head)
    expect(
      headProblem(head, { size_bytes: SIZE, backing: { file: `${v1.id}.qcow2`, format: 'qcow2' } }),
    ).toBeUndefined()
    const top = await kit.machine.snapshots.merge({ ...common, chain: [onV1, v1], above: [] }, work)
    expect(top).toEqual({ paused: true })
    expect(await kit.machine.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'job' })
    // Again, as after a crash: nothing is done twice.
    expect(await kit.machine.snapshots.merge({ ...common, chain: [onV1, v1], above: [] }, work)).toEqual({
      paused: true,
    })
    await kit.machine.resume(vm)
    expect(await kit.machine.snapshots.heads(vm)).toEqual({ root: v1.id })
    await write(vm, 3, 'five')
    await fresh(vm)
    expect(await Promise.all([0, 1, 2, 3].map((at) => read(vm, at)))).toEqual(['one', 'three', 'four', 'five'])
    // And once more on top, now that its node has another name.
    const v5 = await make(uid, v1)
    await kit.machine.snapshots.take({ vm, layers: [{ disk: 'root', pool, volume: v5 }], freeze: 'never' }, work)
    await write(vm, 4, 'six')
    await kit.machine.stop(vm)

    // Off: merged by qemu-img, and started from what is left.
    await kit.machine.snapshots.merge({ ...common, chain: [v5, v1], above: [] }, work)
    await launch(withDisk(base, [v1], v1.id))
    expect(await Promise.all([0, 1, 2, 3, 4].map((at) => read(vm, at)))).toEqual([
      'one',
      'three',
      'four',
      'five',
      'six',
    ])
    await kit.machine.stop(vm)
  }, 120_000)

  test('of a paused guest: it stays paused, twice, and goes on after', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const v1 = await make(uid)
    const { vm } = base
    await launch(withDisk(base, [v1], v1.id))
    await sh(vm, 'echo here > /mark')
    await kit.machine.pause(vm, 'user')
    let below = v1
    for (let i = 0; i < 2; i++) {
      const next = await make(uid, below)
      const ram = { pool, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
      const taken = await kit.machine.snapshots.take(
        { vm, layers: [{ disk: 'root', pool, volume: next }], ram, freeze: 'auto' },
        work,
      )
      expect(taken.consistency).toBe('ram')
      expect(await kit.machine.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
      below = next
    }
    await kit.machine.resume(vm)
    expect(await sh(vm, 'cat /mark')).toBe('here')
    await write(vm, 0, 'on')
    expect(await kit.machine.snapshots.heads(vm)).toEqual({ root: below.id })
    await kit.machine.stop(vm)
  }, 120_000)

  test('many layers, all but the topmost sealed, after a restart: one in the middle is merged, and again after a crash', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const { vm } = base
    // As long a name as a disk may have, and more layers than one digit counts.
    const name = 'a-name-of-16-cha'
    const disk = (request: LaunchRequest, chain: VolumeDefinition[]): LaunchRequest => ({
      ...request,
      spec: {
        ...request.spec,
        disks: [{ name, volume: chain[0]?.id ?? '', limits: {}, serial: chain.at(-1)?.id ?? '' }],
      },
      disks: [{ name, chain, pool }],
    })
    let chain = [await make(uid)]
    for (let i = 0; i < 12; i++) {
      const layer = await make(uid, chain[0])
      chain = [layer, ...chain]
    }
    for (const layer of chain.slice(1)) await kit.machine.volumes.grant(pool, layer, 'read-only')
    const running = await launch(disk(base, chain))
    await write(vm, 0, 'kept')
    const common = { vm, disk: name, pool, active: true, uid }
    const [above, from, into] = chain.slice(9, 12) as [VolumeDefinition, VolumeDefinition, VolumeDefinition]
    const request = { ...common, chain: chain.slice(10), above: [above] }
    expect(await kit.machine.snapshots.merge(request, work)).toEqual({ paused: false })
    expect(await kit.machine.observe(vm)).toMatchObject({ state: 'running', pid: running.pid })
    const onInto: VolumeDefinition = { ...above, base: { id: into.id, format: 'qcow2' } }
    const left = [...chain.slice(0, 9), onInto, ...chain.slice(11)]
    // Sealed again, and its head says on what it stands.
    await kit.machine.volumes.grant(pool, onInto, 'read-only')
    expect(await kit.machine.volumes.exists(pool, from)).toBe(true)
    await kit.machine.volumes.delete(pool, from)

    // A daemon ended between the end of QEMU's job and its dismissal: that job is not the next one's.
    const block = async (command: string, args: Record<string, unknown>) => await running.execute(command, args)
    const status = async () => (await running.execute('query-jobs')) as { id: string; status: string }[]
    const nodes = (await running.execute('query-named-block-nodes', { flat: true })) as {
      'node-name': string
      file: string
    }[]
    const node = (v: VolumeDefinition | undefined) =>
      nodes
        .find((n) => n['node-name'].endsWith('.f') && n.file.includes(v?.id ?? '-'))
        ?.['node-name'].replace(/\.f$/, '')
    const [a, b, c] = left.slice(1, 4)
    for (const layer of [a, b, c]) await kit.machine.volumes.grant(pool, layer as VolumeDefinition, { uid })
    await block('block-commit', {
      'job-id': `merge-${name}`,
      device: `vol-${name}`,
      'top-node': node(b),
      'base-node': node(c),
      'backing-file': `${c?.id}.qcow2`,
      'auto-dismiss': false,
    })
    await until('the job', async () => (await status()).some((j) => j.status === 'concluded'))
    const afterCrash: VolumeDefinition = { ...(a as VolumeDefinition), base: { id: c?.id ?? '', format: 'qcow2' } }
    const chain2 = [left[0] as VolumeDefinition, afterCrash, ...left.slice(3)]
    const top = { ...common, chain: [afterCrash, ...left.slice(3)], above: [left[0] as VolumeDefinition] }
    expect(await kit.machine.snapshots.merge(top, work)).toEqual({ paused: false })
    expect(await status()).toEqual([])
    const open = JSON.stringify(await running.execute('query-named-block-nodes', { flat: true }))
    expect(open).not.toContain(afterCrash.id)
    expect(chain2).toHaveLength(11)
    await fresh(vm)
    expect(await read(vm, 0)).toBe('kept')
    await kit.machine.stop(vm)
  }, 120_000)

  test('a disk of a paused guest grows after its RAM was saved', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const { vm } = base
    const v1 = await make(uid)
    await launch(withDisk(base, [v1], v1.id))
    await kit.machine.pause(vm, 'user')
    const v2 = await make(uid, v1)
    const ram = { pool, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
    await kit.machine.snapshots.take({ vm, layers: [{ disk: 'root', pool, volume: v2 }], ram, freeze: 'auto' }, work)
    await kit.machine.growDisk(vm, 'root', 2 * SIZE, never)
    expect(await kit.machine.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    await kit.machine.resume(vm)
    expect(await sh(vm, 'cat /sys/block/vda/size')).toBe(String((2 * SIZE) / 512))
    await kit.machine.stop(vm)
  }, 60_000)

  test('again and again on a machine that is busy: always whole', async () => {
    const base = kit.request()
    const { uid } = base.spec
    let below = await make(uid)
    const { vm } = base
    await launch(withDisk(base, [below], below.id))
    const hogs = [0, 1, 2, 3].map(() => spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' }))
    try {
      for (let i = 0; i < 12; i++) {
        const next = await make(uid, below)
        const ram = { pool, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
        const taken = await kit.machine.snapshots.take(
          { vm, layers: [{ disk: 'root', pool, volume: next }], ram, freeze: 'auto' },
          work,
        )
        expect(taken).toMatchObject({ consistency: 'ram' })
        expect(await kit.machine.observe(vm)).toMatchObject({ state: 'running' })
        below = next
      }
    } finally {
      for (const hog of hogs) hog.kill('SIGKILL')
    }
    await kit.machine.stop(vm)
  }, 120_000)

  test.skipIf(!mayAllowUserfaults())(
    'a guest that writes faster than its RAM is saved: in the background, whole, and it hardly stands still',
    async () => {
      const allowed = readFileSync(USERFAULTS, 'utf8')
      writeFileSync(USERFAULTS, '1')
      try {
        const request = kit.request({ memory_mib: 192 }, 'wadah.dirty=40')
        const { vm } = request
        const running = (await launch(request)) as RunningVm
        await sh(
          vm,
          'dd if=/dev/urandom of=/kept bs=1M count=16 2>/dev/null; sha256sum /kept > /kept.sum; echo then > /mark',
        )
        const ram = { pool, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
        const file = kit.machine.volumes.path(pool, ram.volume)
        const said: string[] = []
        let switches = 0
        const saved = await saveRam(running, {
          openSink: () => slowSink(`${kit.dir}/slow.sock`, file, 20 * MIB),
          atSwitch: async () => void (switches += 1),
          signal: never,
          log: (line) => said.push(line),
        })
        expect({ said, switches }).toEqual({
          said: [expect.stringContaining('faster than its RAM is saved')],
          switches: 1,
        })
        // It ran while its RAM went out for seconds.
        expect(saved.save_ms).toBeGreaterThan(5_000)
        expect(saved.stall_ms).toBeLessThan(saved.save_ms / 5)
        expect(await kit.machine.observe(vm)).toMatchObject({ state: 'running' })
        await sh(vm, 'rm /kept; echo now > /mark')
        await kit.machine.stop(vm)
        const { boot, qemu_version } = { boot: running.record, qemu_version: running.live.qemu_version }
        await launch({ ...request, restore: { boot, qemu_version, ...ram } })
        expect(await sh(vm, 'cat /mark; sha256sum -c /kept.sum')).toBe('then\n/kept: OK')
        await kit.machine.stop(vm)
      } finally {
        writeFileSync(USERFAULTS, allowed)
      }
    },
    120_000,
  )

  test('one that was refused because file systems could not be frozen leaves nothing that keeps the next from saving RAM', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const v1 = await make(uid)
    const request = withDisk(base, [v1], v1.id)
    await launch(request)
    const { vm } = request
    vi.spyOn(kit.machine.guest(vm), 'freeze').mockRejectedValueOnce(fail('agent_silent', 'it does not answer'))
    const v2 = await make(uid, v1)
    await expect(
      kit.machine.snapshots.take({ vm, layers: [{ disk: 'root', pool, volume: v2 }], freeze: 'require' }, work),
    ).rejects.toMatchObject({ fault: { code: 'agent_silent', effect: 'none' } })
    await kit.machine.volumes.delete(pool, v2)
    const v3 = await make(uid, v1)
    const ram = { pool, volume: { ...volume(), format: 'raw' as const } }
    const taken = await kit.machine.snapshots.take(
      { vm, layers: [{ disk: 'root', pool, volume: v3 }], ram, freeze: 'auto' },
      work,
    )
    expect(taken).toMatchObject({ consistency: 'ram' })
    await kit.machine.clean(vm)
  })

  test('no room for RAM: the guest runs on, and nothing is left of it', async () => {
    const base = kit.request()
    const { uid } = base.spec
    const v1 = await make(uid)
    const { vm } = base
    await launch(withDisk(base, [v1], v1.id))
    const v2 = await make(uid, v1)
    const gone = { id: pool.id, path: `${kit.dir}/nowhere`, direct_io: false }
    const ram = { pool: gone, volume: { id: newId('volume', randomBytes), format: 'raw' as const } }
    const taking = kit.machine.snapshots.take(
      { vm, layers: [{ disk: 'root', pool, volume: v2 }], ram, freeze: 'auto' },
      work,
    )
    await expect(taking).rejects.toThrow(/pool/)
    expect(await kit.machine.observe(vm)).toMatchObject({ state: 'running' })
    expect(await kit.machine.snapshots.heads(vm)).toEqual({ root: v1.id })
    await kit.machine.stop(vm)
  }, 60_000)
})
