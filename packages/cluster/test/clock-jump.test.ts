/** The wall clock is set by a day, either way, while VMs start with the host and jobs run: waits go by the other clock. */
import { afterEach, expect, test } from 'vitest'
import { type Clock, systemClock } from '@wadah/store/clock'
import { caller, room } from './kit/cluster.ts'

const DAY_MS = 86_400_000
let wall_ms = 0
const clock: Clock = { ...systemClock, now_ms: () => systemClock.now_ms() + wall_ms }
let r: Awaited<ReturnType<typeof room>>
afterEach(async () => {
  wall_ms = 0
  await r.close()
})

test.each([DAY_MS, -DAY_MS])('by %d ms', async (ms) => {
  r = await room(undefined, clock)
  for (const [name, order] of [
    ['a', 1],
    ['b', 2],
  ] as const)
    await r.done(r.vms.create(caller, { name, autostart: { enabled: true, order, delay_s: 1 } }))
  await r.end()
  r.world.boot = 'boot-2'
  r.world.seen = []
  r = await room(r, clock)
  const state = (name: string) => r.vms.get(caller, name).status.state
  await new Promise<void>((resolve) => {
    const look = () => state('a') === 'running' && resolve()
    r.view.subscribe(look)
    look()
  })
  // In the middle of the delay between the two.
  wall_ms = ms
  const job = r.jobs.list(caller, {}).items.find((j) => j.kind === 'host.autostart')!
  const ended = await r.cluster.engine.wait(job.id, { timeout_ms: 10_000 })
  expect([ended.state, ended.result]).toEqual(['done', { done: ['a', 'b'], failed: [] }])
  await r.done(r.vms.shutdown(caller, 'a', { timeout_s: 5 }))
  // The same key is the same request also when the day is another.
  const once = { ...caller, idempotency: { key: 'k', digest: 'd' } }
  const first = await r.vms.start(once, 'a')
  await r.done(Promise.resolve(first))
  wall_ms = 0
  expect((await r.jobs.replay(once))?.id).toBe(first.id)
})
