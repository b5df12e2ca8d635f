/** Disks that come in and go out: the jobs under the generic test, and what services refuse. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Store, Write } from '@wadah/store/store'
import { del, put } from '@wadah/store/store'
import type { Deps } from '../src/context.ts'
import { importImage, templateImage } from '../src/images/import-jobs.ts'
import { type JobDefinition, defineJob, step } from '../src/jobs/define.ts'
import { checkJob } from '../src/jobs/testing.ts'
import {
  type ImageRecord,
  type PoolRecord,
  type SnapshotRecord,
  type VmRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  poolKind,
  snapshotKind,
  volumeKind,
} from '../src/records.ts'
import { moveVolumeLive } from '../src/storage/move-live.ts'
import { changeVolume, exportVolumes, uploadVolume } from '../src/storage/transfer-jobs.ts'
import { BASE, CachedView, HOST, POOL, caller, fakeDeps, ground, room } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const IMAGE = 'img-newnewnewa'
const VOLUMES = ['vol-newnewneaa', 'vol-newnewneab', 'vol-newnewneac']
const FAST = 'pool-bbbbbbbbbb'
const fast: PoolRecord = {
  ...named,
  id: FAST,
  name: 'fast',
  kind: 'dir',
  path: '/q',
  overcommit: 1,
  direct_io: true,
  host: HOST,
}
const staged = { size_bytes: 1000, sha256: 'c'.repeat(64) }

function world(writes: readonly Write[] = [], more: (w: FakeWorld) => void = () => {}) {
  return async (store: Store) => {
    const w = new FakeWorld()
    w.files.add(`${POOL}/${BASE}.qcow2`)
    more(w)
    await store.txn([], [...ground(), ...writes], `ground-${Math.random()}`)
    const view = await CachedView.open(store)
    return { deps: (s: Store) => fakeDeps(s, view, w), snapshot: () => w.snapshot(), close: () => view.close() }
  }
}

/** Stands for the commit that the job itself was made with. */
function withCommit<P>(definition: JobDefinition<P, Deps>, writes: readonly Write[]): JobDefinition<P, Deps> {
  const first = step<P, Deps>('committed', {
    do: (ctx) => ctx.commit(writes),
    undo: (ctx) => ctx.commit(writes.map((w) => del({ name: w.kind }, w.id))),
  })
  const { name, version, parse, steps, pivotAt: _, ...options } = definition
  return defineJob<P, Deps>(name, version, parse, [first, ...steps], options)
}

const image: ImageRecord = {
  ...named,
  id: IMAGE,
  name: 'n',
  kind: 'disk',
  description: '',
  size_bytes: 0,
  min_memory_mib: 64,
  agent: false,
  ready: false,
  has_initrd: false,
  has_kernel: false,
}
const imageWrites = [
  put(imageKind, IMAGE, image),
  put(indexKind, indexKeys.name('image', 'default', 'n'), { schema: 1, holder: IMAGE }),
]

