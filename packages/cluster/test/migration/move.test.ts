import type { MoveMessage, MovePhase } from '@wadah/ports/migration'
import { fail } from '@wadah/api/fault'
import { describe, expect, test, vi } from 'vitest'
import { moveOut, resumeMoveOut } from '../../src/migration/source.ts'
import { SILENT_BEATS, Talk } from '../../src/migration/talk.ts'
import { wire } from '../../src/migration/testing.ts'
import { JOB, NO_POSTCOPY, VM, World } from './kit.ts'

const never = new AbortController().signal
const settled = () => new Promise((resolve) => setTimeout(resolve, 20))

describe('a move', () => {
  test.each(['precopy', 'postcopy'] as const)('%s: sealed before, committed after, ended last', async (how) => {
    const w = new World()
    w.how = how
    const stream = wire()
    const report = await moveOut({ ...w.order, mode: how }, w.ports(stream), never)
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b', epoch: 2, sealed: false } })
    const order = ['seal', 'copy', 'go', 'commit', ...(how === 'postcopy' ? ['follow'] : []), 'quit']
    expect(w.calls.filter((c) => order.includes(c))).toEqual(order)
    const said = stream.said.map((s) => s.message.type).filter((t) => !t.startsWith('heartbeat'))
    expect(said.indexOf('sealed')).toBeLessThan(said.indexOf('go'))
    if (how === 'postcopy') expect(said.indexOf('loaded')).toBeLessThan(said.indexOf('go'))
    // The clocks of the two are a second apart.
    expect(report.clock.offset_ms).toBeCloseTo(1_000, -2)
    expect(report.stall_ms).toBeCloseTo(11 - report.clock.offset_ms - 1, 0)
    const phases: MovePhase[] = ['offer', 'prepare', 'seal', 'copy', 'switch', 'start', 'commit']
    expect(report.phases.map((p) => p.phase)).toEqual([...phases, ...(how === 'postcopy' ? ['follow'] : []), 'quit'])
    for (const p of report.phases) expect(p.end_ms).toBeGreaterThanOrEqual(p.begin_ms)
  })

  test.each(['leave', 'prepare', 'arrive', 'seal', 'copy'])('"%s" fails: it runs on, nothing is left', async (call) => {
    const w = new World()
    w.fails = call
    await expect(moveOut(w.order, w.ports(wire()), never)).rejects.toMatchObject({ fault: { effect: 'none' } })
    await settled()
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', epoch: 1, sealed: false } })
  })
  test.each(['offer', 'prepare', 'seal', 'copy', 'switch'] as const)('a failure at "%s"', async (phase) => {
    const w = new World()
    const at = (now: MovePhase) => {
      if (now === phase) throw new Error('injected')
    }
    await expect(moveOut(w.order, w.ports(wire(), { at }), never)).rejects.toThrow('injected')
    await settled()
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
  })
  test('the target can not let it run, and gives its word: taken back', async () => {
    const w = new World()
    w.fails = 'go'
    await expect(moveOut(w.order, w.ports(wire()), never)).rejects.toMatchObject({ fault: { effect: 'none' } })
    await settled()
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
  })
  test.each(['precopy', 'postcopy'] as const)(
    '%s: its word that it was too late is not taken for silence',
    async (mode) => {
      const w = new World()
      const plain = w.arriving.bind(w)
      w.arriving = () => ({
        ...plain(),
        go: () => Promise.reject(fail('timeout', 'QEMU did not let the guest run within 30 s.')),
      })
      await expect(moveOut({ ...w.order, mode }, w.ports(wire()), never)).rejects.toMatchObject({
        fault: { code: 'timeout', effect: 'none' },
      })
      expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
    },
  )
  test('the commit fails at first: tried again, and the source waits for it', async () => {
    const w = new World()
    w.fails = 'commit'
    await moveOut(w.order, w.ports(wire()), never)
    expect(w.calls.filter((c) => c === 'commit')).toHaveLength(2)
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b' } })
  })
  test('auto, and the target can not take post-copy: pre-copy alone, said in the log', async () => {
    const w = new World()
    w.declines = true
    const log: string[] = []
    const order = { ...w.order, mode: 'auto' as const, limits: { max_stall_ms: 300, may_postcopy: true } }
    const report = await moveOut(order, w.ports(wire(), { log: (line) => log.push(line) }), never)
    expect(w.asked).toMatchObject({ mode: 'auto', may_postcopy: true, or_precopy: true })
    expect(w.copied?.limits).toEqual({ max_stall_ms: 300, may_postcopy: false })
    expect(log.join()).toContain(NO_POSTCOPY.reason)
    expect(log.join()).toContain(NO_POSTCOPY.remedy)
    expect(report.how).toBe('precopy')
    // The target waits for no "loaded" that never comes.
    expect(w.calls).not.toContain('loaded')
    expect(w).toMatchObject({ source: 'gone', target: 'running' })
  })
  test('auto, and the target can: both may go over', async () => {
    const w = new World()
    w.how = 'postcopy'
    const order = { ...w.order, mode: 'auto' as const, limits: { max_stall_ms: 300, may_postcopy: true } }
    const report = await moveOut(order, w.ports(wire()), never)
    expect(w.copied?.limits.may_postcopy).toBe(true)
    expect(report.how).toBe('postcopy')
  })
  test('a source of the release before takes no such answer: its target is not offered the choice', async () => {
    const w = new World()
    const stream = wire()
    void w.arrivals.handle(stream.b, 'host-source')
    const { job, vm, name, epoch, from } = w.order
    const facts = { vm, boot: {}, qemu_version: '7.2', ram_bytes: 1, mirrors: [] } as never
    const offer = {
      vm,
      name,
      epoch,
      from,
      mode: 'auto' as const,
      facts,
      limits: { max_stall_ms: 1, may_postcopy: true },
    }
    stream.a.send({ type: 'offer', version: 1, job, offer })
    await settled()
    expect(w.asked).toBeDefined()
    expect(w.asked).not.toHaveProperty('or_precopy')
    w.stop.abort()
  })
  test('it is cancelled while it copies', async () => {
    const w = new World()
    const cancel = new AbortController()
    const at = (now: MovePhase) => void (now === 'copy' && cancel.abort(new Error('enough')))
    await expect(moveOut(w.order, w.ports(wire(), { at }), cancel.signal)).rejects.toThrow('enough')
    await settled()
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { sealed: false } })
  })
  test('local disks are named to the source; what was made for them goes when the move does not', async () => {
    for (const fails of ['copy', 'arrive', undefined]) {
      const w = new World()
      const undone: string[] = []
      w.fails = fails
      w.arrivals = w.daemon({ undone: async (job) => void undone.push(job) })
      const asked: (readonly string[] | undefined)[] = []
      const stream = wire()
      const ports = w.ports(stream)
      const leave: typeof ports.migration.leave = async (vm, request, signal) => {
        asked.push(request.mirrors)
        return w.a.leave(vm, request, signal)
      }
      const { rejoinLeaving, ask, wall_ms } = w.a
      const moving = moveOut(
        { ...w.order, mirrors: ['root', 'data'] },
        { ...ports, migration: { leave, rejoinLeaving, ask, wall_ms } },
        never,
      )
      if (fails) await expect(moving).rejects.toThrow()
      else await moving
      await settled()
      expect(asked).toEqual([['root', 'data']])
      expect(undone).toEqual(fails ? [JOB] : [])
    }
  })
  test('a paused guest was taken over, and both daemons died: the target says so, and it is finished', async () => {
    const w = new World()
    w.source = 'let-go'
    w.target = 'running'
    // QEMU says "paused", as it would of one that waits; but no job is noted with it any more.
    const b = {
      ...w.b,
      ask: async () => ({ is: 'there' as const, status: 'paused', migration: 'completed', epoch: 2 }),
    }
    w.arrivals = w.daemon({ migration: { ...b, rejoinArriving: async () => undefined } })
    expect(await resumeMoveOut(w.order, w.ports(wire()), never)).toEqual({ moved: true })
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b', epoch: 2 } })
    // One that still waits is not taken for it.
    const again = new World()
    again.target = 'waiting'
    again.arrivals = again.daemon({
      migration: { ...b, ask: async () => ({ ...(await b.ask()), job: JOB }), rejoinArriving: async () => undefined },
    })
    const stream = wire()
    const said = new Promise<MoveMessage>((resolve) => stream.a.listen((m) => m.type === 'resumed' && resolve(m)))
    void again.arrivals.handle(stream.b, 'host-source')
    stream.a.send({ type: 'resume', version: 1, job: JOB, vm: VM })
    expect(await said).toMatchObject({ state: 'cannot-tell' })
  })
  test.each([
    ['full', Object.assign(new Error('no space'), { code: 'ENOSPC' }), 'no_room'],
    ['in trouble that nobody foresaw', new TypeError('x'), 'internal'],
  ])('a target that is %s refuses: nothing was changed, and the job is over', async (_, error, code) => {
    const w = new World()
    w.arrivals = w.daemon({
      prepare: async () => {
        throw error
      },
    })
    await expect(moveOut(w.order, w.ports(wire()), never)).rejects.toMatchObject({ fault: { code, effect: 'none' } })
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
  })
  test('another version is refused', async () => {
    const w = new World()
    const stream = wire()
    stream.pass((m) => {
      if (m.type === 'offer') m.version = 99
      return true
    })
    await expect(moveOut(w.order, w.ports(stream), never)).rejects.toMatchObject({ fault: { code: 'host_lacks' } })
  })

  // The stream breaks as this message is sent: it is lost, or it is the last that arrives.
  const kinds: MoveMessage['type'][] = ['offer', 'accept', 'sealed', 'go', 'running', 'committed']
  test.each(kinds.flatMap((k) => [[k, true] as const, [k, false] as const]))(
    'the stream breaks at "%s" (lost: %s): one runs, and the placement says which',
    async (kind, lost) => {
      const w = new World()
      const stream = wire()
      stream.pass((m) => {
        if (m.type !== kind) return true
        if (lost) stream.cut()
        else setImmediate(() => setImmediate(() => stream.cut()))
        return !lost
      })
      const moved = await moveOut(w.order, w.ports(stream), never).then(
        () => true,
        () => false,
      )
      await settled()
      if (['go', 'running', 'committed'].includes(kind)) expect(moved).toBe(true)
      // A target that waits and was left alone gives up by its own clock; it never runs.
      if (moved) expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b', epoch: 2 } })
      else {
        expect(w).toMatchObject({ source: 'running', placement: { host: 'a', sealed: false } })
        expect(w.target).not.toBe('running')
      }
    },
  )
  test.each([0, 3, 20])('a slow stream (%i ms each) changes nothing', async (ms) => {
    const w = new World()
    const stream = wire()
    stream.delay(ms)
    await moveOut(w.order, w.ports(stream), never)
    expect(w).toMatchObject({ source: 'gone', target: 'running' })
  })
  test('the daemon of the target is started anew after `go`: its machine knows', async () => {
    const w = new World()
    const stream = wire()
    stream.pass((m) => {
      if (m.type !== 'running') return true
      w.arrivals = w.daemon()
      stream.cut()
      return false
    })
    const { notes } = await moveOut(w.order, w.ports(stream), never)
    expect(notes.join()).toContain('after go')
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b', epoch: 2 } })
  })
})

