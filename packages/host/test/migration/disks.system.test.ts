/** Moves of guests with what lies on their host alone: disks, UEFI variables, a TPM; and of guests that are paused. */
import { randomBytes } from 'node:crypto'
import { mkdir, readFile, stat } from 'node:fs/promises'
import { createConnection } from 'node:net'
import { describe, expect, test } from 'vitest'
import { newId } from '@wadah/api/ids'
import { Arrivals } from '@wadah/cluster/migration/target'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { MoveAddress } from '@wadah/ports/migration'
import type { PoolDefinition, VolumeDefinition } from '@wadah/ports/volumes'
import { firmwareKinds } from '../../src/engine/firmware.ts'
import { tpmPrograms } from '../../src/engine/tpm.ts'
import { until } from '../engine/kit.ts'
import { type PairKit, type Placement, TICKS, dirty, move, never, usePair } from './kit.ts'

const MIB = 2 ** 20

describe('a move of what one host alone has', () => {
  let kit: PairKit
  usePair((made) => {
    kit = made
  })

  async function poolOf(name: string): Promise<PoolDefinition> {
    const path = `${kit.dir}/pool-${name}`
    await mkdir(path, { recursive: true, mode: 0o711 })
    const pool = { id: `pool-${name.repeat(10)}`, path, direct_io: false }
    await kit.a.volumes.openPool(pool)
    return pool
  }

  /** A VM with two disks of the first host: a clone on a base that only that has, and a raw one. */
  async function withDisks() {
    const [from, to] = [await poolOf('a'), await poolOf('b')]
    const wanted = await kit.request({ disk: false })
    const { uid } = wanted.spec
    const { volumes } = kit.a
    const volume = (format: 'qcow2' | 'raw', size_bytes = 32 * MIB): VolumeDefinition => ({
      id: newId('volume', randomBytes),
      pool: from.id,
      format,
      size_bytes,
    })
    const base = volume('qcow2')
    await volumes.create(from, base, { signal: never })
    const clone = { ...volume('qcow2', 64 * MIB), base: { id: base.id, format: base.format } }
    await volumes.clone(from, { pool: from, volume: base }, clone, 'linked', { signal: never })
    const raw = volume('raw', 48 * MIB)
    await volumes.create(from, raw, { signal: never })
    for (const v of [clone, raw]) await volumes.grant(from, v, { uid })
    await volumes.grant(from, base, 'read-only')
    const request: LaunchRequest = {
      ...wanted,
      spec: {
        ...wanted.spec,
        disks: [
          { name: 'root', volume: clone.id, limits: {} },
          { name: 'data', volume: raw.id, limits: {} },
        ],
      },
      disks: [
        { name: 'root', chain: [clone, base], pool: from },
        { name: 'data', chain: [raw], pool: from },
      ],
    }
    const arrived = [clone, raw].map(({ id, format, size_bytes }) => ({ id, format, size_bytes, pool: to.id }))
    const moved: LaunchRequest = {
      ...request,
      disks: request.disks.map((d, i) => ({ name: d.name, chain: [arrived[i] as VolumeDefinition], pool: to })),
    }
    return { request, moved, from, to, arrived, base, uid }
  }
  type Made = Awaited<ReturnType<typeof withDisks>>

  /** The target's daemon: makes the volumes, and takes them away when it is undone. */
  function arrivals(m: Made, placement: Placement, stop: AbortSignal, tls = true, log: string[] = []): Arrivals {
    const { b } = kit
    return new Arrivals(
      {
        migration: b.migration,
        isBy: async (_job, host) => host === 'host-source',
        isOver: async () => false,
        address: () => '127.0.0.1',
        prepare: async (_job, offer) => {
          for (const v of m.arrived) {
            await b.volumes.create(m.to, v, { signal: never })
            await b.volumes.grant(m.to, v, { uid: m.uid })
          }
          return {
            request: { ...m.moved, epoch: offer.epoch },
            listen: '127.0.0.1',
            tls,
            mirrors: Object.fromEntries(
              m.moved.disks.map((d, i) => [d.name, { pool: m.to, volume: m.arrived[i] as VolumeDefinition }]),
            ),
          }
        },
        commitMoved: async (_job, { epoch }) => {
          Object.assign(placement, { host: b, epoch, sealed: false })
        },
        undone: async () => {
          for (const v of m.arrived) await b.volumes.delete(m.to, v)
          log.push('undone')
        },
        log: (line) => kit.logs.push(`in: ${line}`),
      },
      stop,
    )
  }
  const mirrors = ['root', 'data']
  const begin = (m: Made) => {
    const stop = new AbortController()
    const placement: Placement = { host: kit.a, epoch: 1, sealed: false, log: [] }
    const undone: string[] = []
    return { stop, placement, undone, arrivals: (tls = true) => arrivals(m, placement, stop.signal, tls, undone) }
  }
  const jobsAt = async (vm: string) => (await kit.a.running(vm)?.execute('query-block-jobs')) as unknown[]
  const nodesAt = async (vm: string) => {
    const running = kit.a.running(vm)
    if (!running) throw new Error('it does not run')
    const all = await running.execute('query-named-block-nodes', { flat: true })
    return (all as { 'node-name': string }[]).map((n) => n['node-name'])
  }

  /** Numbered blocks, one after the other, each safe on the disk before the next: a gap would show. */
  const writer = `(i=0; while :; do i=$((i+1)); printf '%-511s\\n' "block $i" | dd of=/dev/vda bs=512 seek=$((8192+i%512)) conv=notrunc,fsync 2>/dev/null; echo $i >/fill/last; done) >/dev/null 2>&1 &`

  test.each([
    ['TLS', 'precopy'],
    ['plain', 'precopy'],
    ['TLS', 'postcopy'],
  ] as const)('two disks that are written to meanwhile, %s, %s', async (how, mode) => {
    const { a, b } = kit
    if (mode === 'postcopy' && !(await kit.allowPostcopy())) return
    const m = await withDisks()
    const { vm } = await kit.start(a, m.request)
    const kept = await kit.sh(a, vm, TICKS)
    await kit.sh(
      a,
      vm,
      'dd if=/fill/kept of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null; dd if=/fill/kept of=/dev/vdb bs=1M seek=20 conv=fsync 2>/dev/null',
    )
    const sums = 'dd if=/dev/vda bs=1M skip=8 count=8 2>/dev/null | md5sum; dd if=/dev/vdb bs=1M 2>/dev/null | md5sum'
    const before = await kit.sh(a, vm, sums)
    await kit.sh(a, vm, writer)
    if (mode === 'precopy') await kit.sh(a, vm, dirty(2))
    const tls = how === 'TLS'
    const t = begin(m)
    const progress: number[] = []
    const { report } = await move(
      kit,
      m.request,
      a,
      b,
      { mirrors, tls, mode },
      {
        ...t,
        arrivals: t.arrivals(tls),
        ports: { progress: (p) => progress.push(p.disk_remaining_bytes ?? -1) },
      },
    )
    expect(report.how).toBe(mode)
    expect(report.phases.map((p) => p.phase)).toContain('mirror')
    expect(progress.some((left) => left > 0)).toBe(true)
    expect(t.placement).toMatchObject({ host: b, epoch: 2 })
    expect(await a.migration.ask(vm)).toEqual({ is: 'gone' })
    // The old files are away: whatever is read from now on comes from here.
    for (const d of m.request.disks) for (const v of d.chain) await a.volumes.delete(m.from, v)
    expect(await kit.sh(b, vm, 'md5sum </fill/kept')).toBe(kept)
    await kit.sh(b, vm, 'echo 3 >/proc/sys/vm/drop_caches')
    expect(await kit.sh(b, vm, sums)).toBe(before)
    // It wrote on through the switch: the last block that it counted is on the disk, and so is every one before.
    const last = Number(await kit.sh(b, vm, 'cat /fill/last'))
    expect(last).toBeGreaterThan(10)
    const blocks = (
      await kit.sh(b, vm, "dd if=/dev/vda bs=512 skip=8192 count=512 2>/dev/null | grep -ao 'block [0-9]*'")
    )
      .split('\n')
      .map((l) => Number(l.slice(6)))
    const highest = Math.max(...blocks)
    expect(highest).toBeGreaterThanOrEqual(last)
    const expected = Array.from({ length: Math.min(last, 500) }, (_, i) => last - i).filter((n) => n > 0)
    expect(expected.filter((n) => !blocks.includes(n) && !blocks.includes(n + 512))).toEqual([])
    // Sparse as they were; nobody can write into them from outside any more.
    const [root] = m.arrived as [VolumeDefinition]
    expect((await stat(b.volumes.path(m.to, root))).blocks * 512).toBeLessThan(24 * MIB)
    expect(await b.running(vm)?.execute('query-block-exports')).toEqual([])
    // What it writes now is written here: it starts from it.
    await kit.sh(b, vm, 'echo after the move | dd of=/dev/vdb conv=fsync 2>/dev/null')
    await b.stop(vm)
    expect((await readFile(b.volumes.path(m.to, m.arrived[1] as VolumeDefinition))).subarray(0, 14).toString()).toBe(
      'after the move',
    )
  })

  test('it breaks while disks are copied: it runs on where it was, and nothing is left', async () => {
    const { a, b } = kit
    const m = await withDisks()
    const { vm } = await kit.start(a, m.request)
    const kept = await kit.sh(a, vm, TICKS)
    await kit.sh(
      a,
      vm,
      'for i in 0 8 16 24; do dd if=/fill/kept of=/dev/vda bs=1M seek=$i conv=fsync 2>/dev/null; done',
    )
    await kit.sh(a, vm, writer)
    // A write is under way at any time: QEMU does not bear that when a mirror is ended by force (still.ts).
    for (const disk of ['vda', 'vdb'])
      await kit.sh(
        a,
        vm,
        `(while :; do dd if=/fill/kept of=/dev/${disk} bs=64k seek=100 count=8 conv=notrunc,fsync; done) >/dev/null 2>&1 &`,
      )
    const limits = { max_stall_ms: 5_000, bandwidth_bytes_per_s: 4 * MIB }
    for (const how of ['cancel', 'kill', 'cancel', 'cancel'] as const) {
      const t = begin(m)
      const cancel = new AbortController()
      const under_way = Promise.withResolvers<void>()
      const moving = move(
        kit,
        m.request,
        a,
        b,
        { mirrors, limits },
        {
          ...t,
          arrivals: t.arrivals(),
          signal: cancel.signal,
          ports: { progress: (p) => (p.disk_remaining_bytes ?? 0) > 0 && under_way.resolve() },
        },
      )
      moving.catch(() => {})
      await under_way.promise
      // One disk after the other.
      await until('both mirrors', async () => (await jobsAt(vm)).length === 2)
      if (how === 'cancel') cancel.abort(new Error('not wanted any more'))
      else process.kill(b.running(vm)?.pid ?? 0, 'SIGKILL')
      await expect(moving).rejects.toThrow()
      await until('the target to be undone', async () => (await b.migration.ask(vm)).is === 'gone')
      await until('its volumes to go', async () => t.undone.length > 0)
      expect(await a.observe(vm)).toMatchObject({ state: 'running' })
      expect(await jobsAt(vm)).toEqual([])
      expect((await nodesAt(vm)).filter((n) => n.startsWith('mir-'))).toEqual([])
      for (const v of m.arrived) expect(await b.volumes.exists(m.to, v)).toBe(false)
      const was = Number(await kit.sh(a, vm, 'cat /fill/last'))
      await new Promise((resolve) => setTimeout(resolve, 300))
      expect(Number(await kit.sh(a, vm, 'cat /fill/last'))).toBeGreaterThan(was)
    }
    // And then it goes.
    const t = begin(m)
    await move(kit, m.request, a, b, { mirrors }, { ...t, arrivals: t.arrivals() })
    expect(await kit.sh(b, vm, 'md5sum </fill/kept')).toBe(kept)
  })

  test('its daemon dies while disks are copied: the next one ends the mirrors', async () => {
    const { a, b } = kit
    const m = await withDisks()
    const { vm } = await kit.start(a, m.request)
    const job = 'job-cccccccccc'
    const leaving = await a.migration.leave(vm, { job, tls: false, mirrors }, never)
    for (const v of m.arrived) {
      await b.volumes.create(m.to, v, { signal: never })
      await b.volumes.grant(m.to, v, { uid: m.uid })
    }
    const arriving = await b.migration.arrive(
      {
        job,
        mode: 'precopy',
        may_postcopy: false,
        tls: false,
        listen: '127.0.0.1',
        request: { ...m.moved, epoch: 2 },
        facts: leaving.facts,
        mirrors: Object.fromEntries(m.moved.disks.map((d) => [d.name, { pool: m.to, volume: d.chain[0] as never }])),
      },
      never,
    )
    const ready = Promise.withResolvers<void>()
    const order = {
      mode: 'precopy' as const,
      to: arriving.accepted,
      limits: { max_stall_ms: 1_000, bandwidth_bytes_per_s: MIB },
    }
    const copying = leaving.copy(
      order,
      { progress: () => {}, phase: (p) => void (p === 'copy' && ready.resolve()), log: () => {} },
      never,
    )
    copying.catch(() => {})
    await ready.promise
    expect(await jobsAt(vm)).toHaveLength(2)
    // Another half of the same move, which knows nothing but what QEMU has.
    const again = await a.migration.rejoinLeaving(vm, job)
    await again?.takeBack()
    await expect(copying).rejects.toThrow()
    expect(await jobsAt(vm)).toEqual([])
    expect((await nodesAt(vm)).filter((n) => n.startsWith('mir-'))).toEqual([])
    await leaving.close()
    await again?.close()
    expect(await a.observe(vm)).toMatchObject({ state: 'running' })
    const { address } = arriving.accepted.exports as { address: MoveAddress }
    expect(address.host).toBe('127.0.0.1')
    await arriving.undo()
    await new Promise<void>((resolve, reject) => {
      const socket = createConnection(address.port, address.host, () => reject(new Error('it still listens')))
      socket.once('error', () => resolve())
    })
  })

  test('rooms that do not fit are refused before anything is copied', async () => {
    const m = await withDisks()
    await kit.start(kit.a, m.request)
    m.arrived[1] = { ...(m.arrived[1] as VolumeDefinition), size_bytes: 16 * MIB }
    const t = begin(m)
    await expect(
      move(kit, m.request, kit.a, kit.b, { mirrors }, { ...t, arrivals: t.arrivals() }),
    ).rejects.toMatchObject({ fault: { code: 'wrong_state', effect: 'none' } })
    expect(t.undone).toEqual(['undone'])
  })

  test('a paused guest goes as it is, there and back, and goes on when it is told to', async () => {
    const { a, b } = kit
    const m = await withDisks()
    const { vm } = await kit.start(a, m.request)
    const kept = await kit.sh(a, vm, TICKS)
    await kit.sh(a, vm, 'dd if=/fill/kept of=/dev/vda bs=1M conv=fsync 2>/dev/null')
    await a.pause(vm, 'user')
    const t = begin(m)
    const { report } = await move(kit, m.request, a, b, { mirrors }, { ...t, arrivals: t.arrivals() })
    expect(report).toMatchObject({ paused: true, stall_ms: 0 })
    expect(t.placement).toMatchObject({ host: b, epoch: 2 })
    expect(await a.migration.ask(vm)).toEqual({ is: 'gone' })
    expect(await b.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    // Its disks lie where only the second host looks; for the way back the pool of that is everybody's.
    await move(kit, { ...m.moved, epoch: 2 }, b, a)
    expect(await a.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    await a.resume(vm)
    await until('the agent', async () => (await a.observe(vm)).agent === 'connected')
    expect(await kit.sh(a, vm, 'md5sum </fill/kept')).toBe(kept)
    await kit.sh(a, vm, 'echo 3 >/proc/sys/vm/drop_caches')
    expect(await kit.sh(a, vm, 'dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum')).toBe(kept)
  })

  test('a paused guest whose move is cancelled stays paused', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    await kit.sh(a, vm, TICKS)
    await a.pause(vm, 'user')
    const cancel = new AbortController()
    const limits = { max_stall_ms: 5_000, bandwidth_bytes_per_s: 4 * MIB }
    const ports = { progress: () => cancel.abort(new Error('not wanted any more')) }
    await expect(move(kit, request, a, b, { limits }, { signal: cancel.signal, ports })).rejects.toThrow()
    expect(await a.observe(vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    await a.resume(vm)
    expect(await a.observe(vm)).toMatchObject({ state: 'running' })
  })

  test('UEFI variables and a TPM go with it', async () => {
    const { a, b } = kit
    if (!(await firmwareKinds()).includes('uefi') || !tpmPrograms()) return
    const wanted = await kit.request()
    const request: LaunchRequest = {
      ...wanted,
      spec: { ...wanted.spec, firmware: { kind: 'uefi' }, tpm: true },
    }
    const plan = await a.plan(request)
    await a.prepare(plan, never)
    await a.launch(plan, 'fresh', never)
    const { vm } = request
    // It is no matter to QEMU whether a system has booted: the firmware writes its variables and measures into the TPM by itself.
    const state = (name: string) => `${kit.dir}/${name}/vms/${vm}/state`
    const empty = await readFile(plan.local.firmware?.vars ?? '')
    const written = async () => !(await readFile(`${state('a')}/nvram.fd`)).equals(empty)
    await until('the firmware to write its variables', written, 60_000)
    // On a busy machine it goes on writing them for a while; what it writes later only the target has.
    for (let last = Buffer.alloc(0); ; ) {
      const now = await readFile(`${state('a')}/nvram.fd`)
      if (now.equals(last)) break
      last = now
      await new Promise((resolve) => setTimeout(resolve, 5_000))
    }
    const { placement } = await move(kit, request, a, b)
    expect(placement).toMatchObject({ host: b, epoch: 2 })
    expect(await a.migration.ask(vm)).toEqual({ is: 'gone' })
    expect(await b.observe(vm)).toMatchObject({ state: 'running' })
    const [before, after] = await Promise.all(['a', 'b'].map((n) => readFile(`${state(n)}/nvram.fd`)))
    expect(after?.equals(before as Buffer)).toBe(true)
    // Not what every new VM begins with.
    expect(after?.equals(empty)).toBe(false)
    // Its permanent state, with the same keys: the seeds are in it.
    expect((await stat(`${state('b')}/tpm/tpm2-00.permall`)).size).toBe(
      (await stat(`${state('a')}/tpm/tpm2-00.permall`)).size,
    )
    // It starts from what came.
    await b.stop(vm)
    const again = await b.plan({ ...request, epoch: 2 })
    await b.prepare(again, never)
    await b.launch(again, 'fresh', never)
    expect(await b.observe(vm)).toMatchObject({ state: 'running' })
  })
})
