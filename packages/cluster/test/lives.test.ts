/** Verdicts in each state, shutdown, what runs beside a copy, deletion against use at the same moment, adoption. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Observed } from '@wadah/ports/machine'
import type { VmCreate } from '@wadah/api/schema/vm'
import { put } from '@wadah/store/store'
import { type ImageRecord, type StatusRecord, imageKind, poolKind, statusKind, vmKind } from '../src/records.ts'
import { startVm } from '../src/vms/jobs.ts'
import { adoptAll, statusAfter, sweepTaps } from '../src/vms/keeper.ts'
import { IMAGE, POOL, caller, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})

const create = (body: VmCreate) => r.done(r.vms.create(caller, body))
const refused = (work: Promise<unknown>, fault: object) => expect(work).rejects.toMatchObject({ fault })
const state = (name: string) => r.vms.get(caller, name).status.state
const settled = async (name: string, wanted: string) => {
  for (let i = 0; i < 200 && state(name) !== wanted; i++) await new Promise((resolve) => setTimeout(resolve, 5))
  expect(state(name)).toBe(wanted)
}

describe('the life of a VM', () => {
  test('start, pause, resume, shutdown, start, stop: each in its state only', async () => {
    await create({ name: 'one' })
    for (const work of [
      r.vms.stop(caller, 'one'),
      r.vms.shutdown(caller, 'one', {}),
      r.vms.pause(caller, 'one'),
      r.vms.resume(caller, 'one'),
      r.vms.reset(caller, 'one'),
    ])
      await refused(work, { code: 'wrong_state', effect: 'none' })
    await r.done(r.vms.start(caller, 'one'))
    expect(r.vms.get(caller, 'one')).toMatchObject({ wanted: 'running', status: { state: 'running', pid: 42 } })
    expect((await r.vms.pause(caller, 'one')).status).toMatchObject({ state: 'paused', paused_by: 'user' })
    expect(r.vms.get(caller, 'one').wanted).toBe('paused')
    for (const work of [r.vms.pause(caller, 'one'), r.vms.start(caller, 'one'), r.vms.shutdown(caller, 'one', {})])
      await refused(work, { code: 'wrong_state' })
    expect((await r.vms.resume(caller, 'one')).status.state).toBe('running')
    await r.done(r.vms.shutdown(caller, 'one', {}))
    await settled('one', 'stopped')
    expect(r.vms.get(caller, 'one').wanted).toBe('stopped')
    await r.done(r.vms.start(caller, 'one'))
    await r.done(r.vms.stop(caller, 'one'))
    await settled('one', 'stopped')
    expect(r.vms.get(caller, 'one').status).not.toHaveProperty('pid')
  })

  test('a start that was cut off after its guest ran is done, whatever could not be prepared again', async () => {
    await create({ name: 'one', start: true })
    const { id } = r.vms.get(caller, 'one')
    r.world.planFails = true
    const again = async () => {
      const { engine } = r.cluster
      const target = { kind: 'vm', id, name: 'one' }
      const subject = 'root'
      const job = await engine.submit(startVm, { vm: id, name: 'one' }, { subject, target, project: 'default' })
      return (await engine.wait(job.id, { timeout_ms: 10_000 })).state
    }
    expect(await again()).toBe('done')
    expect([...r.world.running]).toEqual([id])
    await r.done(r.vms.stop(caller, 'one'))
    await settled('one', 'stopped')
    expect(await again()).toBe('failed')
  })

  test('a guest that hears no button: its agent, or the plug, or a refusal', async () => {
    await create({ name: 'one', start: true })
    r.world.deaf = 'wholly'
    await expect(r.done(r.vms.shutdown(caller, 'one', { timeout_s: 1 }))).rejects.toThrow('still runs')
    expect(state('one')).toBe('running')
    await r.done(r.vms.shutdown(caller, 'one', { timeout_s: 1, force: true }))
    await settled('one', 'stopped')
    r.world.deaf = 'button'
    await r.done(r.vms.start(caller, 'one'))
    await r.done(r.vms.shutdown(caller, 'one', { timeout_s: 2 }))
    await settled('one', 'stopped')
  })

  test('RAM is promised once', async () => {
    for (const name of ['a', 'b']) await create({ name, memory_mib: 5000 })
    await r.done(r.vms.start(caller, 'a'))
    await expect(r.done(r.vms.start(caller, 'b'))).rejects.toThrow('at most 8192 MiB')
    await settled('b', 'stopped')
  })

  test('an image that is not ready is refused', async () => {
    const image = r.view.get(imageKind, IMAGE)?.value as ImageRecord
    await r.store.txn([], [put(imageKind, IMAGE, { ...image, ready: false })], 't')
    await r.view.waitFor(await r.store.current())
    await refused(r.vms.create(caller, { name: 'x', image: 'web' }), { code: 'wrong_state', field: '/image' })
  })

  test('a linked clone in another pool, a full one there', async () => {
    await r.storage.createPool(caller, { name: 'other', path: '/srv/other' })
    const body = { name: 'x', image: 'web', pool: 'other' }
    await refused(r.vms.create(caller, body), { code: 'invalid', field: '/clone' })
    await create({ ...body, clone: 'full' })
    await refused(r.storage.deletePool(caller, 'other', undefined), { code: 'in_use' })
  })

  test('what cannot be waited for is refused', async () => {
    const body = { name: 'x', image: 'web', start: true, wait_ready: true }
    await refused(r.vms.create(caller, { ...body, start: false }), { code: 'invalid', field: '/wait_ready' })
    await refused(r.vms.create(caller, { ...body, nics: [] }), { code: 'invalid', field: '/wait_ready' })
    await refused(r.vms.create(caller, { ...body, nics: [{ network: 'user' }] }), {
      code: 'invalid',
      field: '/wait_ready',
    })
    await create({ ...body, nics: [{ network: 'user', publish: [{ port: 8080, to: 80 }] }] })
  })

  test('thirty clones, thirty starts and thirty deletions at once', async () => {
    await create({ name: 'one', image: 'web', memory_mib: 256 })
    for (let i = 0; i < 30; i++) await r.done(r.vms.clone(caller, 'one', { name: `c${i}` }))
    const all = <T>(work: (name: string) => Promise<T>) =>
      Promise.all(Array.from({ length: 30 }, (_, i) => work(`c${i}`)))
    await all((name) => r.done(r.vms.start(caller, name)))
    expect(r.vms.list(caller, { state: 'running' }).items).toHaveLength(30)
    await all((name) => r.done(r.vms.delete(caller, name, { force: true }, undefined)))
    expect([r.world.running.size, r.world.taps.size, r.world.files.size]).toEqual([0, 0, 2])
  })
})

describe('while a disk is copied', () => {
  test('its VM is not started, it is not deleted and not given to another', async () => {
    await create({ name: 'one', disk_mib: 5 })
    await r.done(r.storage.createVolume(caller, { name: 'free', size_mib: 5 }))
    const { promise, resolve } = Promise.withResolvers<void>()
    r.world.copying = promise
    const jobs = [
      r.storage.cloneVolume(caller, 'one-root', { name: 'c1' }),
      r.storage.cloneVolume(caller, 'free', { name: 'c2' }),
    ]
    await Promise.all(jobs)
    await r.view.waitFor(await r.store.current())
    await refused(r.vms.start(caller, 'one'), { code: 'busy' })
    await refused(r.vms.delete(caller, 'one', {}, undefined), { code: 'busy' })
    await refused(r.storage.deleteVolume(caller, 'free', undefined), { code: 'busy' })
    await refused(r.vms.create(caller, { name: 'x', disks: [{ volume: 'free' }] }), {
      code: 'busy',
      field: '/disks/0/volume',
    })
    resolve()
    for (const job of jobs) await r.done(job)
    await r.done(r.vms.start(caller, 'one'))
    await r.done(r.storage.deleteVolume(caller, 'free', undefined))
  })
})

describe('while an image is copied', () => {
  test.each([
    ['by a VM', () => r.vms.create(caller, { name: 'full', image: 'web', clone: 'full' }), 'in_use'],
    ['by a volume', () => r.storage.cloneVolume(caller, 'image-web', { name: 'full' }), 'busy'],
  ] as const)('%s, it is not deleted; after that it may go', async (_who, copy, code) => {
    const { promise, resolve } = Promise.withResolvers<void>()
    r.world.copying = promise
    const job = copy()
    await job
    await r.view.waitFor(await r.store.current())
    await refused(r.images.delete(caller, 'web', undefined), { code })
    expect(r.images.get(caller, 'web').ready).toBe(true)
    resolve()
    await r.done(job)
    await r.done(r.images.delete(caller, 'web', undefined))
  })
  test('a clone asked for while it is deleted: one of them wins', async () => {
    const all = await Promise.allSettled([
      r.done(r.images.delete(caller, 'web', undefined)),
      r.done(r.storage.cloneVolume(caller, 'image-web', { name: 'c', clone: 'linked' })),
    ])
    expect(all.map((a) => a.status).sort()).toEqual(['fulfilled', 'rejected'])
  })
})

describe('somebody edits at the same moment', () => {
  test('a start and an edit: the VM runs by one of the two specs, and says so', async () => {
    await create({ name: 'one', disks: [{ size_mib: 5 }] })
    const all = await Promise.allSettled([
      r.done(r.vms.start(caller, 'one')),
      r.vms.edit(caller, 'one', { remove_disks: ['disk1'], cpus: 2 }, undefined),
    ])
    expect(all[0].status).toBe('fulfilled')
    const { spec, status } = r.vms.get(caller, 'one')
    expect([spec.disks.length, spec.cpus, status.pending_restart]).toEqual(
      all[1].status === 'fulfilled' ? [0, 2, []] : [1, 1, []],
    )
  })
  test('pause, resume and stop are done all the same', async () => {
    await create({ name: 'one', start: true })
    for (const work of [
      () => r.vms.pause(caller, 'one'),
      () => r.vms.resume(caller, 'one'),
      () => r.done(r.vms.stop(caller, 'one')),
    ]) {
      const [, done] = await Promise.allSettled([
        r.vms.edit(caller, 'one', { labels: { n: `${Math.random()}` } }, undefined),
        work(),
      ])
      expect(done).toMatchObject({ status: 'fulfilled' })
    }
    await settled('one', 'stopped')
    expect(r.vms.get(caller, 'one').wanted).toBe('stopped')
  })
})

describe('deletion and use at the same moment', () => {
  const both = async (remove: () => Promise<unknown>, use: () => Promise<unknown>) => {
    const [gone, used] = await Promise.allSettled([remove(), use()])
    return [gone.status, used.status]
  }
  test('of a pool: one of them wins', async () => {
    await r.storage.createPool(caller, { name: 'p', path: '/srv/p' })
    const won = await both(
      () => r.storage.deletePool(caller, 'p', undefined),
      () => r.done(r.storage.createVolume(caller, { name: 'v', size_mib: 5, pool: 'p' })),
    )
    expect(won.sort()).toEqual(['fulfilled', 'rejected'])
  })
  test('of a pool while its folder is being removed: the volume is refused', async () => {
    await r.storage.createPool(caller, { name: 'p', path: '/srv/p' })
    const { promise, resolve } = Promise.withResolvers<void>()
    r.world.closing = promise
    const deletion = r.storage.deletePool(caller, 'p', undefined)
    for (let i = 0; i < 100 && !r.view.list(poolKind).some((p) => p.value.closing); i++)
      await new Promise((next) => setTimeout(next, 2))
    for (const work of [
      r.storage.createVolume(caller, { name: 'v', size_mib: 5, pool: 'p' }),
      r.vms.create(caller, { name: 'v', disk_mib: 5, pool: 'p' }),
      r.images.build(caller, { recipe: 'web', name: 'i', pool: 'p' }),
    ])
      await refused(work, { code: 'wrong_state', field: '/pool' })
    resolve()
    await deletion
    expect(r.view.list(poolKind).map((p) => p.id)).toEqual([POOL])
  })
  test('of a pool that cannot go: it is as it was', async () => {
    await r.storage.createPool(caller, { name: 'p', path: '/srv/p' })
    r.world.closing = Promise.reject(new Error('busy'))
    await expect(r.storage.deletePool(caller, 'p', undefined)).rejects.toThrow()
    r.world.closing = undefined
    await r.done(r.storage.createVolume(caller, { name: 'v', size_mib: 5, pool: 'p' }))
  })
  test('of a pool an image is built into', async () => {
    await r.storage.createPool(caller, { name: 'p', path: '/srv/p' })
    const { promise, resolve } = Promise.withResolvers<void>()
    r.world.copying = promise
    const build = r.images.build(caller, { recipe: 'web', name: 'i', pool: 'p' })
    await build
    await r.view.waitFor(await r.store.current())
    await refused(r.storage.deletePool(caller, 'p', undefined), { code: 'in_use' })
    await refused(r.images.delete(caller, 'i', undefined), { code: 'busy' })
    expect(r.images.get(caller, 'i').ready).toBe(false)
    resolve()
    await r.done(build)
  })
  test('of an image, a network, a base: never both', async () => {
    const cases: [() => Promise<unknown>, () => Promise<unknown>][] = [
      [() => r.done(r.images.delete(caller, 'web', undefined)), () => create({ name: 'x', image: 'web', nics: [] })],
      [() => r.networks.delete(caller, 'default', undefined), () => create({ name: 'y', nics: [{}] })],
    ]
    for (const [remove, use] of cases) expect((await both(remove, use)).sort()).toEqual(['fulfilled', 'rejected'])
    await r.done(r.storage.createVolume(caller, { name: 'base', size_mib: 5 }))
    const won = await both(
      () => r.done(r.storage.deleteVolume(caller, 'base', undefined)),
      () => r.done(r.storage.cloneVolume(caller, 'base', { name: 'top', clone: 'linked' })),
    )
    expect(won.sort()).toEqual(['fulfilled', 'rejected'])
  })
  test('the same deletion twice at once: one job, and nothing is stuck', async () => {
    await r.done(r.storage.createVolume(caller, { name: 'v', size_mib: 5 }))
    const twice = await Promise.allSettled([1, 2].map(() => r.done(r.storage.deleteVolume(caller, 'v', undefined))))
    expect(twice.some((t) => t.status === 'fulfilled')).toBe(true)
    expect(r.storage.listVolumes(caller, {}).items.map((v) => v.name)).toEqual(['image-web'])
  })
})

describe('two at once', () => {
  test('networks get subnets of their own, one folder is one pool', async () => {
    const nets = await Promise.all(['a', 'b', 'c'].map((name) => r.networks.create(caller, { name, kind: 'nat' })))
    expect(new Set(nets.map((n) => n.subnet)).size).toBe(3)
    await refused(r.networks.create(caller, { name: 'd', kind: 'nat', subnet: '10.1.0.128/25' }), {
      code: 'address_taken',
      field: '/subnet',
    })
    const pools = await Promise.allSettled(
      ['/srv/p', '/srv/./p/', '/srv//p'].map((path, i) => r.storage.createPool(caller, { name: `p${i}`, path })),
    )
    expect(pools.filter((p) => p.status === 'fulfilled')).toHaveLength(1)
  })
})

describe('statuses', () => {
  const seen = (more: Partial<Observed>): Observed => ({ vm: 'vm-aaaaaaaaaa', at_ms: 2000, state: 'running', ...more })
  const before: StatusRecord = {
    schema: 1,
    state: 'running',
    since_ms: 1000,
    started_ms: 900,
    pid: 7,
    agent: 'unknown',
    ready_ms: 50,
    booted: { cpus: 1, memory_mib: 512, disks: [], nics: [] },
  }
  test.each<[string, StatusRecord | undefined, Observed, Partial<StatusRecord> | undefined]>([
    ['nothing new', before, seen({ pid: 7, agent: 'unknown' }), undefined],
    [
      'the agent came',
      before,
      seen({ pid: 7, agent: 'connected' }),
      { agent: 'connected', since_ms: 1000, started_ms: 900, ready_ms: 50 },
    ],
    [
      'paused',
      before,
      seen({ state: 'paused', paused_by: 'io-error', reason: 'full', pid: 7 }),
      { paused_by: 'io-error', reason: 'full', since_ms: 2000, booted: before.booted as never },
    ],
    [
      'another pause',
      { ...before, state: 'paused', paused_by: 'user' },
      seen({ state: 'paused', paused_by: 'io-error', pid: 7 }),
      { since_ms: 2000 },
    ],
    [
      'what its guest was shown, first told by a daemon that is newer than its start',
      before,
      seen({ pid: 7, agent: 'unknown', machine: 'pc-q35-7.2', cpu_flags: ['popcnt'] }),
      { machine: 'pc-q35-7.2', cpu_flags: ['popcnt'], since_ms: 1000, ready_ms: 50 },
    ],
    [
      'what is known of it already is no news',
      { ...before, machine: 'pc-q35-7.2', cpu_flags: ['popcnt'] },
      seen({ pid: 7, agent: 'unknown', machine: 'pc-q35-7.2', cpu_flags: ['popcnt'] }),
      undefined,
    ],
    ['the first of all', undefined, seen({ pid: 7 }), { state: 'running', since_ms: 2000 }],
  ])('%s', (_what, was, now, expected) => {
    const after = statusAfter(was, now)
    if (expected === undefined) expect(after).toBeUndefined()
    else expect(after).toMatchObject(expected)
  })
  test('stopped: nothing of what ran is kept', () => {
    const was = { ...before, machine: 'pc-q35-7.2', cpu_flags: ['popcnt'] }
    expect(statusAfter(was, seen({ state: 'stopped', reason: 'exit code 1', pid: 7, agent: 'connected' }))).toEqual({
      schema: 1,
      state: 'stopped',
      reason: 'exit code 1',
      since_ms: 2000,
    })
  })
  test('of another QEMU than the one that is recorded: when it was started is its own, but of a guest that moved', () => {
    const was: StatusRecord = { schema: 1, state: 'running', since_ms: 1, started_ms: 10, pid: 7, ready_ms: 5 }
    const now = seen({ pid: 8, started_ms: 900 })
    expect(statusAfter(was, now)).toMatchObject({ pid: 8, started_ms: 900 })
    expect(statusAfter(was, now)).not.toHaveProperty('ready_ms')
    expect(statusAfter(was, now, true)).toMatchObject({ pid: 8, started_ms: 10, ready_ms: 5 })
  })
  test('a guest that switches itself off is wanted stopped, one that is killed is not', async () => {
    for (const name of ['off', 'killed']) await create({ name, start: true })
    const [off, killed] = ['off', 'killed'].map((name) => r.vms.get(caller, name).id) as [string, string]
    for (const id of [off, killed]) r.world.running.delete(id)
    r.world.tell({ vm: off, at_ms: 1, state: 'stopped', by_guest: true })
    r.world.tell({ vm: killed, at_ms: 1, state: 'stopped', reason: 'ended by SIGKILL' })
    await settled('off', 'stopped')
    await settled('killed', 'stopped')
    expect([r.vms.get(caller, 'off').wanted, r.vms.get(caller, 'killed').wanted]).toEqual(['stopped', 'running'])
    expect((await r.host.get()).attention).toMatchObject([{ about: 'VM killed' }])
  })
})

describe('adoption', () => {
  test('what runs is kept, what ended is said to have ended, one in trouble keeps no other', async () => {
    for (const name of ['runs', 'ended', 'odd', 'off']) await create({ name, start: name !== 'off' })
    const id = (name: string) => r.vms.get(caller, name).id
    r.world.running.delete(id('ended'))
    r.world.odd.add(id('odd'))
    await adoptAll(r.cluster.deps)
    await r.view.waitFor(await r.store.current())
    expect(['runs', 'ended', 'odd', 'off'].map(state)).toEqual(['running', 'stopped', 'unknown', 'stopped'])
    // Not known is not ended: nothing of it was cleaned, and it says why.
    expect(r.vms.get(caller, 'odd').status.reason).toContain('could not find out whether it runs')
    expect(r.world.running.has(id('odd'))).toBe(true)
    expect(r.vms.get(caller, 'ended').status.reason).toContain('while wadahd was not running')
    expect(r.vms.get(caller, 'off').status.reason).toBeUndefined()
    expect(r.view.list(statusKind)).toHaveLength(r.view.list(vmKind).length)
  })
})

test('taps that nobody runs behind are swept at a start; those of VMs that run, or could not be looked at, stay', async () => {
  await create({ name: 'up', start: true })
  await create({ name: 'doubt' })
  const doubt = r.vms.get(caller, 'doubt').id
  const status = r.view.get(statusKind, doubt)?.value as StatusRecord
  await r.store.txn([], [put(statusKind, doubt, { ...status, state: 'unknown' })], 'u')
  await r.view.waitFor(await r.store.current())
  const kept = [`${r.vms.get(caller, 'up').id}/net1`, `${doubt}/net1`]
  for (const tap of [...kept, 'vm-gonegonego/net1']) r.world.taps.add(tap)
  await sweepTaps(r.cluster.deps)
  expect([...r.world.taps].sort()).toEqual(kept.sort())
})