describe('a source that was started anew', () => {
  async function again(w: World) {
    const ended = await resumeMoveOut(w.order, w.ports(wire()), never)
    await settled()
    return ended
  }
  test('while it copied: the target gives its word, it runs on', async () => {
    const w = new World()
    Object.assign(w, { target: 'waiting' })
    w.placement.sealed = true
    expect(await again(w)).toEqual({ moved: false })
    expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
  })
  test('after the source had let go: it goes over', async () => {
    const w = new World()
    Object.assign(w, { source: 'let-go', target: 'waiting' })
    expect(await again(w)).toEqual({ moved: true })
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b' } })
  })
  test('after it had gone over: finished', async () => {
    const w = new World()
    Object.assign(w, { source: 'let-go', target: 'running' })
    expect(await again(w)).toEqual({ moved: true })
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
  })
  test('nobody knows of it over there: it may have run, so what is left here must not', async () => {
    const w = new World()
    w.source = 'let-go'
    w.placement.sealed = true
    await expect(again(w)).rejects.toMatchObject({ fault: { code: 'memory_lost', effect: 'partial' } })
    expect(w).toMatchObject({ source: 'gone', target: 'none', placement: { host: 'a', sealed: false } })
  })
  test('it never let go, and the target is silent: it need not wait', async () => {
    const w = new World()
    w.placement.sealed = true
    const stream = wire()
    const ports = w.ports(stream, { relink: async () => undefined })
    stream.cut()
    vi.useFakeTimers({ toFake: ['setTimeout', 'setInterval', 'clearTimeout', 'performance'] })
    vi.spyOn(AbortSignal, 'timeout').mockImplementation((ms) => {
      const c = new AbortController()
      setTimeout(() => c.abort(new Error('timeout')), ms)
      return c.signal
    })
    const ended = resumeMoveOut(w.order, ports, never)
    await vi.advanceTimersByTimeAsync(30_000)
    expect(await ended).toEqual({ moved: false })
    vi.useRealTimers()
    vi.restoreAllMocks()
    expect(w).toMatchObject({ source: 'running', placement: { sealed: false } })
  })
  test('it failed at its ceiling, and its job begins anew while the target still takes back what it made', async () => {
    const w = new World()
    const undoing = Promise.withResolvers<void>()
    let times = 0
    // Folders, disks, records: it takes its time.
    w.arrivals = w.daemon({ undone: () => (times++ === 0 ? undoing.promise : Promise.resolve()) })
    w.fails = 'copy'
    await expect(moveOut(w.order, w.ports(wire()), never)).rejects.toThrow('injected: copy')
    const again = moveOut(w.order, w.ports(wire()), never)
    again.catch(() => {})
    await new Promise((resolve) => setTimeout(resolve, 20))
    undoing.resolve()
    expect((await again).how).toBe('precopy')
    expect(w).toMatchObject({ source: 'gone', target: 'running' })
  })

  test('it begins the same job anew: what waited there for it is undone first', async () => {
    const w = new World()
    const stream = wire()
    stream.pass((m) => m.type !== 'accept')
    const first = moveOut(w.order, w.ports(stream), AbortSignal.timeout(50)).catch(() => 'given up')
    stream.pass((m) => m.type !== 'abort' && m.type !== 'accept')
    await first
    expect(w.target).toBe('waiting')
    await moveOut(w.order, w.ports(wire()), never)
    expect(w.calls).toContain('undo')
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b' } })
  })
  test('none is left: said', async () => {
    const w = new World()
    w.source = 'gone'
    await expect(again(w)).rejects.toMatchObject({ fault: { effect: 'partial' } })
    expect(w.placement.sealed).toBe(false)
    expect([JOB, VM]).toHaveLength(2)
  })
})

