/** Whole moves of a real guest between two machines: both state machines, QEMU to QEMU over loopback. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { HostMachine } from '../../src/engine/machine.ts'
import { type PairKit, TICKS, dirty, move, pairKit, ticksOf } from './kit.ts'

describe('a move', () => {
  let kit: PairKit
  beforeAll(async () => {
    kit = await pairKit()
  })
  afterEach(async () => {
    await kit.clear()
  })
  afterAll(async () => {
    await kit.close()
  })

  /** What the guest kept: its memory, its disk, its clock; and that it lives in one place only. */
  async function intact(at: HostMachine, elsewhere: HostMachine, vm: string, sum: string) {
    expect(await elsewhere.observe(vm)).toMatchObject({ state: 'stopped' })
    expect(await elsewhere.migration.ask(vm)).toEqual({ is: 'gone' })
    expect(await at.observe(vm)).toMatchObject({ state: 'running', agent: 'connected' })
    expect(await kit.sh(at, vm, 'md5sum </fill/kept')).toBe(sum)
    const mark = `m${Date.now()}`
    await kit.sh(at, vm, `printf %-512s ${mark} | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null`)
    expect(await kit.sh(at, vm, 'head -c 20 /dev/vda')).toContain(mark)
    const before = ticksOf((await at.serialLog(vm, 4_096)).text).at(-1) ?? 0
    await new Promise((resolve) => setTimeout(resolve, 200))
    expect(ticksOf((await at.serialLog(vm, 4_096)).text).at(-1)).toBeGreaterThan(before)
  }

  test.each([
    ['plain', false, 0],
    ['TLS', true, 0],
    ['TLS, writing', true, 4],
  ] as const)('pre-copy, %s', async (_what, tls, mib) => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    if (mib > 0) await kit.sh(a, vm, dirty(mib))
    const { report, placement } = await move(kit, request, a, b, { tls })
    console.log(
      JSON.stringify({
        ...report,
        phases: report.phases.map((p) => `${p.phase} ${Math.round((p.end_ms ?? 0) - p.begin_ms)}`),
      }),
    )
    expect(report.how).toBe('precopy')
    expect(report.stall_ms).toBeGreaterThan(0)
    expect(report.clock.samples).toBeGreaterThan(0)
    expect(placement).toMatchObject({ host: b, epoch: 2, sealed: false, log: ['sealed', 'moved'] })
    await intact(b, a, vm, sum)
    await b.stop(vm)
  })

  test('there and back twenty times', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    let at: { request: LaunchRequest; from: HostMachine; to: HostMachine } = { request, from: a, to: b }
    const stalls: number[] = []
    for (let i = 0; i < 20; i++) {
      const { report } = await move(kit, at.request, at.from, at.to, { tls: i % 2 === 0 })
      stalls.push(report.stall_ms)
      at = { request: { ...at.request, epoch: at.request.epoch + 1 }, from: at.to, to: at.from }
    }
    console.log(`stalls: ${stalls.join(' ')}`)
    await intact(at.from, at.to, vm, sum)
    await at.from.stop(vm)
  })
})