describe('jobs leave all or nothing', () => {
  test('image.import of a URL', async () => {
    const params = {
      image: IMAGE,
      name: 'n',
      pool: POOL,
      volumes: VOLUMES,
      url: 'https://x/y?token=secret',
      seed: 'nocloud' as const,
    }
    await checkJob({ definition: withCommit(importImage, imageWrites), params, world: world() })
  }, 60_000)

  test('image.template', async () => {
    const volume = (id: string, at: number): VolumeRecord => ({
      ...named,
      id,
      name: `image-n-${at}`,
      pool: POOL,
      format: 'qcow2',
      size_bytes: 2 ** 30,
      image: IMAGE,
      read_only: true,
      making: true,
    })
    const volumes = VOLUMES.slice(0, 2)
    const writes = [
      ...imageWrites,
      ...volumes.flatMap((id, i) => [
        put(volumeKind, id, volume(id, i)),
        put(indexKind, indexKeys.name('volume', 'default', `image-n-${i}`), { schema: 1, holder: id }),
      ]),
    ]
    const params = { image: IMAGE, name: 'n', vm: 'vm-aaaaaaaaaa', volumes, from: [BASE, BASE] }
    await checkJob({ definition: withCommit(templateImage, writes), params, world: world() })
  }, 60_000)

  test('volume.change', async () => {
    const volume: VolumeRecord = {
      ...named,
      id: VOLUMES[0] as string,
      name: 'v',
      pool: POOL,
      format: 'raw',
      size_bytes: 2 ** 20,
      read_only: false,
    }
    const params = {
      volume: volume.id,
      name: 'v',
      from: { pool: POOL, format: 'raw' as const },
      to: { pool: POOL, format: 'qcow2' as const },
    }
    const there = world([put(volumeKind, volume.id, volume)], (w) => w.files.add(`${POOL}/${volume.id}.raw`))
    await checkJob({ definition: changeVolume, params, world: there })
  }, 60_000)

  test('volume.move, of a disk whose VM runs', async () => {
    const [vm, volume] = ['vm-aaaaaaaaaa', VOLUMES[0] as string]
    const record: VolumeRecord = {
      ...named,
      id: volume,
      name: 'v',
      pool: POOL,
      format: 'qcow2',
      size_bytes: 2 ** 20,
      base: BASE,
      vm,
      read_only: false,
    }
    const params = {
      volume,
      name: 'v',
      vm,
      uid: 5000,
      disk: 'root',
      from: { pool: POOL, format: 'qcow2' as const },
      to: { pool: FAST, format: 'qcow2' as const },
    }
    const there = world([put(volumeKind, volume, record), put(poolKind, FAST, fast)], (w) => {
      w.files.add(`${POOL}/${volume}.qcow2`)
      w.running.add(vm)
    })
    // Which job it is differs from run to run.
    const records = (all: Record<string, unknown>) =>
      JSON.parse(JSON.stringify(all).replaceAll(/job-[a-z0-9]+/g, 'job'))
    await checkJob({ definition: moveVolumeLive, params, world: there, records })
  }, 60_000)

  // Both take over what came in before them, or leave what somebody else takes away: the world they begin in counts as without it.
  test('volume.upload', async () => {
    const params = {
      volume: VOLUMES[0] as string,
      name: 'v',
      project: 'default',
      created_at: named.created_at,
      pool: POOL,
      staged,
    }
    const { name, version, parse, steps, pivotAt: _, ...options } = uploadVolume
    const received = step<typeof params, Deps>('received', {
      do: async ({ deps }) => {
        const nothing = (async function* () {})()
        await deps.machine.imports.receive({ id: POOL, path: '/p', direct_io: true }, params.volume, nothing, {
          limit_bytes: 1,
          signal: new AbortController().signal,
        })
      },
      undo: async ({ deps }) => deps.machine.imports.clean({ id: POOL, path: '/p', direct_io: true }, params.volume),
    })
    const definition = defineJob<typeof params, Deps>(name, version, parse, [received, ...steps], options)
    await checkJob({ definition, params, world: world([], (w) => (w.found = [8])) })
  }, 60_000)

  test('volume.export', async () => {
    const params = {
      export: VOLUMES[0] as string,
      name: 'x',
      pool: POOL,
      volumes: [BASE],
      vms: [],
      format: 'raw' as const,
      hardware: {},
    }
    await checkJob({ definition: exportVolumes, params, world: world() })
  }, 60_000)
})