describe('a host that does not carry out the move', () => {
  const heard = async (stream: ReturnType<typeof wire>) => {
    const types: string[] = []
    stream.a.listen((m) => types.push(m.type))
    await stream.a.closed
    return types
  }
  test('can not begin it: no QEMU is made for what it would send', async () => {
    const w = new World()
    const stream = wire()
    const types = heard(stream)
    const over = w.arrivals.handle(stream.b, 'host-of-somebody')
    stream.a.send({ type: 'offer', version: 1, job: JOB, offer: { vm: VM, epoch: 2 } } as MoveMessage)
    await over
    expect(await types).toEqual(['refuse'])
    expect(w).toMatchObject({ target: 'none', calls: [] })
  })
  test('can not take it up again, nor end its stream; it hears nothing that could pass for the word of the target', async () => {
    const w = new World()
    w.target = 'waiting'
    const stream = wire()
    const types = heard(stream)
    const over = w.arrivals.handle(stream.b, 'host-of-somebody')
    stream.a.send({ type: 'resume', version: 1, job: JOB, vm: VM })
    await over
    expect(await types).toEqual([])
    expect(w.target).toBe('waiting')
  })
})

describe('a target that was started anew', () => {
  const found = [{ vm: VM, job: JOB }]
  test('and finds its QEMU running: that is committed, whether the source comes back or not', async () => {
    const w = new World()
    Object.assign(w, { source: 'gone', target: 'running' })
    await w.arrivals.recover(found)
    await settled()
    expect(w.placement).toMatchObject({ host: 'b', epoch: 2 })
  })
  test('in a post-copy whose source is silent: it waits for the rest, until its host was given up', async () => {
    const w = new World()
    Object.assign(w, { source: 'gone', target: 'running', lost: true })
    const ask = async () => ({
      is: 'there' as const,
      status: 'running',
      migration: w.target === 'none' ? 'none' : 'postcopy-paused',
      epoch: 2,
    })
    let over = false
    w.arrivals = w.daemon({ migration: { ...w.b, ask }, isOver: async () => over })
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    await w.arrivals.recover(found)
    await vi.advanceTimersByTimeAsync(60_000)
    expect(w).toMatchObject({ target: 'running', placement: { host: 'b', epoch: 2 } })
    over = true
    await vi.advanceTimersByTimeAsync(15_000)
    vi.useRealTimers()
    expect(w).toMatchObject({ target: 'none', placement: { host: 'b', epoch: 2 } })
  })
  test('and finds one that waits: undone once the store says that the move is over, not before', async () => {
    const w = new World()
    w.target = 'waiting'
    await w.arrivals.recover(found)
    await settled()
    expect(w.target).toBe('waiting')
    w.arrivals = w.daemon()
    w.over = true
    await w.arrivals.recover(found)
    await settled()
    expect(w.target).toBe('none')
  })
})

