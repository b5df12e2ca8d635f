/** Snapshots over a fake machine: what is refused, what is recorded, which layers stay, what a schedule does. */
import type { Job } from '@wadah/api/schema/job'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { del, put } from '@wadah/store/store'
import {
  type SnapshotRecord,
  type VolumeRecord,
  indexKeys,
  indexKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { expired, isDue, onSchedule, scheduledName } from '../src/snapshots/schedule.ts'
import type { SnapshotStore } from '../src/snapshots/service.ts'
import { nextTidy, reparent } from '../src/snapshots/tree.ts'
import { BASE, POOL, caller, reader, room } from './kit/cluster.ts'

const DAY_MS = 24 * 3600 * 1000

describe('snapshots', () => {
  let r: Awaited<ReturnType<typeof room>>
  beforeEach(async () => {
    r = await room()
    await r.done(r.vms.create(caller, { name: 'one', image: 'web', memory_mib: 512, disks: [{ size_mib: 64 }] }))
  })
  afterEach(async () => {
    await r.close()
  })
  const vm = () => r.vms.get(caller, 'one')
  const disks = () => Object.fromEntries(vm().spec.disks.map((d) => [d.name, d.volume]))
  const names = () =>
    r.storage
      .listVolumes(caller, { vm: vm().id, limit: 1000 })
      .items.map((v) => v.name)
      .sort()
  const files = () => [...r.world.files].filter((f) => f !== `${POOL}/${BASE}.qcow2`).length
  const take = (body: Parameters<typeof r.snapshots.create>[2] = {}) => r.done(r.snapshots.create(caller, 'one', body))
  const tree = () =>
    r.snapshots.list(caller, 'one').items.map((s, _i, all) => ({
      name: s.name,
      after: all.find((p) => p.id === s.parent)?.name,
      current: s.current,
    }))
  const result = async (job: Promise<Job>) => {
    const { id } = await job
    const ended = await r.cluster.engine.wait(id, { timeout_ms: 10_000 })
    await r.view.waitFor(await r.store.current())
    return ended
  }

  test('of a stopped VM: the disks keep their names and serial numbers, their layers get others', async () => {
    const before = disks()
    await take()
    expect(tree()).toEqual([{ name: 's1', after: undefined, current: true }])
    expect(r.snapshots.get(caller, 'one', 's1')).toMatchObject({ consistency: 'off', state: 'ready' })
    expect(disks()['root']).not.toBe(before['root'])
    expect(vm().spec.disks.map((d) => d.serial)).toEqual([before['root'], before['disk1']])
    expect(names()).toEqual(['one-disk1', 'one-disk1-s1', 'one-root', 'one-root-s1'])
    expect((await r.storage.getVolume(caller, 'one-root')).id).toBe(disks()['root'])
    expect(await r.storage.getVolume(caller, 'one-root-s1')).toMatchObject({
      id: before['root'],
      role: 'layer',
      read_only: true,
    })
    await r.done(r.vms.start(caller, 'one'))
    expect(vm().status.pending_restart).toEqual([])
  })

  test('of a running VM, with RAM and without: recorded as taken, nothing waits for a restart', async () => {
    await r.done(r.vms.start(caller, 'one'))
    await take({ name: 'a', ram: true })
    await take({ name: 'b' })
    expect(tree()).toEqual([
      { name: 'a', after: undefined, current: false },
      { name: 'b', after: 'a', current: true },
    ])
    expect(r.snapshots.get(caller, 'one', 'a')).toMatchObject({ consistency: 'ram', stall_ms: 5, ram_bytes: 4096 })
    expect(r.snapshots.get(caller, 'one', 'b')).toMatchObject({ consistency: 'frozen' })
    expect(vm().status).toMatchObject({ state: 'running', pending_restart: [] })
    expect(r.world.heads.get(`${vm().id}/root`)).toBe(disks()['root'])
  })

  test('RAM that could not be saved: a snapshot of the disks, with the reason, and no volume for it', async () => {
    await r.done(r.vms.start(caller, 'one'))
    r.world.noRam = 'the pool is full'
    const ended = await result(r.snapshots.create(caller, 'one', { ram: true }))
    expect(ended).toMatchObject({ state: 'done' })
    const taken = r.snapshots.get(caller, 'one', 's1')
    expect(taken).toMatchObject({ consistency: 'crash', note: 'the pool is full' })
    expect(taken.ram_bytes).toBeUndefined()
    expect(names()).not.toContain('one-ram-s1')
  })

  test('reverting loses what came after, and branches', async () => {
    await r.done(r.vms.start(caller, 'one'))
    await take({ name: 'a', ram: true })
    const layer = r.snapshots.get(caller, 'one', 'a').disks[0]?.volume
    await take({ name: 'b' })
    await expect(r.snapshots.revert(caller, 'one', 'a', {})).rejects.toThrow(/not stopped/)
    const before = disks()['root'] as string
    await r.done(r.snapshots.revert(caller, 'one', 'a', { force: true }))
    expect(vm().status.state).toBe('running')
    expect(r.view.get(volumeKind, before)).toBeUndefined()
    expect(r.view.get(volumeKind, disks()['root'] as string)?.value.base).toBe(layer)
    expect((await r.storage.getVolume(caller, 'one-root')).id).toBe(disks()['root'])
    await take({ name: 'c' })
    expect(tree()).toEqual([
      { name: 'a', after: undefined, current: false },
      { name: 'b', after: 'a', current: false },
      { name: 'c', after: 'a', current: true },
    ])
    await r.done(r.snapshots.revert(caller, 'one', 'b', { force: true }))
    expect(vm()).toMatchObject({ wanted: 'stopped', status: { state: 'stopped' } })
  })

  test('deleting merges what nobody needs, also under a running guest, which goes on', async () => {
    const start = files()
    const serial = disks()['root']
    await r.done(r.vms.start(caller, 'one'))
    for (const name of ['a', 'b', 'c']) await take({ name, ram: name === 'b' })
    await r.done(r.snapshots.delete(caller, 'one', 'b'))
    expect(tree()).toEqual([
      { name: 'a', after: undefined, current: false },
      { name: 'c', after: 'a', current: true },
    ])
    await r.done(r.snapshots.delete(caller, 'one', 'a'))
    await r.done(r.snapshots.delete(caller, 'one', 'c'))
    expect(tree()).toEqual([])
    expect(files()).toBe(start)
    expect(names()).toEqual(['one-disk1', 'one-root'])
    expect(disks()['root']).toBe(serial)
    expect(r.world.heads.get(`${vm().id}/root`)).toBe(serial)
    expect(vm().status).toMatchObject({ state: 'running', pending_restart: [] })
    expect(r.world.held.size).toBe(0)
    expect([...r.world.kept]).toEqual([])
  })

  test('a layer on which two branches stand stays until one of them is gone', async () => {
    await take({ name: 'a' })
    await take({ name: 'b' })
    await r.done(r.snapshots.revert(caller, 'one', 'a', {}))
    const layer = r.snapshots.get(caller, 'one', 'a').disks[0]?.volume as string
    await r.done(r.snapshots.delete(caller, 'one', 'a'))
    expect(r.view.get(volumeKind, layer)).toBeDefined()
    await r.done(r.snapshots.delete(caller, 'one', 'b'))
    expect(disks()['root']).toBe(layer)
    expect(names()).toEqual(['one-disk1', 'one-root'])
  })

  test("what can't be merged now is merged later, and the VM can be used meanwhile", async () => {
    await take({ name: 'a' })
    r.world.noMerge = 'the pool is full'
    await r.done(r.snapshots.delete(caller, 'one', 'a'))
    expect(tree()).toEqual([])
    expect(names()).toEqual(['one-disk1', 'one-disk1-a', 'one-root', 'one-root-a'])
    await r.done(r.vms.start(caller, 'one'))
    r.world.noMerge = undefined
    const store = r.snapshots as SnapshotStore
    const job = await store.tidy(caller, vm().id)
    if (!job) throw new Error('nothing to tidy')
    await r.done(Promise.resolve(job))
    expect(names()).toEqual(['one-disk1', 'one-root'])
    expect(await store.tidy(caller, vm().id)).toBeUndefined()
  })

  test('a VM goes with its snapshots, and keeps none of its disks while it has some', async () => {
    await take({ name: 'a' })
    await expect(r.vms.delete(caller, 'one', { keep_disks: true }, undefined)).rejects.toThrow(/snapshots/)
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
    expect(files()).toBe(0)
    expect(r.view.list(snapshotKind)).toEqual([])
    expect(r.view.list(volumeKind).map((v) => v.id)).toEqual([BASE])
  })

  test('the image below is in use as long as anything stands on it, layers in between or not', async () => {
    for (const name of ['a', 'b']) await take({ name })
    expect(r.images.get(caller, 'web').used_by).toBe(1)
    await expect(r.images.delete(caller, 'web', undefined)).rejects.toThrow(/one/)
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
    await r.done(r.images.delete(caller, 'web', undefined))
  })

  test('a clone of a VM with snapshots stands on its own', async () => {
    await take({ name: 'a' })
    await r.done(r.vms.clone(caller, 'one', { name: 'two' }))
    const two = r.vms.get(caller, 'two')
    expect(r.view.get(volumeKind, two.spec.disks[0]?.volume ?? '')?.value.base).toBeUndefined()
    expect(r.view.get(vmKind, two.id)?.value.at_snapshot).toBeUndefined()
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
  })

  test('what is refused names what would be right', async () => {
    await expect(r.snapshots.create(caller, 'one', { ram: true })).rejects.toThrow(/off/)
    await expect(r.snapshots.create(reader, 'one', {})).rejects.toThrow(/only look/)
    await take({ name: 'a' })
    await expect(r.snapshots.create(caller, 'one', { name: 'a' })).rejects.toThrow(/already/)
    await expect(r.snapshots.revert(caller, 'one', 'a', { ram: true })).rejects.toThrow(/no RAM/)
    expect(() => r.snapshots.get(caller, 'one', 'b')).toThrow(/no snapshot/)
    await expect(r.vms.edit(caller, 'one', { remove_disks: ['disk1'] }, undefined)).rejects.toThrow(/layers/)
    await expect(r.storage.deleteVolume(caller, 'one-root-a', undefined)).rejects.toThrow(/snapshots/)
    await expect(r.storage.cloneVolume(caller, 'one-root-a', { name: 'x', clone: 'linked' })).rejects.toThrow(
      /snapshots/,
    )
    await expect(r.storage.resizeVolume(caller, 'one-root-a', { size_mib: 4096 })).rejects.toThrow(/snapshots/)
    await expect(r.vms.create(caller, { name: 'two', disks: [{ volume: 'one-root-a' }] })).rejects.toThrow(/snapshots/)
    await r.vms.edit(caller, 'one', { add_disks: [{ size_mib: 8 }] }, undefined)
    await expect(r.snapshots.revert(caller, 'one', 'a', {})).rejects.toThrow(/did not have then/)
  })

  test('layers count as what they take; the pool is not asked to promise each disk over and over', async () => {
    const promised = async () => (await r.storage.getPool(caller, 'default')).promised_bytes
    const before = await promised()
    for (const name of ['a', 'b', 'c']) await take({ name })
    expect(await promised()).toBe(before + 6 * 4096)
  })

  test('a schedule takes one when it is due, once while the VM is off, and lets the oldest of its own go', async () => {
    const { deps } = r.cluster
    const store = r.snapshots as SnapshotStore
    const idle = async () => {
      await r.view.waitFor(await r.store.current())
      for (const { id } of r.jobs.list(caller, {}).items) await r.cluster.engine.wait(id, { timeout_ms: 5_000 })
      await r.view.waitFor(await r.store.current())
    }
    await take({ name: 'mine' })
    const every = { every_minutes: 5, keep_last: 1 }
    await r.vms.edit(caller, 'one', { snapshot_schedule: every }, undefined)
    expect(vm().snapshot_schedule).toEqual(every)
    const scheduled = () =>
      r.snapshots
        .list(caller, 'one')
        .items.filter((s) => s.scheduled)
        .map((s) => s.name)
    const at = async (ms: number) => {
      await onSchedule({ ...deps, clock: { ...deps.clock, now_ms: () => ms } }, store, vm().id, every)
      await idle()
    }
    const now = Date.now()
    await at(now)
    expect(scheduled()).toEqual([scheduledName(Date.now())])
    await at(now + DAY_MS)
    expect(scheduled()).toHaveLength(1)
    await r.done(r.vms.start(caller, 'one'))
    const was = scheduled()
    // As if it had been taken long ago.
    const rec = r.view.list(snapshotKind).find((s) => s.value.name === was[0])
    if (!rec) throw new Error('no snapshot')
    const old: SnapshotRecord = { ...rec.value, name: 'auto-old', created_at: new Date(now - DAY_MS).toISOString() }
    const gone = del(indexKind, indexKeys.snapshot(vm().id, rec.value.name))
    await r.store.txn([], [put(snapshotKind, rec.id, old), gone], 'older')
    await r.view.waitFor(await r.store.current())
    await at(Date.now())
    expect(scheduled()).toEqual(['auto-old', expect.stringMatching(/^auto-2/)])
    await at(Date.now())
    expect(scheduled()).toEqual([expect.stringMatching(/^auto-2/)])
    expect(tree().map((s) => s.name)).toContain('mine')
    await r.vms.edit(caller, 'one', { snapshot_schedule: null }, undefined)
    expect(vm().snapshot_schedule).toBeUndefined()
  })
})

describe('which layer goes', () => {
  const volume = (id: string, over: Partial<VolumeRecord> = {}): VolumeRecord => ({
    schema: 1,
    id,
    name: id,
    project: 'default',
    created_at: '',
    pool: POOL,
    format: 'qcow2',
    size_bytes: 1,
    vm: 'vm',
    read_only: true,
    role: 'layer',
    ...over,
  })
  const head = (id: string, base: string) => {
    const { role: _, ...bare } = volume(id, { base })
    return bare
  }
  const snapshot = (id: string, ...disks: string[]) =>
    ({ id, vm: 'vm', disks: disks.map((d) => ({ name: d, volume: d })) }) as unknown as SnapshotRecord
  const vm = { id: 'vm', disks: [{ volume: 'h' }] }

  test.each<[string, VolumeRecord[], SnapshotRecord[], object | undefined]>([
    ['all are needed', [volume('a'), head('h', 'a')], [snapshot('s', 'a')], undefined],
    ['one child', [volume('a'), head('h', 'a')], [], { kind: 'merge', layer: { id: 'h' }, into: { id: 'a' } }],
    ['two children', [volume('a'), head('h', 'a'), volume('b', { base: 'a' })], [snapshot('s', 'b')], undefined],
    ['no child', [volume('a'), head('h', 'x')], [], { kind: 'delete', layer: { id: 'a' } }],
    [
      'a child that was given up counts no more',
      [volume('a'), head('h', 'a'), volume('b', { base: 'a', dropped: true })],
      [snapshot('s', 'a')],
      { kind: 'delete', layer: { id: 'b' } },
    ],
    ['a base that is no layer', [head('x', 'y'), head('h', 'x')], [], undefined],
    ['another VM stands on it', [volume('a'), { ...head('z', 'a'), vm: 'other' }, head('h', 'x')], [], undefined],
    ['RAM', [volume('r', { role: 'ram' }), head('h', 'x')], [], undefined],
  ])('%s', (_what, volumes, snapshots, expected) => {
    const next = nextTidy(vm, volumes, snapshots)
    if (expected === undefined) expect(next).toBeUndefined()
    else expect(next).toMatchObject(expected)
  })

  test('those after a snapshot that goes come after the one before it', () => {
    const all = [
      { id: 'a' },
      { id: 'b', parent: 'a' },
      { id: 'c', parent: 'b' },
      { id: 'd', parent: 'b' },
    ] as unknown as SnapshotRecord[]
    expect(reparent(all, all[1] as SnapshotRecord)).toEqual([
      { id: 'c', parent: 'a' },
      { id: 'd', parent: 'a' },
    ])
    expect(reparent(all, all[0] as SnapshotRecord)).toEqual([{ id: 'b' }])
  })
})

describe('a schedule', () => {
  const at = (text: string) => Date.parse(text)
  test.each([
    ['none yet', [], true],
    ['just now', ['2026-03-02T11:00:00Z'], false],
    ['long ago', ['2026-03-02T07:00:00Z'], true],
    ['in the future, by a clock that was set back', ['2026-03-02T12:30:00Z'], false],
    ['far in the future', ['2026-03-09T12:00:00Z'], true],
  ])('is due: %s', (_what, times, due) => {
    const taken = times.map((t) => ({ id: t, at_ms: at(t) }))
    expect(isDue({ every_minutes: 240, keep_last: 1 }, taken, at('2026-03-02T12:00:00Z'))).toBe(due)
  })

  test('keeps the newest, one a day, one a week', () => {
    // Two a day for forty days, from a Monday on.
    const taken = Array.from({ length: 80 }, (_, i) => ({
      id: String(i),
      at_ms: at('2026-03-02T01:00:00Z') + i * DAY_MS * 0.5,
    }))
    const gone = new Set(expired({ every_minutes: 720, keep_last: 3, keep_daily: 4, keep_weekly: 3 }, taken))
    const kept = taken.filter((t) => !gone.has(t.id)).map((t) => new Date(t.at_ms).toISOString().slice(0, 13))
    expect(kept).toEqual([
      '2026-03-29T13',
      '2026-04-05T13',
      '2026-04-07T13',
      '2026-04-08T13',
      '2026-04-09T13',
      '2026-04-10T01',
      '2026-04-10T13',
    ])
    expect(expired({ every_minutes: 5, keep_last: 1 }, taken.slice(0, 1))).toEqual([])
  })
})
