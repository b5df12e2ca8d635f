/** VMs start with the host and shut down with it: over a machine that can be started anew. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { VmCreate } from '@wadah/api/schema/vm'
import { hostKind, statusKind } from '../src/records.ts'
import { caller, room } from './kit/cluster.ts'

type Room = Awaited<ReturnType<typeof room>>
let r: Room
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})
const create = (body: VmCreate) => r.done(r.vms.create(caller, body))
const states = () => Object.fromEntries(r.vms.list(caller, {}).items.map((v) => [v.name, v.status.state]))
const wanted = () => Object.fromEntries(r.vms.list(caller, {}).items.map((v) => [v.name, v.wanted]))
const jobs = (kind: string) => r.jobs.list(caller, {}).items.filter((j) => j.kind === kind)

/** The daemon ends; with `boot`, the machine too, and comes up again. */
async function again(boot?: string): Promise<void> {
  await r.end()
  if (boot !== undefined) {
    r.world.boot = boot
    r.world.running.clear()
    r.world.taps.clear()
  }
  r.world.seen = []
  r = await room(r)
}
async function ended(kind: string) {
  const [job] = jobs(kind)
  const record = await r.cluster.engine.wait(job!.id, { timeout_ms: 10_000 })
  await r.view.waitFor(await r.store.current())
  return record
}

describe('when the host has come up', () => {
  test('VMs with autostart start, in order; the others do not, and that is said', async () => {
    await create({ name: 'late', autostart: { enabled: true, order: 20 } })
    await create({ name: 'early', autostart: { enabled: true, order: 10 }, start: true })
    await create({ name: 'plain', start: true })
    await create({ name: 'off' })
    await again('boot-2')
    const job = await ended('host.autostart')
    expect([job.state, job.result]).toEqual(['done', { done: ['early', 'late'], failed: [] }])
    expect(states()).toEqual({ early: 'running', late: 'running', off: 'stopped', plain: 'stopped' })
    const { attention } = await r.host.get()
    expect(attention.filter((a) => a.about.startsWith('VM'))).toEqual([
      {
        about: 'VM plain',
        detail: 'It should run and is stopped: the host was started anew.',
        remedy: 'wadah vm start plain; to start it with the host: wadah vm edit plain --autostart',
      },
    ])
  })
  test('one boot starts them once: a new daemon starts nothing, also not what was stopped meanwhile', async () => {
    await create({ name: 'one', autostart: { enabled: true } })
    await again('boot-2')
    await ended('host.autostart')
    await r.done(r.vms.stop(caller, 'one'))
    await again()
    expect([states(), jobs('host.autostart').length]).toEqual([{ one: 'stopped' }, 1])
    await again('boot-3')
    await r.cluster.engine.wait(jobs('host.autostart')[0]!.id, { timeout_ms: 10_000 })
    await r.view.waitFor(await r.store.current())
    expect([states(), jobs('host.autostart').length]).toEqual([{ one: 'running' }, 2])
  })
  test('a host that is seen for the first time starts nothing', async () => {
    expect(r.view.get(hostKind, r.cluster.hostId)?.value.boot).toEqual({ id: 'boot-1', store: r.store.id })
    expect(jobs('host.autostart')).toEqual([])
  })
  test('one that fails keeps no other', async () => {
    await create({ name: 'broken', disk_mib: 10, autostart: { enabled: true, order: 1 } })
    await create({ name: 'good', autostart: { enabled: true, order: 2 } })
    const { spec } = r.vms.get(caller, 'broken')
    for (const f of [...r.world.files]) if (f.includes(spec.disks[0]!.volume)) r.world.files.delete(f)
    await again('boot-2')
    const job = await ended('host.autostart')
    expect(job).toMatchObject({ state: 'done', result: { done: ['good'], failed: [{ vm: 'broken' }] } })
    expect(states()).toEqual({ broken: 'stopped', good: 'running' })
  })
})

describe('when the host goes down', () => {
  const stop = async (body = {}) => {
    const job = await r.host.stopGuests(caller, body)
    const record = await r.cluster.engine.wait(job.id, { timeout_ms: 20_000 })
    await r.view.waitFor(await r.store.current())
    return record
  }
  test('guests shut down in the reverse order, and stay wanted', async () => {
    await create({ name: 'first', autostart: { enabled: true, order: 1 }, start: true })
    await create({ name: 'last', autostart: { enabled: true, order: 9 }, start: true })
    await create({ name: 'off' })
    const order: string[] = []
    r.view.subscribe((changes) => {
      for (const c of changes)
        if (
          c.kind === statusKind.name &&
          c.type === 'put' &&
          (c.rec?.value as { state?: string } | undefined)?.state === 'stopped'
        )
          order.push(r.vms.get(caller, c.id).name)
    })
    const record = await stop()
    expect(record).toMatchObject({ state: 'done', result: { done: ['first', 'last'], failed: [] } })
    expect(order).toEqual(['last', 'first'])
    expect(wanted()).toEqual({ first: 'running', last: 'running', off: 'stopped' })
    expect(jobs('vm.shutdown').length).toBe(2)
    await again('boot-2')
    await ended('host.autostart')
    expect(states()).toEqual({ first: 'running', last: 'running', off: 'stopped' })
  })
  test('by itself a guest that powers off is wanted stopped, as before', async () => {
    await create({ name: 'one', start: true })
    await r.done(r.vms.shutdown(caller, 'one', {}))
    expect(wanted()).toEqual({ one: 'stopped' })
  })
  test('one that is paused goes on first; one that is deaf loses its plug when the time is over', async () => {
    await create({ name: 'one', start: true })
    await r.vms.pause(caller, 'one')
    expect((await stop()).result).toEqual({ done: ['one'], failed: [] })
    await r.done(r.vms.start(caller, 'one'))
    r.world.deaf = 'wholly'
    expect((await stop({ timeout_s: 1, total_s: 1 })).result).toEqual({ done: ['one'], failed: [] })
    expect([states(), wanted()]).toEqual([{ one: 'stopped' }, { one: 'running' }])
  })
  test('starts that are still under way are called off', async () => {
    await create({ name: 'a', autostart: { enabled: true, order: 1, delay_s: 3600 } })
    await create({ name: 'b', autostart: { enabled: true, order: 2 } })
    await again('boot-2')
    await new Promise<void>((resolve) => {
      const off = r.view.subscribe(() => states()['a'] === 'running' && resolve())
      if (states()['a'] === 'running') resolve()
      void off
    })
    expect((await stop()).result).toEqual({ done: ['a'], failed: [] })
    expect([states(), jobs('host.autostart')[0]?.state]).toEqual([{ a: 'stopped', b: 'stopped' }, 'cancelled'])
  })
  test('cut off by the end of the daemon it is over: a host that has come up does not go on shutting down', async () => {
    await create({ name: 'one', start: true })
    r.world.deaf = 'wholly'
    await r.host.stopGuests(caller, { timeout_s: 60 })
    await new Promise<void>((resolve) => {
      if (jobs('vm.shutdown').length > 0) resolve()
      r.view.subscribe(() => jobs('vm.shutdown').length > 0 && resolve())
    })
    await again('boot-2')
    r.world.deaf = false
    const job = await ended('host.stop-guests')
    expect(['failed', 'cancelled']).toContain(job.state)
    await ended('vm.shutdown')
    expect(wanted()).toEqual({ one: 'running' })
  })
})