describe('post-copy that is given up after its QEMU over there has taken the disks, before `go`', () => {
  const begun = () => {
    const w = new World()
    w.how = 'postcopy'
    return w
  }
  /** Its daemon over there is started anew in that moment. */
  const begunAnew = () => {
    const w = begun()
    const stream = wire()
    stream.pass((m) => {
      if (m.type !== 'loaded') return true
      w.arrivals = w.daemon()
      stream.cut()
      return false
    })
    return { w, stream }
  }
  const none = { source: 'running', target: 'none', placement: { host: 'a', epoch: 1, sealed: false } }
  test('cancelled: that one ends, then it goes on here', async () => {
    const w = begun()
    const cancel = new AbortController()
    const stream = wire()
    stream.pass((m) => {
      if (m.type === 'loaded') cancel.abort(fail('cancelled', 'enough'))
      return m.type !== 'loaded'
    })
    await expect(moveOut({ ...w.order, mode: 'postcopy' }, w.ports(stream), cancel.signal)).rejects.toMatchObject({
      fault: { code: 'cancelled', effect: 'none' },
    })
    expect(w).toMatchObject(none)
  })
  test('its daemon is started anew: it is asked over a new stream', async () => {
    const { w, stream } = begunAnew()
    await expect(moveOut({ ...w.order, mode: 'postcopy' }, w.ports(stream), never)).rejects.toMatchObject({
      fault: { code: 'unreachable', effect: 'none' },
    })
    expect(w).toMatchObject(none)
  })
  test('its host can not be asked: it stays sealed, and is settled once it can', async () => {
    const { w, stream } = begunAnew()
    vi.useFakeTimers({ toFake: ['setTimeout', 'setInterval', 'clearTimeout', 'performance'] })
    vi.spyOn(AbortSignal, 'timeout').mockImplementation((ms) => {
      const c = new AbortController()
      setTimeout(() => c.abort(new Error('timeout')), ms)
      return c.signal
    })
    const order = { ...w.order, mode: 'postcopy' as const }
    const ended = moveOut(order, w.ports(stream, { relink: async () => undefined }), never).catch((e: unknown) => e)
    await vi.advanceTimersByTimeAsync(40_000)
    expect(await ended).toMatchObject({ fault: { effect: 'unknown' } })
    expect(w).toMatchObject({ source: 'let-go', target: 'waiting', placement: { sealed: true } })
    vi.useRealTimers()
    vi.restoreAllMocks()
    expect(await resumeMoveOut(order, w.ports(wire()), never)).toEqual({ moved: true })
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b', sealed: false } })
  })
})

