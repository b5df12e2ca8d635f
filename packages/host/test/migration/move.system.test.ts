/** Whole moves of a real guest between two machines: both state machines, QEMU to QEMU over loopback. */
import { readdir } from 'node:fs/promises'
import { describe, expect, test, vi } from 'vitest'
import type { WadahError } from '@wadah/api/fault'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { HostMachine } from '../../src/engine/machine.ts'
import { until } from '../engine/kit.ts'
import { type PairKit, type Placement, TICKS, dirty, move, never, ticksOf, usePair, writing } from './kit.ts'

describe('a move', () => {
  let kit: PairKit
  usePair((made) => {
    kit = made
  })

  /** What the guest kept: its memory, its disk, its clock; and that it lives in one place only. */
  async function intact(at: HostMachine, elsewhere: HostMachine, vm: string, sum: string) {
    // Of a move that was refused the other side takes back its half meanwhile.
    await until('its end elsewhere', async () => (await elsewhere.observe(vm)).state === 'stopped')
    expect(await elsewhere.migration.ask(vm)).toEqual({ is: 'gone' })
    expect(await at.observe(vm)).toMatchObject({ state: 'running', agent: 'connected' })
    expect(await kit.sh(at, vm, 'md5sum </fill/kept')).toBe(sum)
    const mark = `m${Date.now()}`
    await kit.sh(at, vm, `printf %-512s ${mark} | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null`)
    expect(await kit.sh(at, vm, 'head -c 20 /dev/vda')).toContain(mark)
    const before = ticksOf((await at.serialLog(vm, 4_096)).text).at(-1) ?? 0
    await until('its clock to tick', async () => {
      const now = ticksOf((await at.serialLog(vm, 4_096)).text).at(-1) ?? 0
      return now > before
    })
  }

  test.each([
    ['precopy', 'plain', 'idle'],
    ['precopy', 'TLS', 'writing'],
    ['auto', 'TLS', 'idle'],
    ['postcopy', 'plain', 'writing'],
    ['postcopy', 'TLS', 'idle'],
    ['hybrid', 'TLS', 'writing'],
  ] as const)('%s, %s, %s', async (mode, how, load) => {
    const { a, b } = kit
    const post = mode === 'postcopy' || mode === 'hybrid'
    if (post && !(await kit.allowPostcopy())) return
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    if (load === 'writing') await kit.sh(a, vm, dirty(4))
    const { report, placement } = await move(kit, request, a, b, { tls: how === 'TLS', mode })
    expect(report.how).toBe(post ? 'postcopy' : 'precopy')
    expect(report.stall_ms).toBeGreaterThan(0)
    expect(report.clock.samples).toBeGreaterThan(0)
    expect(report.claim.downtime_ms).toBeGreaterThan(0)
    expect(placement).toMatchObject({ host: b, epoch: 2, sealed: false, log: ['sealed', 'moved'] })
    // Keys were there for a moment only.
    expect((await readdir(`${kit.dir}/a/vms/${vm}`)).concat(await readdir(`${kit.dir}/b/vms/${vm}`))).not.toContain(
      'move',
    )
    await intact(b, a, vm, sum)
  })

  test('what a daemon that died left in QEMU of an earlier move is in the way of none', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    const qemu = a.running(vm)
    await qemu?.execute('object-add', { 'qom-type': 'tls-creds-anon', id: 'move-tls', endpoint: 'server' })
    await qemu?.execute('object-add', { 'qom-type': 'authz-simple', id: 'move-authz', identity: 'CN=before' })
    await move(kit, request, a, b, { tls: true, mode: 'precopy' })
    await intact(b, a, vm, sum)
  })

  test('post-copy where the host does not allow it: refused before anything is touched', async () => {
    const { a, b } = kit
    if (!(await kit.allowPostcopy())) return
    await kit.forbidPostcopy()
    expect(await b.migration.postcopy()).toMatchObject({ ok: false, remedy: expect.stringContaining('sysctl') })
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    await expect(move(kit, request, a, b, { mode: 'postcopy' })).rejects.toMatchObject({
      fault: { code: 'host_lacks', effect: 'none' },
    })
    await intact(a, b, vm, sum)
  })

  test('a CPU that the target can not give: refused before anything is begun; what its own QEMU never gave is no reason', async () => {
    const { a, b } = kit
    const wanted = await kit.request()
    // TCG has no PCID to give.
    const showing = (machine: HostMachine, flags: string[]) => {
      const plan = machine.plan.bind(machine)
      vi.spyOn(machine, 'plan').mockImplementation(async (request) => {
        const made = await plan(request)
        return { ...made, record: { ...made.record, cpu: { model: 'qemu64', flags } } }
      })
    }
    try {
      showing(a, ['+ssse3', '+pcid'])
      const { request, vm } = await kit.start(a, wanted)
      const sum = await kit.sh(a, vm, TICKS)
      const leave = a.migration.leave.bind(a.migration)
      // As if this host had given it.
      vi.spyOn(a.migration, 'leave').mockImplementationOnce(async (...args) => {
        const leaving = await leave(...args)
        leaving.facts.boot.cpu = { model: 'qemu64', flags: ['+ssse3', '+pcid'] }
        return leaving
      })
      await expect(move(kit, request, a, b)).rejects.toMatchObject({
        fault: { code: 'host_lacks', effect: 'none', detail: expect.stringContaining('lacks: pcid') },
      })
      await intact(a, b, vm, sum)
      await move(kit, request, a, b)
      await intact(b, a, vm, sum)
      expect(b.running(vm)?.record.cpu).toEqual({ model: 'qemu64', flags: ['+ssse3', '-pcid'] })
    } finally {
      vi.restoreAllMocks()
    }
  })

  test('auto, and only the target does not allow it: it goes by pre-copy, and the log says so', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a)
    const sum = await kit.sh(a, vm, TICKS)
    // The two are on one machine, and the setting is the machine's.
    const lacks = { ok: false as const, reason: 'its kernel forbids it', remedy: 'sysctl -w x=1' }
    const asked = vi.spyOn(b.migration, 'postcopy').mockResolvedValue(lacks)
    const source = vi.spyOn(a.migration, 'postcopy')
    try {
      const limits = { max_stall_ms: 5_000, may_postcopy: true }
      const { report } = await move(kit, request, a, b, { mode: 'auto', limits })
      expect(report.how).toBe('precopy')
      expect(asked).toHaveBeenCalledOnce()
      expect(source).not.toHaveBeenCalled()
      expect(kit.logs.join('\n')).toContain('by pre-copy alone: over there its kernel forbids it (sysctl -w x=1)')
      await intact(b, a, vm, sum)
    } finally {
      vi.restoreAllMocks()
    }
  })

  test('a guest that writes faster than it may stand still: refused, with the number that would do, or gone over', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a, await kit.request({ memory_mib: 160 }))
    const sum = await kit.sh(a, vm, TICKS)
    // Pages of zeros would cost nothing.
    await kit.sh(a, vm, dirty(8))
    // A thin line and a tight ceiling: QEMU may look more than once here, for that is what is tried.
    const limits = { max_stall_ms: 300, bandwidth_bytes_per_s: 2 ** 23, tcg_rounds: true }
    await expect(move(kit, request, a, b, { mode: 'auto', tls: false, limits })).rejects.toMatchObject({
      fault: { code: 'does_not_converge', effect: 'none', remedy: expect.stringContaining('--max-stall-ms') },
    })
    await intact(a, b, vm, sum)
    if (!(await kit.allowPostcopy())) return
    const over = await move(kit, request, a, b, { mode: 'auto', tls: false, limits: { ...limits, may_postcopy: true } })
    expect(over.report.how).toBe('postcopy')
    expect(over.report.notes.join()).toContain('post-copy')
  })

  test('in one pass: refused with a number that does, or gone over where that was foreseen', async () => {
    const { a, b } = kit
    const { request, vm } = await kit.start(a, await kit.request({ memory_mib: 384 }))
    const sum = await kit.sh(a, vm, TICKS)
    // Some fifth of a second to send, and written anew all the time.
    await kit.sh(a, vm, writing(160))
    const limits = { max_stall_ms: 60 }
    // One job, which tries it more than once.
    const placement: Placement = { host: a, epoch: 1, sealed: false, log: [] }
    const arrivals = await kit.arrivals(request, b, placement, never, false)
    const job = 'job-aaaaaaaaaa'
    const refused = await move(
      kit,
      request,
      a,
      b,
      { job, mode: 'auto', tls: false, limits },
      { arrivals, placement },
    ).catch((error: unknown) => error)
    expect(refused).toMatchObject({ fault: { code: 'does_not_converge', effect: 'none' } })
    const number = Number(/--max-stall-ms (\d+)/.exec((refused as WadahError).fault.remedy ?? '')?.[1])
    expect(number).toBeGreaterThan(60)
    const { detail } = (refused as WadahError).fault
    const stood = Number(/stood still for (\d+) ms/.exec(detail)?.[1])
    await intact(a, b, vm, sum)
    // On a machine with other work it may need more than it did then.
    const wide = { max_stall_ms: number * 10 }
    const { report } = await move(kit, request, a, b, { job, tls: false, limits: wide }, { arrivals, placement })
    expect(report.stall_ms).toBeLessThan(number * 10)
    // Given up in the middle of it, not at its end.
    expect(stood).toBeLessThan(report.stall_ms * 0.7)
    await intact(b, a, vm, sum)
    if (!(await kit.allowPostcopy())) return
    const how = 'postcopy' as const
    const forecast = Promise.resolve({ how, converges: true, rounds: 1, total_ms: 1, stall_ms: 1, bytes: 1 })
    const wish = { mode: 'auto', tls: false, limits: { ...limits, may_postcopy: true }, forecast } as const
    const back = await move(kit, { ...request, epoch: 2 }, b, a, wish)
    expect(back.report.how).toBe('postcopy')
    await intact(a, b, vm, sum)
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
    expect(stalls).toHaveLength(20)
    expect(Math.min(...stalls)).toBeGreaterThan(0)
    await intact(at.from, at.to, vm, sum)
    await at.from.stop(vm)
  })
})
