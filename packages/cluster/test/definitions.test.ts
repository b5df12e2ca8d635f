/** Every job definition of this room under the generic test: each step twice, failure at each, undo, a crash after each. */
import { describe, expect, test } from 'vitest'
import type { Store, Write } from '@wadah/store/store'
import { del, put } from '@wadah/store/store'
import { type Deps, forward } from '../src/context.ts'
import { autostartJob, stopGuestsJob } from '../src/host/jobs.ts'
import { buildImage, deleteImage } from '../src/images/jobs.ts'
import { type JobDefinition, defineJob, pivot, step } from '../src/jobs/define.ts'
import { checkJob } from '../src/jobs/testing.ts'
import {
  type ImageRecord,
  type VmRecord,
  type VolumeRecord,
  type SnapshotRecord,
  imageKind,
  indexKeys,
  indexKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { deleteSnapshot, revertSnapshot, takeSnapshot } from '../src/snapshots/jobs.ts'
import { deleteVolumeJob, makeVolumeJob } from '../src/storage/jobs.ts'
import { resizeVolumeJob } from '../src/storage/resize.ts'
import { type CreatePlan, assemble } from '../src/vms/create.ts'
import { type ShutdownParams, createVm, deleteVm, shutdownVm, startVm, stopVm } from '../src/vms/jobs.ts'
import { Pending } from '../src/pending.ts'
import { unwarmImage, warmImage } from '../src/warm/jobs.ts'
import { BASE, CachedView, HOST, IMAGE, POOL, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const VM = 'vm-aaaaaaaaaa'
const ROOT = 'vol-rootrootaa'
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }

function vmRecord(): VmRecord {
  return {
    ...named,
    id: VM,
    name: 'one',
    description: '',
    labels: {},
    wanted: 'stopped',
    spec: {
      cpus: 1,
      memory_mib: 512,
      machine: 'q35',
      boot: { kind: 'disk' },
      disks: [{ name: 'root', volume: ROOT, limits: {} }],
      nics: [
        {
          name: 'net1',
          network: 'net-aaaaaaaaaa',
          mac: '52:54:00:00:00:09',
          address: '10.1.0.11',
          publish: [],
          limits: {},
        },
      ],
      limits: {},
      balloon_mib: null,
      seed: { hostname: 'one', has_password: true, ssh_keys: [] },
      image: IMAGE,
      service: { kind: 'http', port: 80, path: '/' },
      uid: 5000,
    },
  }
}
const root = (making: boolean): VolumeRecord => ({
  ...named,
  id: ROOT,
  name: 'one-root',
  pool: POOL,
  format: 'qcow2',
  size_bytes: 2 ** 30,
  base: BASE,
  vm: VM,
  read_only: false,
  ...(making ? { making: true } : {}),
})

/** A world with the ground and these records and files. */
function world(writes: Write[], files: string[], more: (w: FakeWorld) => void = () => {}) {
  return async (store: Store) => {
    const w = new FakeWorld()
    w.files.add(`${POOL}/${BASE}.qcow2`)
    for (const f of files) w.files.add(`${POOL}/${f}`)
    more(w)
    const below = ground().filter((g) => !writes.some((w) => w.kind === g.kind && w.id === g.id))
    await store.txn([], [...below, ...writes], `ground-${Math.random()}`)
    const view = await CachedView.open(store)
    return { deps: (s: Store) => fakeDeps(s, view, w), snapshot: () => w.snapshot(), close: () => view.close() }
  }
}

/** What differs between runs by its nature. */
function records(all: Record<string, unknown>): unknown {
  return JSON.parse(
    JSON.stringify(all, (key, value) =>
      ['since_ms', 'started_ms', 'ready_ms', 'created_at', 'modified', 'created', 'version'].includes(key) ? 0 : value,
    ),
  )
}

/** Its records are committed together with the job: here a step of its own stands for that commit. */
function withCommit<P>(
  definition: JobDefinition<P, Deps>,
  writes: readonly Write[],
  params: P,
  before: readonly Write[] = [],
): JobDefinition<P, Deps> {
  const first = step<P, Deps>('committed', {
    do: (ctx) => ctx.commit(writes),
    undo: (ctx) =>
      ctx.commit(
        writes.map((w) => before.find((b) => b.kind === w.kind && b.id === w.id) ?? del({ name: w.kind }, w.id)),
      ),
  })
  const { name, version, parse, steps, pivotAt: _, ...options } = definition
  // The generic test expects every step to run.
  const wanted = steps.filter((s) => s.when?.(params, () => undefined) ?? true)
  return defineJob<P, Deps>(name, version, parse, [first, ...wanted], options)
}

const planDeps = {
  hostId: 'host-aaaaaaaaaa',
  clock: { now_ms: () => 1000 },
  view: { get: () => undefined },
} as unknown as Deps

function plan(start: boolean, wait: boolean): CreatePlan {
  const deps = planDeps
  const disk = { name: 'root', volume: root(true), limits: {}, from: { volume: BASE, how: 'linked' as const } }
  return assemble(deps, new Pending(), vmRecord(), [disk], { password: 'secret-password' }, start, wait)
}

/** A VM that is there, stopped, with its file. */
function standing(): Write[] {
  const { writes } = plan(false, false)
  return [
    ...writes.filter((w) => w.kind !== 'volume' && w.kind !== 'vm/status'),
    put(volumeKind, ROOT, root(false)),
    { op: 'put', kind: 'vm/status', id: VM, value: { schema: 1, state: 'stopped', since_ms: 0 } },
  ]
}
const target = { kind: 'vm', id: VM, name: 'one' }
const vm = { vm: VM, name: 'one' }

describe('jobs leave all or nothing', () => {
  test.each([
    ['plain', false, false],
    ['started', true, false],
    ['started and waited for', true, true],
  ])(
    'vm.create, %s',
    async (_what, start, wait) => {
      const { params, writes } = plan(start, wait)
      const tried = await checkJob({
        definition: withCommit(createVm, writes, params),
        params,
        target,
        records,
        world: world([], []),
        everyCall: !wait,
      })
      expect(tried.length).toBeGreaterThan(10)
    },
    120_000,
  )

  test('vm.start', async () => {
    await checkJob({
      definition: startVm,
      params: vm,
      target,
      records,
      world: world(standing(), [`${ROOT}.qcow2`], (w) => w.folders.add(VM)),
    })
  }, 60_000)

  test.each(['delta', 'full', 'attached'] as const)(
    'vm.create from disks that are there: %s',
    async (how) => {
      const other: VolumeRecord = { ...root(false), id: 'vol-cccccccccc', name: 'other' }
      const { vm: _, base: __, ...free } = other
      const source: VolumeRecord = how === 'delta' ? { ...other, vm: 'vm-otherother' } : free
      const name = put(indexKind, indexKeys.name('volume', 'default', 'other'), { schema: 1, holder: other.id })
      const there = how === 'attached' ? [] : [put(volumeKind, source.id, source), name]
      const record = vmRecord()
      if (how === 'attached') record.spec.disks = [{ name: 'root', volume: other.id, limits: {} }]
      const disk =
        how === 'attached'
          ? { name: 'root', volume: { ...free, vm: VM }, limits: {} }
          : { name: 'root', volume: root(true), limits: {}, from: { volume: source.id, how } }
      const attached = (_: unknown, id: string) =>
        how === 'attached' && id === free.id
          ? { id, value: free }
          : id === free.pool
            ? { id, value: { name: 'default', shared: true } }
            : undefined
      const deps = { ...planDeps, view: { get: attached, list: () => [] } } as unknown as Deps
      const { params, writes } = assemble(deps, new Pending(), record, [disk], undefined, true, false)
      const begin = how === 'attached' ? [put(volumeKind, free.id, free), name] : there
      await checkJob({
        definition: withCommit(createVm, writes, params, begin),
        params: how === 'delta' ? { ...params, source: 'vm-otherother' } : params,
        target,
        records,
        world: world(begin, [`${other.id}.qcow2`]),
      })
    },
    120_000,
  )

  // vm.shutdown can be cancelled, and a guest that heard the button goes down all the same: nothing to undo. Tried as if it could not.
  test('vm.shutdown', async () => {
    const { name, version, parse, steps, pivotAt: _, ...options } = shutdownVm
    const inner = steps[0]?.do as (ctx: never) => Promise<{ how: string }>
    const definition = defineJob<ShutdownParams, Deps>(
      name,
      version,
      parse,
      [pivot('shutdown', { do: (ctx) => forward(() => inner(ctx as never)) })],
      options,
    )
    await checkJob({
      definition,
      params: { ...vm, timeout_s: 10, force: true },
      target,
      records,
      world: world(standing(), [`${ROOT}.qcow2`], (w) => {
        w.folders.add(VM)
        w.running.add(VM)
      }),
    })
  }, 60_000)
  // The host's own: each asks for jobs of VMs, which stand for themselves. Nothing to undo, so tried as if they could not be.
  test.each(['host.autostart', 'host.stop-guests'] as const)(
    '%s',
    async (which) => {
      const starts = which === 'host.autostart'
      const running: Write = {
        op: 'put',
        kind: 'vm/status',
        id: VM,
        value: { schema: 1, state: starts ? 'stopped' : 'running', since_ms: 0 },
      }
      const made = world(
        [...standing().filter((w) => w.kind !== running.kind), running],
        [`${ROOT}.qcow2`],
        (w) => void (starts || w.running.add(VM)),
      )
      const whole = async (store: Store) => {
        const w = await made(store)
        return {
          ...w,
          deps: (s: Store) => {
            const deps = w.deps(s)
            const end = async (id: string) => {
              await deps.machine.clean(id)
              return { before: false }
            }
            const start = async (id: string) => {
              await deps.machine.launch({ record: { vm: id } } as never, 'fresh', new AbortController().signal)
              return { before: false }
            }
            deps.children = { start, stop: end, shutdown: end, migrate: start }
            return deps
          },
        }
      }
      const asPivot = <P>(d: JobDefinition<P, Deps>) => {
        const { name, version, parse, steps, pivotAt: _, onCrash: __, ...options } = d
        const inner = steps[0]?.do as (ctx: never) => Promise<unknown>
        return defineJob<P, Deps>(
          name,
          version,
          parse,
          [pivot(steps[0]?.name ?? '', { do: (ctx) => forward(() => inner(ctx as never)) })],
          options,
        )
      }
      const host = { kind: 'host', id: HOST }
      if (starts) {
        const params = { host: HOST, boot: 'b', vms: [{ vm: VM, name: 'one', order: 1, delay_s: 0 }] }
        await checkJob({ definition: asPivot(autostartJob), params, target: host, records, world: whole })
      } else {
        const params = { host: HOST, each_s: 1, total_s: 1 }
        await checkJob({ definition: asPivot(stopGuestsJob), params, target: host, records, world: whole })
      }
    },
    60_000,
  )
  test('vm.stop', async () => {
    const running = world(standing(), [`${ROOT}.qcow2`], (w) => {
      w.folders.add(VM)
      w.running.add(VM)
    })
    await checkJob({ definition: stopVm, params: vm, target, records, world: running })
  }, 60_000)

  test.each([false, true])(
    'vm.delete, keep_disks %s',
    async (keep_disks) => {
      await checkJob({
        definition: deleteVm,
        params: { ...vm, force: true, keep_disks },
        target,
        records,
        world: world(standing(), [`${ROOT}.qcow2`], (w) => {
          w.folders.add(VM)
          w.running.add(VM)
        }),
      })
    },
    60_000,
  )

  test.each([undefined, 'linked', 'full'] as const)(
    'volume.create %s',
    async (how) => {
      const volume: VolumeRecord = {
        ...named,
        id: 'vol-newnewnewa',
        name: 'v',
        pool: POOL,
        format: 'qcow2',
        size_bytes: 2 ** 30,
        read_only: false,
        making: true,
      }
      const index = indexKeys.name('volume', 'default', 'v')
      const writes = [put(volumeKind, volume.id, volume), put(indexKind, index, { schema: 1, holder: volume.id })]
      const params = { volume: volume.id, name: 'v', ...(how ? { from: { volume: BASE, how } } : {}) }
      await checkJob({ definition: withCommit(makeVolumeJob, writes, params), params, records, world: world([], []) })
    },
    60_000,
  )

  test.each(['of its own', 'of a VM that runs'])(
    'volume.resize, %s',
    async (whose) => {
      const live = whose !== 'of its own'
      const size_bytes = 2 ** 31
      const before = put(volumeKind, ROOT, { ...root(false), name: 'v' })
      const growing = put(volumeKind, ROOT, {
        ...root(false),
        name: 'v',
        growing_to: size_bytes,
      } satisfies VolumeRecord)
      const params = { volume: ROOT, name: 'v', size_bytes, ...(live ? { vm: VM } : {}) }
      await checkJob({
        definition: withCommit(resizeVolumeJob, [growing], params, [before]),
        params,
        records,
        world: world([before, ...(live ? [put(vmKind, VM, vmRecord())] : [])], [`${ROOT}.qcow2`], (w) => {
          if (live) w.running.add(VM)
        }),
      })
    },
    60_000,
  )

  test('volume.delete', async () => {
    const volume: VolumeRecord = { ...root(false), name: 'v' }
    const writes = [
      put(volumeKind, ROOT, volume),
      put(indexKind, indexKeys.name('volume', 'default', 'v'), { schema: 1, holder: ROOT }),
    ]
    await checkJob({
      definition: deleteVolumeJob,
      params: { volume: ROOT, name: 'v' },
      records,
      world: world(writes, [`${ROOT}.qcow2`]),
    })
  }, 60_000)

  test('image.build and image.delete', async () => {
    const id = 'img-newnewnewa'
    const image = {
      ...named,
      id,
      name: 'n',
      kind: 'disk' as const,
      description: '',
      size_bytes: 0,
      min_memory_mib: 1,
      agent: false,
      ready: false,
      has_initrd: false,
      has_kernel: false,
    }
    const writes = [
      put(imageKind, id, image),
      put(indexKind, indexKeys.name('image', 'default', 'n'), { schema: 1, holder: id }),
    ]
    const params = { image: id, name: 'n', recipe: 'web', pool: POOL, volume: 'vol-newnewnewa', refresh: false }
    await checkJob({ definition: withCommit(buildImage, writes, params), params, records, world: world([], []) })
    await checkJob({ definition: deleteImage, params: { image: IMAGE, name: 'web' }, records, world: world([], []) })
  }, 60_000)
})

describe('warm images', () => {
  const LAYER = 'vol-warmwarmwa'
  const index = (key: string, holder: string) => put(indexKind, key, { schema: 1, holder })
  const layer: VolumeRecord = {
    ...named,
    id: LAYER,
    name: 'image-web-warm',
    pool: POOL,
    format: 'qcow2',
    size_bytes: 2 ** 30,
    base: BASE,
    image: IMAGE,
    read_only: true,
  }
  const key = indexKeys.name('volume', 'default', 'image-web-warm')
  const image = ground().find((w) => w.kind === imageKind.name && w.op === 'put') as { value: ImageRecord }
  const warm = {
    cpus: 1,
    memory_mib: 512,
    ram_bytes: 4096,
    made_at: '2026-01-01T00:00:00.000Z',
    qemu_version: '7.2.0',
    accelerator: 'tcg' as const,
    boot: { devices: [] } as never,
    volume: LAYER,
  }

  test('image.warm', async () => {
    const made = { ...layer, making: true }
    const writes = [index(indexKeys.uid(5001), VM), put(volumeKind, LAYER, made), index(key, LAYER)]
    const params = {
      image: IMAGE,
      name: 'web',
      vm: VM,
      uid: 5001,
      mac: '52:54:00:00:00:11',
      cpus: 1,
      memory_mib: 512,
      volume: LAYER,
    }
    const same = (all: Record<string, unknown>) =>
      JSON.parse(JSON.stringify(records(all), (k, value) => (k === 'made_at' ? 0 : value)))
    const tried = await checkJob({
      definition: withCommit(warmImage, writes, params),
      params,
      records: same,
      world: world([], []),
    })
    expect(tried.length).toBeGreaterThan(10)
  }, 60_000)

  const isWarm = [put(imageKind, IMAGE, { ...image.value, warm }), put(volumeKind, LAYER, layer), index(key, LAYER)]
  const warmed = (writes: Write[], files: string[] = []) =>
    world(writes, [`${LAYER}.qcow2`, ...files], (w) => void w.warm.add(IMAGE))

  test('image.unwarm', async () => {
    const params = { image: IMAGE, name: 'web', warm }
    const definition = withCommit(unwarmImage, [put(imageKind, IMAGE, image.value)], params, isWarm)
    await checkJob({ definition, params, records, world: warmed(isWarm) })
  }, 60_000)

  test('vm.create of an instant clone: its disk is made together with its start, and goes with it', async () => {
    const record = vmRecord()
    const disk = {
      name: 'root',
      volume: { ...root(true), base: LAYER },
      limits: {},
      from: { volume: LAYER, how: 'linked' as const },
    }
    const { params: plain, writes } = assemble(planDeps, new Pending(), record, [disk], undefined, true, false)
    const params = { ...plain, instant: true as const }
    const tried = await checkJob({
      definition: withCommit(createVm, writes, params),
      params,
      target,
      records,
      world: warmed(isWarm),
    })
    expect(tried.length).toBeGreaterThan(10)
  }, 120_000)
})

describe('a VM', () => {
  test('has one index record for each thing that only one may have', () => {
    const keys = plan(false, false)
      .writes.filter((w) => w.kind === indexKind.name)
      .map((w) => w.id)
    expect(keys.sort()).toEqual([
      'address/net-aaaaaaaaaa/10.1.0.11',
      'mac/52:54:00:00:00:09',
      'name/vm/default/one',
      'name/volume/default/one-root',
      'uid/5000',
    ])
    expect(
      plan(false, false).writes.some((w) => w.kind === vmKind.name && JSON.stringify(w).includes('secret-password')),
    ).toBe(false)
  })

  describe('snapshots', () => {
    const [SNAP, LAYER, HEAD, RAM] = ['snap-aaaaaaaaaa', ROOT, 'vol-headheadaa', 'vol-ramramrama']
    const index = (key: string, holder: string) => put(indexKind, key, { schema: 1, holder })
    const named1 = (name: string) => indexKeys.name('volume', 'default', name)
    const { base: _b, ...bare } = root(false)
    const head: VolumeRecord = { ...bare, id: HEAD, name: 'one-root-s1', base: LAYER, making: true }
    const ram: VolumeRecord = { ...bare, id: RAM, name: 'one-ram-s1', format: 'raw', role: 'ram', making: true }
    const snapshot: SnapshotRecord = {
      ...named,
      id: SNAP,
      name: 's1',
      vm: VM,
      description: '',
      state: 'making',
      spec: vmRecord().spec,
      disks: [{ name: 'root', volume: LAYER }],
    }
    const runs = (w: FakeWorld) => {
      w.folders.add(VM)
      w.running.add(VM)
      w.heads.set(`${VM}/root`, LAYER)
    }
    const params = { vm: VM, vm_name: 'one', snapshot: SNAP, name: 's1' }
    const heads = [{ disk: 'root', from: LAYER, head: HEAD }]

    test.each([
      ['of a VM that is off', false, false],
      ['of one that runs', true, false],
      ['with RAM', true, true],
    ])(
      'snapshot.create %s',
      async (_what, running, withRam) => {
        const writes = [
          put(snapshotKind, SNAP, snapshot),
          index(indexKeys.snapshot(VM, 's1'), SNAP),
          put(volumeKind, HEAD, head),
          index(named1('one-root-s1'), HEAD),
          ...(withRam ? [put(volumeKind, RAM, ram), index(named1('one-ram-s1'), RAM)] : []),
        ]
        const p = { ...params, heads, freeze: 'auto' as const, ran: running, ...(withRam ? { ram: RAM } : {}) }
        // Whether the disks were at rest is not known any more to one who comes after a crash.
        const same = (all: Record<string, unknown>) =>
          JSON.parse(
            JSON.stringify(records(all), (key, value) =>
              ['consistency', 'note', 'frozen_ms', 'stall_ms', 'ram', 'result', 'outputs'].includes(key)
                ? undefined
                : value,
            ),
          )
        await checkJob({
          definition: withCommit(takeSnapshot, writes, p),
          params: p,
          target,
          records: withRam ? () => ({}) : same,
          world: async (store) => {
            const made = await world(standing(), [`${ROOT}.qcow2`], running ? runs : () => {})(store)
            // RAM that was not whole when the daemon died goes; the snapshot of the disks stays, and says so.
            const withoutRam = (all: unknown) => {
              const { files, ...rest } = all as { files: string[] }
              return { ...rest, files: files.filter((f) => !f.includes(RAM)) }
            }
            return { ...made, snapshot: () => withoutRam(made.snapshot()) }
          },
        })
      },
      60_000,
    )

    /** What a step that fails for good is resolved to has its own test: here it is tried again. */
    const unresolved = <P>(d: JobDefinition<P, Deps>): JobDefinition<P, Deps> => ({
      ...d,
      steps: d.steps.map((s) => {
        const { resolve: _resolve, ...rest } = s
        return rest
      }),
    })

    /** One snapshot is there, and the disk goes on in HEAD. */
    const taken = (withRam: boolean): Write[] => {
      const record = vmRecord()
      record.spec.disks = [{ name: 'root', volume: HEAD, limits: {}, serial: LAYER }]
      const boot = { vm: VM, devices: [] } as never
      const saved = { volume: RAM, bytes: 512, boot, qemu_version: '7.2.0', save_ms: 1 }
      const { making: _h, ...there } = head
      const { making: _r, ...kept } = ram
      return [
        ...standing().filter((w) => w.kind !== 'volume' && w.kind !== 'vm/spec' && w.id !== named1('one-root')),
        put(vmKind, VM, { ...record, at_snapshot: SNAP }),
        put(volumeKind, LAYER, { ...root(false), name: 'one-root-s1', role: 'layer' as const, held_bytes: 1 }),
        put(volumeKind, HEAD, { ...there, name: 'one-root' }),
        index(named1('one-root-s1'), LAYER),
        index(named1('one-root'), HEAD),
        put(snapshotKind, SNAP, { ...snapshot, state: 'ready' as const, ...(withRam ? { ram: saved } : {}) }),
        index(indexKeys.snapshot(VM, 's1'), SNAP),
        ...(withRam ? [put(volumeKind, RAM, kept), index(named1('one-ram-s1'), RAM)] : []),
      ]
    }
    const files = [`${LAYER}.qcow2`, `${HEAD}.qcow2`, `${RAM}.raw`]

    test.each([
      ['of a VM that is off', false],
      ['of one that runs', true],
    ])(
      'snapshot.delete %s',
      async (_what, running) => {
        await checkJob({
          definition: unresolved(deleteSnapshot),
          params,
          target,
          records,
          world: world(taken(true), files, (w) => {
            w.kept.add(`${VM}/${SNAP}`)
            if (!running) return
            runs(w)
            w.heads.set(`${VM}/root`, HEAD)
          }),
        })
      },
      60_000,
    )

    test.each([
      ['and off', false, false],
      ['and on', false, true],
      ['with RAM', true, true],
    ])(
      'snapshot.revert %s',
      async (_what, withRam, begin) => {
        const fresh: VolumeRecord = { ...head, id: 'vol-freshfresh', name: 'one-root-now' }
        const writes = [put(volumeKind, fresh.id, fresh), index(named1('one-root-now'), fresh.id)]
        const p = {
          ...params,
          heads: [{ disk: 'root', from: LAYER, head: fresh.id }],
          ram: withRam,
          start: begin,
        }
        await checkJob({
          definition: withCommit(unresolved(revertSnapshot), writes, p),
          params: p,
          target,
          records,
          world: world(taken(withRam), files, (w) => {
            w.kept.add(`${VM}/${SNAP}`)
            runs(w)
            w.heads.set(`${VM}/root`, HEAD)
          }),
        })
      },
      60_000,
    )
  })
})