describe('services', () => {
  let r: Awaited<ReturnType<typeof room>>
  beforeEach(async () => {
    r = await room()
  })
  afterEach(async () => {
    await r.close()
  })
  const { signal } = new AbortController()
  const bytes = async function* () {
    yield Buffer.from('abc')
  }

  test('an import makes an image whose VMs have its disks and hardware', async () => {
    await r.done(r.transfers.importUrl(caller, { name: 'ova', url: 'https://x/y.ova?token=secret' }))
    const image = r.images.get(caller, 'ova')
    expect(image).toMatchObject({
      ready: true,
      seed: 'nocloud',
      size_bytes: 24 * 2 ** 20,
      hardware: { cpus: 2, memory_mib: 768, nics: 2 },
      source: { format: 'ova', url: 'https://x/y.ova' },
      notes: ['a note'],
      more_volumes: [expect.any(String)],
    })
    expect(JSON.stringify(image)).not.toContain('secret')
    await r.done(r.vms.create(caller, { name: 'one', image: 'ova', seed: { user_data: '#cloud-config\n{}' } }))
    const { spec } = r.vms.get(caller, 'one')
    expect(spec).toMatchObject({
      cpus: 2,
      memory_mib: 768,
      seed: { kind: 'nocloud', has_user_data: true },
      disks: [{ name: 'root' }, { name: 'disk1' }],
    })
    expect(spec.nics).toHaveLength(2)
    expect(JSON.stringify(r.vms.get(caller, 'one'))).not.toContain('#cloud-config')
    expect(r.images.get(caller, 'ova').used_by).toBe(1)
    await expect(r.images.delete(caller, 'ova', undefined)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
    await r.done(r.images.delete(caller, 'ova', undefined))
    expect([...r.world.files].filter((f) => !f.includes(BASE))).toEqual([])
  })

  test('an upload that becomes nothing leaves nothing', async () => {
    r.world.found = [200 * 1024]
    const job = await r.transfers.importFile(caller, { name: 'big' }, bytes(), signal)
    const ended = await r.cluster.engine.wait(job.id, { timeout_ms: 10_000 })
    expect([ended.state, ended.fault?.code]).toEqual(['failed', 'no_room'])
    expect([...r.world.staged]).toEqual([])
    await expect(r.transfers.importFile(caller, { name: 'web' }, bytes(), signal)).rejects.toMatchObject({
      fault: { code: 'name_taken' },
    })
    expect([...r.world.staged]).toEqual([])
  })

  test('a template of a VM, and why not', async () => {
    await r.done(r.vms.create(caller, { name: 'one', image: 'web', start: true }))
    const asked = () => r.transfers.imageFromVm(caller, { name: 't', vm: 'one' })
    await expect(asked()).rejects.toMatchObject({ fault: { code: 'wrong_state', remedy: 'wadah vm shutdown one' } })
    await r.done(r.vms.stop(caller, 'one'))
    await expect.poll(() => r.vms.get(caller, 'one').status.state).toBe('stopped')
    await r.done(asked())
    expect(r.images.get(caller, 't')).toMatchObject({ ready: true, seed: 'wadah', hardware: { cpus: 1 } })
    await r.done(r.vms.create(caller, { name: 'two', image: 't' }))
  })

  test('volumes that others stand on, or that a VM writes, stay as they are', async () => {
    await r.done(r.storage.createVolume(caller, { name: 'v', size_mib: 8 }))
    await r.done(r.storage.cloneVolume(caller, 'v', { name: 'w', clone: 'linked' }))
    const move = (name: string) => r.transfers.changeVolume(caller, name, { format: 'raw' })
    await expect(move('v')).rejects.toMatchObject({ fault: { code: 'in_use', detail: expect.stringContaining('"w"') } })
    await r.done(move('w'))
    const [w] = r.storage.listVolumes(caller, {}).items.filter((v) => v.name === 'w')
    expect(w).toMatchObject({ format: 'raw' })
    expect(w?.base).toBeUndefined()
    // Its base is free again.
    await r.done(move('v'))
    await expect(move('v')).rejects.toMatchObject({ fault: { code: 'invalid', field: '/format' } })
    await expect(move('image-web')).rejects.toMatchObject({ fault: { code: 'in_use' } })
  })

  describe('a disk whose VM runs', () => {
    const move = () => r.transfers.changeVolume(caller, 'one-root', { pool: 'fast' })
    const disk = () => {
      const found = r.storage.listVolumes(caller, {}).items.find((v) => v.name === 'one-root')
      if (!found) throw new Error('no disk')
      return found
    }
    beforeEach(async () => {
      const name = put(indexKind, indexKeys.name('pool', 'default', 'fast'), { schema: 1, holder: FAST })
      await r.store.txn([], [put(poolKind, FAST, fast), name], 'fast')
      await r.done(r.vms.create(caller, { name: 'one', image: 'web', start: true }))
      await expect.poll(() => r.vms.get(caller, 'one').status.state).toBe('running')
      await r.view.waitFor(await r.store.current())
    })

    test('goes to another pool, and stands by itself there', async () => {
      const { id, base } = disk()
      expect(base).toBe(BASE)
      const job = await move()
      expect((await r.cluster.engine.wait(job.id, { timeout_ms: 10_000 })).result).toMatchObject({ stall_ms: 7 })
      await r.view.waitFor(await r.store.current())
      expect(disk()).toMatchObject({ id, pool: FAST })
      expect(disk().base).toBeUndefined()
      expect([...r.world.files].filter((f) => f.includes(id))).toEqual([`${FAST}/${id}.qcow2`])
      expect([...r.world.aside]).toEqual([])
      expect((await r.store.get(volumeKind, id))?.value.moving_to).toBeUndefined()
      await expect(move()).rejects.toMatchObject({ fault: { code: 'invalid', field: '/pool' } })
    })

    test('the room is promised in both pools meanwhile; cancelled, it stays', async () => {
      const { id, size_bytes } = disk()
      const { promise, resolve } = Promise.withResolvers<void>()
      r.world.copying = promise
      const job = await move()
      await expect.poll(() => r.world.copies.size).toBe(1)
      await r.view.waitFor(await r.store.current())
      expect((await r.storage.getPool(caller, 'fast')).promised_bytes).toBe(size_bytes)
      expect((await r.storage.getPool(caller, 'default')).promised_bytes).toBeGreaterThanOrEqual(size_bytes)
      await expect(r.storage.deletePool(caller, 'fast', undefined)).rejects.toMatchObject({ fault: { code: 'in_use' } })
      await expect(move()).rejects.toMatchObject({ fault: { code: 'busy' } })
      await r.cluster.engine.cancel(job.id)
      resolve()
      expect((await r.cluster.engine.wait(job.id, { timeout_ms: 10_000 })).state).toBe('cancelled')
      await r.view.waitFor(await r.store.current())
      expect(disk()).toMatchObject({ pool: POOL, base: BASE })
      expect([...r.world.files].filter((f) => f.includes(id))).toEqual([`${POOL}/${id}.qcow2`])
      expect((await r.storage.getPool(caller, 'fast')).promised_bytes).toBe(0)
    })

    test('its VM is stopped meanwhile: it stays, and the words say what to do', async () => {
      const { promise, resolve } = Promise.withResolvers<void>()
      r.world.copying = promise
      const job = await move()
      await expect.poll(() => r.world.copies.size).toBe(1)
      await r.done(r.vms.stop(caller, 'one'))
      resolve()
      const ended = await r.cluster.engine.wait(job.id, { timeout_ms: 10_000 })
      expect([ended.state, ended.fault?.code, ended.fault?.effect]).toEqual(['failed', 'wrong_state', 'none'])
      await r.view.waitFor(await r.store.current())
      expect(disk()).toMatchObject({ pool: POOL })
      // The same command, of a VM that is stopped.
      await expect.poll(() => r.vms.get(caller, 'one').status.state).toBe('stopped')
      r.world.copying = undefined
      await r.done(move())
      expect(disk()).toMatchObject({ pool: FAST })
    })

    test('with snapshots it is refused, and where there is no room', async () => {
      const vm = r.vms.get(caller, 'one')
      await expect(
        r.store.get(volumeKind, disk().id).then((rec) => {
          if (!rec) throw new Error('no record')
          return r.store.txn([], [put(volumeKind, rec.id, { ...rec.value, size_bytes: 200 * 2 ** 30 })], 'large')
        }),
      ).resolves.toBeDefined()
      await r.view.waitFor(await r.store.current())
      await expect(move()).rejects.toMatchObject({ fault: { code: 'no_room', field: '/pool' } })
      const snapshot = { ...named, id: 'snap-aaaaaaaaaa', name: 'before', vm: vm.id } as unknown as SnapshotRecord
      await r.store.txn([], [put(snapshotKind, snapshot.id, snapshot)], 'snapshot')
      await r.view.waitFor(await r.store.current())
      await expect(move()).rejects.toMatchObject({
        fault: { code: 'wrong_state', remedy: 'wadah snapshot delete one before' },
      })
    })
  })

  test('an export reads, and takes its file away', async () => {
    const parts: string[] = []
    for await (const part of r.transfers.exportImage(caller, 'web', 'raw', signal)) parts.push(String(part))
    expect(parts).toEqual(['content'])
    expect([...r.world.staged]).toEqual([])
  })

  test.each<[string, Partial<VmRecord['spec']['seed']> & { user_data?: string; user?: string }, string]>([
    ['user-data for a guest without cloud-init', { user_data: '#cloud-config\n' }, '/seed/user_data'],
    ['user-data of no kind', { kind: 'nocloud', user_data: 'hello' }, '/seed/user_data'],
    ['a user for a guest that is told nothing', { kind: 'none', user: 'anna' }, '/seed'],
  ])('%s is refused', async (_what, seed, field) => {
    const create = r.vms.create(caller, { name: 'x', image: 'web', seed: seed as never })
    await expect(create).rejects.toMatchObject({ fault: { code: 'invalid', field } })
  })
})