test('post-copy whose source ends after `go`, and whose target stands still for what is missing: told after ten seconds', async () => {
  const w = new World()
  w.how = 'postcopy'
  w.follows = true
  const stream = wire()
  stream.pass((m) => {
    if (m.type !== 'go') return true
    w.source = 'gone'
    return false
  })
  vi.useFakeTimers({ toFake: ['setTimeout', 'setInterval', 'clearTimeout', 'performance'] })
  const ended = moveOut({ ...w.order, mode: 'postcopy' }, w.ports(stream), never).catch((e: unknown) => e)
  await vi.advanceTimersByTimeAsync(15_000)
  vi.useRealTimers()
  expect(await ended).toMatchObject({ fault: { code: 'memory_lost' } })
  expect(w).toMatchObject({ source: 'gone', target: 'none', placement: { sealed: false } })
})

describe('its new host is lost once it runs there, and comes back without it', () => {
  const lostAfter = async (how: 'precopy' | 'postcopy', isCommitted: boolean, back = true) => {
    const w = new World()
    w.how = how
    w.follows = true
    const stream = wire()
    const over = { relink: async () => undefined }
    if (!isCommitted) w.arrivals = w.daemon({ commitMoved: () => Promise.reject(new Error('the store is away')) })
    stream.pass((m) => {
      if (m.type !== (isCommitted ? 'committed' : 'running')) return true
      // It arrives, and is the last that does.
      setImmediate(() => {
        w.target = 'none'
        w.lost = true
        w.arrivals = w.daemon()
        stream.cut()
      })
      return m.type === 'running'
    })
    const ended = moveOut({ ...w.order, mode: how }, w.ports(stream, back ? {} : over), never)
    return { w, ended }
  }
  test('committed before: by pre-copy it had arrived, whatever has become of it since', async () => {
    for (const back of [true, false]) {
      const { w, ended } = await lostAfter('precopy', true, back)
      expect((await ended).how).toBe('precopy')
      expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
    }
  })
  test('committed before, and post-copy not through: lost', async () => {
    const { w, ended } = await lostAfter('postcopy', true)
    await expect(ended).rejects.toMatchObject({ fault: { code: 'memory_lost' } })
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
  })
  test('not committed: it ran there, so what is left here ends, and it is placed where it was', async () => {
    const { w, ended } = await lostAfter('precopy', false)
    await expect(ended).rejects.toMatchObject({ fault: { code: 'memory_lost', effect: 'partial' } })
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'a', sealed: false } })
  })
  test('after a restart of this daemon it is the same', async () => {
    const w = new World()
    Object.assign(w, { source: 'let-go', target: 'none', placement: { host: 'b', epoch: 2, sealed: false } })
    expect(await resumeMoveOut(w.order, w.ports(wire()), never)).toEqual({ moved: true })
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
  })
})

