/** A VM whose QEMU ended though nobody asked for it is started again by its policy, and not in a tight loop. */
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import type { VmCreate } from '@wadah/api/schema/vm'
import { type Clock, systemClock } from '@wadah/store/clock'
import { isDue, restartAfter, type Restart } from '../src/vms/restart.ts'
import { caller, room } from './kit/cluster.ts'

describe('when it is started again', () => {
  const MOST_MS = 300_000
  test.each([
    [undefined, 0, 1, 2_000],
    [{ tries: 1, at_ms: 0 }, 1_000, 2, 4_000],
    [{ tries: 5, at_ms: 0 }, 0, 6, 64_000],
    [{ tries: 9, at_ms: 0 }, 0, 10, MOST_MS],
    // It ran for long enough.
    [{ tries: 9, at_ms: 0 }, 600_000, 1, 2_000],
  ] as const)('after %j, having run for %i ms: try %i, in %i ms', (before, ran, tries, wait) => {
    expect(restartAfter(before, ran, 7)).toEqual({ tries, at_ms: 7 + wait })
  })
  test('one that ends at once is started ever less often, and never given up', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(599_999), { maxLength: 60 }), (runs) => {
        let last: Restart | undefined
        let wait = 0
        for (const ran of runs) {
          last = restartAfter(last, ran, 0)
          expect(last.at_ms).toBeGreaterThanOrEqual(wait)
          expect(last.at_ms).toBeLessThanOrEqual(MOST_MS)
          wait = last.at_ms
        }
      }),
    )
  })
  test('a clock that was set back makes nobody wait for a day', () => {
    const next = restartAfter(undefined, 0, 86_400_000)
    expect([isDue(next, next.at_ms - 1), isDue(next, next.at_ms), isDue(next, 0)]).toEqual([false, true, true])
  })
})

