/** Moves that something goes wrong with: the guest runs in one place, whole, and what was made for the move is gone. */
import { fail } from '@wadah/api/fault'
import { describe, expect, test } from 'vitest'
import { resumeMoveOut } from '@wadah/cluster/migration/source'
import { wire } from '@wadah/cluster/migration/testing'
import type { MovePhase } from '@wadah/ports/migration'
import { until } from '../engine/kit.ts'
import { type PairKit, type Placement, TICKS, move, never, usePair, writing } from './kit.ts'

/** So that there is time to break it. */
const SLOW = { max_stall_ms: 5_000, bandwidth_bytes_per_s: 2 ** 22 }

describe('a move that breaks', () => {
  let kit: PairKit
  usePair((made) => {
    kit = made
  })

  async function begin(memory_mib = 96) {
    const { a } = kit
    const made = await kit.start(a, await kit.request({ memory_mib }))
    const sum = await kit.sh(a, made.vm, TICKS)
    const placement: Placement = { host: a, epoch: 1, sealed: false, log: [] }
    const progress = Promise.withResolvers<void>()
    return { ...made, sum, placement, copies: progress.promise, ports: { progress: () => progress.resolve() } }
  }
  /** A post-copy under way whose guest runs at the target, while RAM follows. */
  async function following(tls = true) {
    const m = await begin()
    const follows = Promise.withResolvers<void>()
    const ports = { phase: (phase: MovePhase) => void (phase === 'follow' && follows.resolve()) }
    const moving = move(kit, m.request, kit.a, kit.b, { mode: 'postcopy', limits: SLOW, tls }, { ...m, ports })
    moving.catch(() => {})
    await follows.promise
    return { m, moving }
  }
  async function stayed({ vm, sum, placement }: { vm: string; sum: string; placement: Placement }) {
    const { a, b } = kit
    expect(placement).toMatchObject({ host: a, epoch: 1, sealed: false })
    await until('the target to be undone', async () => (await b.migration.ask(vm)).is === 'gone')
    expect(await a.observe(vm)).toMatchObject({ state: 'running' })
    expect(await kit.sh(a, vm, 'md5sum </fill/kept')).toBe(sum)
    // Nothing of it is left: it can be moved at once.
    expect(a.running(vm)?.live.moving).toBeUndefined()
    expect(await b.cgroups.list()).not.toContain(vm)
  }

  test("the target's QEMU is killed", async () => {
    const { a, b } = kit
    const m = await begin()
    const moving = move(kit, m.request, a, b, { limits: SLOW }, m)
    moving.catch(() => {})
    await m.copies
    process.kill(b.running(m.vm)?.pid ?? 0, 'SIGKILL')
    await expect(moving).rejects.toMatchObject({ fault: { code: 'qemu_failed', effect: 'none' } })
    await stayed(m)
    await move(kit, m.request, a, b)
    expect(await kit.sh(b, m.vm, 'md5sum </fill/kept')).toBe(m.sum)
  })

  test("the target's QEMU is killed while RAM follows (post-copy): the source's half ends too, and it is said what is lost", async () => {
    const { a, b } = kit
    if (!(await kit.allowPostcopy())) return
    const { m, moving } = await following()
    process.kill(b.running(m.vm)?.pid ?? 0, 'SIGKILL')
    await expect(moving).rejects.toMatchObject({ fault: { code: 'memory_lost', effect: 'partial' } })
    expect(await a.migration.ask(m.vm)).toEqual({ is: 'gone' })
    expect(await b.migration.ask(m.vm)).toEqual({ is: 'gone' })
    // Where it can be started.
    expect(m.placement).toMatchObject({ host: b, epoch: 2, sealed: false })
  })

  test.each([
    ['all of RAM has gone over', undefined],
    ['RAM follows', SLOW],
  ])('post-copy is cancelled before `go`, when %s: the target, which has the disks, ends first', async (_, limits) => {
    const { a } = kit
    if (!(await kit.allowPostcopy())) return
    const m = await begin()
    const cancel = new AbortController()
    const stream = wire()
    stream.pass((message) => {
      if (message.type !== 'loaded') return true
      // The last word of it is still under way: so long the source waits for it.
      const done = () => cancel.abort(fail('cancelled', 'enough'))
      if (limits) done()
      else
        void until('all of RAM over there', async () => {
          const is = await a.migration.ask(m.vm)
          return is.is === 'there' && is.migration === 'completed'
        }).finally(done)
      return false
    })
    const means = { ...m, wire: stream, signal: cancel.signal }
    const moving = move(kit, m.request, kit.a, kit.b, { mode: 'postcopy', ...(limits ? { limits } : {}) }, means)
    await expect(moving).rejects.toMatchObject({ fault: { code: 'cancelled', effect: 'none' } })
    await stayed(m)
  })

  test('the QEMU of the target is killed in post-copy, before `go`: QEMU gives the guest back to nobody, and that is said', async () => {
    const { a, b } = kit
    if (!(await kit.allowPostcopy())) return
    const m = await begin()
    const stream = wire()
    stream.pass((message) => {
      if (message.type !== 'loaded') return true
      process.kill(b.running(m.vm)?.pid ?? 0, 'SIGKILL')
      return false
    })
    const moving = move(kit, m.request, a, b, { mode: 'postcopy', limits: SLOW }, { ...m, wire: stream })
    await expect(moving).rejects.toMatchObject({ fault: { code: 'memory_lost', effect: 'partial' } })
    // Where it can be started again.
    expect(m.placement).toMatchObject({ host: a, epoch: 1, sealed: false })
    for (const host of [a, b]) expect(await host.migration.ask(m.vm)).toEqual({ is: 'gone' })
  })

  test.each([
    ['it goes on over a new one, whole', true, false],
    ['plain', false, false],
    ["its target's main loop hangs on a page that is to come", true, true],
  ])('the connection breaks while RAM follows (post-copy): %s', async (_, tls, hangs) => {
    const { a, b } = kit
    if (!(await kit.allowPostcopy())) return
    const { m, moving } = await following(tls)
    const [source, target] = [a.running(m.vm), b.running(m.vm)]
    const seen: string[] = []
    source?.subscribe((e) => void (e.event === 'MIGRATION' && seen.push((e.data as { status: string }).status)))
    // QEMU's own word for a connection that is given up.
    await source?.execute('migrate-pause')
    if (hangs) {
      // As a device does, or an interrupt: it reads the guest's memory while it holds QEMU's lock.
      const reads = { val: 0, size: 2 ** 26, filename: '/dev/null' }
      void target?.execute('pmemsave', reads, { timeout_ms: 60_000 }).catch(() => {})
      await expect(target?.execute('query-status', {}, { timeout_ms: 1_000 })).rejects.toMatchObject({
        fault: { code: 'monitor_silent' },
      })
    }
    const { report } = await moving
    expect(report.notes.join()).toContain('goes on over a new connection')
    expect(seen.filter((s) => s.startsWith('postcopy'))).toEqual(
      expect.arrayContaining(['postcopy-paused', 'postcopy-recover', 'postcopy-active']),
    )
    expect(m.placement).toMatchObject({ host: b, epoch: 2, sealed: false })
    expect(await kit.sh(b, m.vm, 'md5sum </fill/kept')).toBe(m.sum)
    expect(await a.migration.ask(m.vm)).toEqual({ is: 'gone' })
  })

  test('it is cancelled', async () => {
    const m = await begin()
    const cancel = new AbortController()
    const moving = move(kit, m.request, kit.a, kit.b, { limits: SLOW }, { ...m, signal: cancel.signal })
    moving.catch(() => {})
    await m.copies
    cancel.abort(new Error('the user changed his mind'))
    await expect(moving).rejects.toThrow()
    await stayed(m)
  })

  test.each([true, false])('nothing goes through any more (TLS: %s), and it is cancelled', async (tls) => {
    const { a, b } = kit
    const m = await begin(256)
    await kit.sh(a, m.vm, writing(64))
    const cancel = new AbortController()
    const limits = { max_stall_ms: 5_000, bandwidth_bytes_per_s: 2 ** 23 }
    const moving = move(kit, m.request, a, b, { tls, limits }, { ...m, signal: cancel.signal })
    moving.catch(() => {})
    await m.copies
    // What is sent stays in the buffers of the two hosts, until they are full.
    process.kill(b.running(m.vm)?.pid ?? 0, 'SIGSTOP')
    await new Promise((resolve) => setTimeout(resolve, 2_000))
    const begun = performance.now()
    cancel.abort(fail('cancelled', 'enough'))
    await expect(moving).rejects.toMatchObject({ fault: { code: 'cancelled', effect: 'none' } })
    expect(performance.now() - begun).toBeLessThan(10_000)
    await stayed(m)
  })

  test.each([true, false])(
    'nothing goes through any more while the last of RAM is written (TLS: %s): the ceiling holds',
    async (tls) => {
      const { a, b } = kit
      const m = await begin(256)
      await kit.sh(a, m.vm, writing(96))
      const limits = { max_stall_ms: 500 }
      const phase = (now: MovePhase) => {
        if (now === 'switch') process.kill(b.running(m.vm)?.pid ?? 0, 'SIGSTOP')
      }
      const ended = await move(kit, m.request, a, b, { tls, limits }, { ...m, ports: { phase } }).catch(
        (e: unknown) => e,
      )
      expect(ended).toMatchObject({ fault: { code: 'does_not_converge', effect: 'none' } })
      const stood = Number(/stood still for (\d+) ms/.exec((ended as Error).message)?.[1])
      // Other work on the machine must not fail it: TCP would give up after a quarter of an hour.
      expect(stood).toBeLessThan(5_000)
      await stayed(m)
    },
  )

  test('the stream of the daemons breaks while it copies', async () => {
    const m = await begin()
    const stream = wire()
    const moving = move(kit, m.request, kit.a, kit.b, { limits: SLOW }, { ...m, wire: stream })
    moving.catch(() => {})
    await m.copies
    stream.cut()
    await expect(moving).rejects.toMatchObject({ fault: { code: 'unreachable', effect: 'none' } })
    await stayed(m)
  })

  test("the source's QEMU is killed: said plainly, and the target is undone", async () => {
    const { a, b } = kit
    const m = await begin()
    const moving = move(kit, m.request, a, b, { limits: SLOW }, m)
    moving.catch(() => {})
    await m.copies
    process.kill(m.running.pid, 'SIGKILL')
    await expect(moving).rejects.toMatchObject({ fault: { code: 'qemu_failed', effect: 'partial' } })
    await until('the target to be undone', async () => (await b.migration.ask(m.vm)).is === 'gone')
    expect(m.placement.sealed).toBe(false)
    expect(await a.observe(m.vm)).toMatchObject({ state: 'stopped' })
  })

  test.each(['offer', 'prepare', 'seal', 'copy', 'switch'] as const)('it fails at "%s": it runs on', async (phase) => {
    const m = await begin()
    const at = (now: MovePhase) => {
      if (now === phase) throw new Error(`injected at ${now}`)
    }
    await expect(move(kit, m.request, kit.a, kit.b, {}, { ...m, ports: { at } })).rejects.toThrow('injected')
    await stayed(m)
  })

  test('`go` is lost with the stream: both are asked, and it goes on over there', async () => {
    const m = await begin()
    const stream = wire()
    stream.pass((message) => {
      if (message.type !== 'go') return true
      stream.cut()
      return false
    })
    const { report, placement } = await move(kit, m.request, kit.a, kit.b, {}, { ...m, wire: stream })
    expect(report.notes.join()).toContain('after go')
    expect(placement).toMatchObject({ host: kit.b, epoch: 2, sealed: false })
    expect(await kit.sh(kit.b, m.vm, 'md5sum </fill/kept')).toBe(m.sum)
    expect(await kit.a.migration.ask(m.vm)).toEqual({ is: 'gone' })
  })

  test('the source fails right after `go`: whoever comes next finds out and finishes', async () => {
    const { a, b } = kit
    const m = await begin()
    const at = (now: MovePhase) => {
      if (now === 'start') throw new Error('injected at start')
    }
    const job = 'job-bbbbbbbbbb'
    const order = { job }
    const stop = new AbortController()
    const arrivals = await kit.arrivals(m.request, b, m.placement, stop.signal)
    await expect(move(kit, m.request, a, b, order, { ...m, ports: { at }, arrivals })).rejects.toThrow('injected')
    await until('it to run over there', async () => (await b.observe(m.vm)).state === 'running')
    const again = wire()
    void arrivals.handle(again.b, 'host-source')
    const limits = { max_stall_ms: 5_000 }
    const whole = { ...order, vm: m.vm, name: 'tiny', from: '', epoch: 2, mode: 'precopy' as const, limits, tls: true }
    const ended = await resumeMoveOut(
      whole,
      {
        migration: a.migration,
        link: again.a,
        relink: async () => undefined,
        seal: async () => {},
        unseal: async () => {},
        isPlaced: async () => m.placement.host === b,
        log: (line) => kit.logs.push(line),
      },
      never,
    )
    expect(ended).toEqual({ moved: true })
    expect(m.placement).toMatchObject({ host: b, epoch: 2 })
    expect(await a.migration.ask(m.vm)).toEqual({ is: 'gone' })
    expect(await kit.sh(b, m.vm, 'md5sum </fill/kept')).toBe(m.sum)
    stop.abort()
  })
})