test('a QEMU that ended after `cont` may have run: no word is given, the source does not go on', async () => {
  const w = new World()
  w.fails = 'runs'
  const plain = w.arriving.bind(w)
  w.arriving = () => {
    const made = plain()
    const go = made.go.bind(made)
    made.go = (signal) =>
      go(signal).catch((error: unknown) => {
        w.target = 'none'
        throw error
      })
    return made
  }
  await expect(moveOut(w.order, w.ports(wire()), never)).rejects.toMatchObject({ fault: { code: 'memory_lost' } })
  expect(w).toMatchObject({ source: 'gone', placement: { sealed: false } })
})

test('a line that is cut tells nobody: a stream on which nothing is heard is lost', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  const stream = wire()
  stream.pass(() => false)
  const talk = new Talk(stream.a, () => 0)
  talk.beat()
  await vi.advanceTimersByTimeAsync(SILENT_BEATS * 500)
  expect(talk.lost.aborted).toBe(false)
  await vi.advanceTimersByTimeAsync(SILENT_BEATS * 1_000)
  expect(talk.lost.aborted).toBe(true)
  vi.useRealTimers()
})

test('post-copy that breaks for good: both end, also when the word of it has to go over a new stream; the placement stays', async () => {
  for (const broken of [false, true]) {
    const w = new World()
    Object.assign(w, { how: 'postcopy', fails: 'follow', lost: true })
    const stream = wire()
    stream.pass((m) => {
      if (broken && m.type === 'abort') stream.cut()
      return !stream.said.some((s) => s.message.type === 'abort') || !broken
    })
    const moved = moveOut({ ...w.order, mode: 'postcopy' }, w.ports(stream), never)
    await expect(moved).rejects.toMatchObject({ fault: { code: 'memory_lost', effect: 'partial' } })
    expect(w).toMatchObject({ source: 'gone', target: 'none', placement: { host: 'b', epoch: 2 } })
  }
})