describe('in the room', () => {
  let r: Awaited<ReturnType<typeof room>>
  let skew_ms = 0
  const clock: Clock = {
    ...systemClock,
    now_ms: () => systemClock.now_ms() + skew_ms,
    // Only the look of each second.
    timer: (fn, ms) => systemClock.timer(fn, ms === 1_000 ? 10 : ms),
  }
  beforeEach(async () => {
    skew_ms = 0
    r = await room(undefined, clock)
  })
  afterEach(async () => {
    await r.close()
  })
  const create = (body: VmCreate) => r.done(r.vms.create(caller, { ...body, start: true }))
  const vm = () => r.vms.get(caller, 'one')
  const later = (ms = 100) => new Promise((resolve) => setTimeout(resolve, ms))
  const is = (status: object) => vi.waitFor(() => expect(vm().status).toMatchObject(status), { timeout: 3_000 })
  /** Its QEMU is killed. */
  function crash(by: object = { reason: 'QEMU ended by itself (SIGKILL)' }) {
    const { id } = vm()
    r.world.running.delete(id)
    r.world.tell({ vm: id, state: 'stopped', at_ms: clock.now_ms(), ...by })
  }

  test('killed: said when it is started again, then started; the next time it waits longer', async () => {
    await create({ name: 'one' })
    crash()
    await is({ state: 'stopped', reason: 'QEMU ended by itself (SIGKILL)', restart_try: 1 })
    expect(Date.parse(vm().status.restart_at ?? '') - clock.now_ms()).toBeGreaterThan(1_000)
    const { attention } = await r.host.get()
    expect(attention.find((a) => a.about === 'VM one')?.detail).toContain('started again by itself (try 1)')
    await later()
    expect(vm().status.state).toBe('stopped')
    skew_ms += 2_001
    await is({ state: 'running' })
    expect('restart_at' in vm().status).toBe(false)
    crash()
    await is({ state: 'stopped', restart_try: 2 })
    skew_ms += 2_001
    await later()
    expect(vm().status.state).toBe('stopped')
    skew_ms += 2_000
    await is({ state: 'running' })
  })
  test('what is looked at again while it waits does not make it forgotten', async () => {
    await create({ name: 'one' })
    crash()
    await is({ state: 'stopped', restart_try: 1 })
    r.world.tell({ vm: vm().id, state: 'stopped', reason: 'QEMU ended', at_ms: clock.now_ms() })
    await is({ reason: 'QEMU ended', restart_try: 1 })
    skew_ms += 2_001
    await is({ state: 'running' })
  })
  test('a start that fails is tried again, later', async () => {
    await create({ name: 'one' })
    r.world.planFails = true
    crash()
    await is({ restart_try: 1 })
    skew_ms += 3_000
    await is({ state: 'stopped', restart_try: 2 })
    r.world.planFails = false
    skew_ms += 4_001
    await is({ state: 'running' })
  })
  test('not where it says never; nor one that its guest or its user switched off, nor once it is not wanted any more', async () => {
    await create({ name: 'one', restart: 'never' })
    expect(vm().restart).toBe('never')
    crash()
    await is({ state: 'stopped' })
    expect('restart_at' in vm().status).toBe(false)
    await r.vms.edit(caller, 'one', { restart: 'on_failure' }, undefined)
    skew_ms += 2_001
    await is({ state: 'running' })
    crash({ by_guest: true })
    await is({ state: 'stopped' })
    skew_ms += 600_000
    await later()
    expect(vm()).toMatchObject({ wanted: 'stopped', status: { state: 'stopped' } })
    await r.done(r.vms.start(caller, 'one'))
    await r.done(r.vms.stop(caller, 'one'))
    skew_ms += 600_000
    await later()
    expect(vm().status.state).toBe('stopped')
  })
  test('`stop` ends the waiting; what is not wanted any more is not started', async () => {
    await create({ name: 'one' })
    crash()
    await is({ restart_try: 1 })
    expect(r.vms.get(caller, 'one').actions?.stop).toEqual({ ok: true })
    await r.done(r.vms.stop(caller, 'one'))
    expect(vm()).toMatchObject({ wanted: 'stopped', status: { state: 'stopped' } })
    expect('restart_at' in vm().status).toBe(false)
    skew_ms += 600_000
    await later()
    expect(vm().status.state).toBe('stopped')
  })
  test('a store that was put back places here what ran elsewhere since: it is not started by itself', async () => {
    await create({ name: 'one' })
    await r.end()
    // This host let it go, or ran it with another epoch.
    r.world.epoch = 7
    r.world.running.clear()
    r.world.seen = []
    r = await room(r, clock)
    await is({ state: 'stopped' })
    expect('restart_at' in vm().status).toBe(false)
  })
  test('none is started again while, and after, its host goes down', async () => {
    await create({ name: 'one' })
    crash()
    await is({ restart_try: 1 })
    await r.host.stopGuests(caller, {})
    await vi.waitFor(() => expect('restart_at' in vm().status).toBe(false), { timeout: 3_000 })
    skew_ms += 600_000
    await later()
    expect(vm()).toMatchObject({ wanted: 'running', status: { state: 'stopped' } })
  })
  test('a daemon that was started anew goes on with it, and finds what ended meanwhile; a machine that was started anew does not', async () => {
    await create({ name: 'one' })
    const again = async (boot: string) => {
      await r.end()
      r.world.boot = boot
      r.world.running.clear()
      r.world.seen = []
      r = await room(r, clock)
    }
    await again('boot-1')
    await is({ state: 'stopped', reason: 'it ended while wadahd was not running', restart_try: 1 })
    await again('boot-1')
    skew_ms += 2_001
    await is({ state: 'running' })
    crash()
    await is({ state: 'stopped', restart_try: 2 })
    await again('boot-2')
    skew_ms += 600_000
    await later()
    expect(vm().status.state).toBe('stopped')
    expect('restart_at' in vm().status).toBe(false)
  })
})
