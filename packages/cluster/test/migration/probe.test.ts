import { EventEmitter } from 'node:events'
import { type connect, createServer } from 'node:net'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type Ask, askTcp, EVERY_MS, gapOf, Probe, Seen } from '@wadah/cluster/migration/probe'

/** One question every `EVERY_MS` from `from` to `to`, each answered after `took`. */
function ask(seen: Seen, from: number, to: number, took: number | undefined): void {
  for (let at = from; at < to; at += EVERY_MS) {
    const part = seen.asked()
    if (took !== undefined) seen.answered(part, took, at + took)
  }
}

describe('gapOf', () => {
  test('the longest time without an answer, and how long answers took in each part', () => {
    const seen = new Seen()
    ask(seen, 0, 1000, 1)
    seen.part = 'during'
    ask(seen, 1000, 2000, 2)
    ask(seen, 2000, 2100, undefined)
    ask(seen, 2100, 3000, 2)
    seen.part = 'after'
    ask(seen, 3000, 3100, 0.54)
    expect(gapOf(seen, '10.0.0.2', 3101)).toEqual({
      address: '10.0.0.2',
      sent: 775,
      lost: 25,
      // The last one before: asked at 1996, there at 1998. The first one after: asked at 2100, there at 2102.
      longest_gap_ms: 104,
      before_ms: 1,
      during_ms: 2,
      after_ms: 0.5,
    })
  })

  test('where nothing comes any more it lasts until the end', () => {
    const seen = new Seen()
    ask(seen, 0, 100, 1)
    seen.part = 'during'
    ask(seen, 100, 5100, undefined)
    expect(gapOf(seen, 'a', 5100)).toMatchObject({ longest_gap_ms: 5100 - 97, lost: 1250, before_ms: 1 })
    expect(gapOf(seen, 'a', 5100)).not.toHaveProperty('during_ms')
  })

  test('of a guest that said nothing before the move nothing can be said', () => {
    const seen = new Seen()
    expect(gapOf(seen, 'a', 10)).toBeUndefined()
    ask(seen, 0, 1000, undefined)
    seen.part = 'during'
    ask(seen, 1000, 2000, 1)
    expect(gapOf(seen, 'a', 2000)).toBeUndefined()
  })

  test('an answer counts where it was asked for; one beyond all patience as the slowest', () => {
    const seen = new Seen()
    ask(seen, 0, 8, 1)
    const slow = seen.asked()
    seen.part = 'during'
    seen.answered(slow, 9_999, 10_007)
    seen.answered(slow, 9_999, 10_007)
    expect(gapOf(seen, 'a', 10_008)).toMatchObject({ longest_gap_ms: 10_002, before_ms: 3000 })
  })
})

describe('Probe', () => {
  beforeEach(() =>
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'setTimeout', 'clearTimeout', 'performance'] }),
  )
  afterEach(() => vi.useRealTimers())

  /** A guest that answers at once, or says nothing at all. */
  function rig() {
    const guest = { silent: false, asked: 0 }
    const answer: Ask = (_address, _port, over) => {
      guest.asked += 1
      if (guest.silent) setTimeout(() => over(false), 3000)
      else over(true)
    }
    const probe = new Probe('10.0.0.2', 9, () => performance.now(), answer)
    const end = async () => {
      const gap = probe.end()
      await vi.advanceTimersByTimeAsync(200)
      return gap
    }
    return { guest, probe, end }
  }

  test('a move of an hour: the gap is that of the switch, asked 200 times a second all the while', async () => {
    const { guest, probe, end } = rig()
    vi.advanceTimersByTime(2000)
    probe.begins()
    vi.advanceTimersByTime(3_600_000)
    const asked = guest.asked
    vi.advanceTimersByTime(1000)
    expect(guest.asked - asked).toBeGreaterThanOrEqual(200)
    guest.silent = true
    vi.advanceTimersByTime(80)
    guest.silent = false
    vi.advanceTimersByTime(1000)
    const gap = await end()
    expect(gap?.longest_gap_ms).toBeGreaterThanOrEqual(80)
    expect(gap?.longest_gap_ms).toBeLessThanOrEqual(90)
    expect(gap?.sent).toBeGreaterThan(900_000)
    expect(gap?.lost).toBeLessThanOrEqual(21)
    expect(gap).toMatchObject({ before_ms: 0, during_ms: 0, after_ms: 0 })
  })

  test('no answer at all', async () => {
    const { guest, probe, end } = rig()
    guest.silent = true
    vi.advanceTimersByTime(5000)
    probe.begins()
    vi.advanceTimersByTime(5000)
    expect(await end()).toBeUndefined()
  })

  test('a guest that never comes back: silence until the end', async () => {
    const { guest, probe, end } = rig()
    vi.advanceTimersByTime(1000)
    probe.begins()
    guest.silent = true
    vi.advanceTimersByTime(60_000)
    expect((await end())?.longest_gap_ms).toBeGreaterThanOrEqual(60_000)
  })

  test('stopped it asks no more', () => {
    const { guest, probe } = rig()
    vi.advanceTimersByTime(100)
    probe.stop()
    const { asked } = guest
    vi.advanceTimersByTime(1000)
    expect(guest.asked).toBe(asked)
  })
})

describe('askTcp', () => {
  const asked = (port: number, connectTo?: typeof connect) =>
    new Promise<boolean>((resolve) => askTcp('127.0.0.1', port, resolve, connectTo))

  test('taken and refused are answers both', async () => {
    const server = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    const { port } = server.address() as { port: number }
    expect(await asked(port)).toBe(true)
    await new Promise((resolve) => server.close(resolve))
    expect(await asked(port)).toBe(true)
  })

  test.each([
    [
      'cut off by the guest',
      true,
      (s: EventEmitter) => s.emit('error', Object.assign(new Error(), { code: 'ECONNRESET' })),
    ],
    [
      'unreachable, says a router',
      false,
      (s: EventEmitter) => s.emit('error', Object.assign(new Error(), { code: 'EHOSTUNREACH' })),
    ],
    ['nothing, until the patience ends', false, (s: EventEmitter) => s.emit('timeout')],
  ])('%s: %s', async (_, answers, happens) => {
    const socket = Object.assign(new EventEmitter(), {
      destroy: () => socket.emit('error', Object.assign(new Error(), { code: 'ECONNRESET' })),
      setTimeout: (_ms: number, run: () => void) => socket.on('timeout', run),
    })
    const answer = asked(9, (() => socket) as unknown as typeof connect)
    happens(socket)
    expect(await answer).toBe(answers)
  })
})