describe("post-copy whose target's QEMU is killed while RAM follows: the source's does not notice, and is told", () => {
  const lost = { fault: { code: 'memory_lost', effect: 'partial' } }
  const ended = { source: 'gone', target: 'none', placement: { host: 'b', epoch: 2 } }
  async function following() {
    const w = new World()
    Object.assign(w, { how: 'postcopy', follows: true })
    const stream = wire()
    const relinked: ReturnType<typeof wire>[] = []
    const relink = async () => {
      const again = wire()
      relinked.push(again)
      void w.arrivals.handle(again.b, 'host-source')
      return again.a
    }
    const moving = moveOut({ ...w.order, mode: 'postcopy' }, w.ports(stream, { relink }), never)
    moving.catch(() => {})
    await vi.waitFor(() => expect(w.calls).toContain('follow'))
    return { w, stream, moving, relinked }
  }
  test('over the stream; what has been started there since is not ended', async () => {
    const { w, moving } = await following()
    w.killTarget()
    await expect(moving).rejects.toMatchObject(lost)
    await settled()
    expect(w).toMatchObject(ended)
    expect(w.calls).not.toContain('undo')
  })
  test('also where the QEMU of the source does notice, at the same moment', async () => {
    for (const first of [true, false]) {
      const { w, moving } = await following()
      if (first) w.paused = true
      else setTimeout(() => (w.paused = true), 2)
      w.killTarget(first)
      await expect(moving).rejects.toMatchObject(lost)
      expect(w).toMatchObject(ended)
    }
  })
  test('when the stream breaks and it asks', async () => {
    const { w, stream, moving } = await following()
    stream.pass((m) => m.type !== 'abort')
    w.killTarget()
    await settled()
    stream.cut()
    await expect(moving).rejects.toMatchObject(lost)
    expect(w).toMatchObject(ended)
  })
  test('by a daemon of the target that was started anew and finds nothing', async () => {
    const { w, stream, moving } = await following()
    w.lost = true
    w.target = 'none'
    w.arrivals = w.daemon()
    stream.cut()
    await expect(moving).rejects.toMatchObject(lost)
    expect(w).toMatchObject(ended)
  })
  test('by one that finds the VM started anew, which no move brought', async () => {
    const { w, stream, moving } = await following()
    w.arrivals = w.daemon({
      migration: {
        ...w.b,
        rejoinArriving: async () => undefined,
        ask: async () => ({ is: 'there', status: 'running', migration: 'none', epoch: 2 }),
      },
    })
    stream.cut()
    await expect(moving).rejects.toMatchObject(lost)
    expect(w).toMatchObject({ source: 'gone', target: 'running' })
  })
  test('before it was committed: that comes first, so that it is placed where it can be started', async () => {
    const w = new World()
    Object.assign(w, { how: 'postcopy', follows: true, fails: 'commit' })
    const stream = wire()
    const ports = w.ports(stream)
    stream.pass((m) => {
      if (m.type === 'running') w.killTarget()
      return true
    })
    await expect(moveOut({ ...w.order, mode: 'postcopy' }, ports, never)).rejects.toMatchObject(lost)
    expect(w).toMatchObject(ended)
  })
  test('a stream that breaks is only asked over again: it goes on, and ends well', async () => {
    const { w, stream, moving, relinked } = await following()
    stream.cut()
    await vi.waitFor(() => expect(relinked).toHaveLength(1))
    await settled()
    // Its daemon may have ended: the line of the QEMUs is another.
    expect(w.calls).not.toContain('breakIfStuck')
    w.follows = false
    await moving
    expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b' } })
  })
  test('a line that was cut and is there again: once, QEMU does not wait until TCP tries again', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    const { w, stream, moving, relinked } = await following()
    stream.pass(() => false)
    await vi.advanceTimersByTimeAsync(60_000)
    expect(relinked).toHaveLength(1)
    expect(w.calls.filter((c) => c === 'breakIfStuck')).toHaveLength(1)
    w.follows = false
    await vi.advanceTimersByTimeAsync(1_000)
    vi.useRealTimers()
    await moving
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
  })
  test('all had gone over before its end: that is no end of the move', async () => {
    const { w, moving } = await following()
    w.follows = false
    w.killTarget()
    await moving
    expect(w).toMatchObject({ source: 'gone', placement: { host: 'b' } })
  })
  test('its source was started anew, has no QEMU any more, and can not know: the target says so', async () => {
    for (const lostIt of [false, true]) {
      const w = new World()
      Object.assign(w, { how: 'postcopy', source: 'gone', target: 'running', lost: lostIt })
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
      const moving = resumeMoveOut({ ...w.order, mode: 'postcopy' }, w.ports(wire()), never)
      moving.catch(() => {})
      await vi.advanceTimersByTimeAsync(10_000)
      vi.useRealTimers()
      if (lostIt) await expect(moving).rejects.toMatchObject(lost)
      else expect(await moving).toEqual({ moved: true })
      expect(w.target).toBe(lostIt ? 'none' : 'running')
    }
  })
})
