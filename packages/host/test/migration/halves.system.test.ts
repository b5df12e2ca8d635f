/** The two halves of a move by hand, without the daemons' protocol. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type PairKit, TICKS, never, pairKit, ticksOf } from './kit.ts'

describe('the halves of a move', () => {
  let kit: PairKit
  beforeAll(async () => {
    kit = await pairKit()
  })
  afterAll(async () => {
    await kit.close()
  })

  test.each([[false], [true]])('pre-copy of an idle guest, TLS: %s', async (tls) => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    const job = 'job-aaaaaaaaaa'
    const leaving = await a.migration.leave(vm, { job, tls }, never)
    const arriving = await b.migration.arrive(
      {
        job,
        mode: 'precopy',
        may_postcopy: false,
        tls,
        listen: '127.0.0.1',
        request: { ...request, epoch: 2 },
        facts: leaving.facts,
      },
      never,
    )
    expect((await b.observe(vm)).state).toBe('incoming')
    const order = { mode: 'precopy' as const, to: arriving.accepted, limits: { max_stall_ms: 300 } }
    const tell = { progress: () => {}, phase: (): undefined => {}, log: () => {} }
    const switched = await leaving.copy(order, tell, never)
    const { run_ms } = await arriving.go(never)
    console.log(
      `tls ${tls}: stall ${(run_ms - (switched.stop_ms ?? Number.NaN)).toFixed(1)} ms, ${JSON.stringify(await leaving.claim())}`,
    )
    await arriving.settle('precopy', never)
    await leaving.quit()
    await leaving.close()
    expect(await a.observe(vm)).toMatchObject({ state: 'stopped' })
    expect(await b.observe(vm)).toMatchObject({ state: 'running', epoch: 2, agent: 'connected' })
    expect(await kit.sh(b, vm, 'md5sum </fill/kept')).toBe(sum)
    expect(
      await kit.sh(b, vm, 'echo hello | dd of=/dev/vda bs=512 conv=fsync,sync 2>/dev/null; head -c 5 /dev/vda'),
    ).toBe('hello')
    const ticks = ticksOf((await b.serialLog(vm, 65_536)).text)
    expect(ticks.length).toBeGreaterThan(3)
    await b.stop(vm)
  })
})
