import { PassThrough } from 'node:stream'
import fc from 'fast-check'
import type { ArrivalState, MoveLimits, QemuAnswer } from '@wadah/ports/migration'
import { describe, expect, test } from 'vitest'
import { ClockEstimate, offsetOf, stallOf } from '../../src/migration/clock.ts'
import { type ForecastInput, compared, forecast } from '../../src/migration/forecast.ts'
import { parseMessage, streamLink } from '../../src/migration/link.ts'
import { type Resolution, resolveMove } from '../../src/migration/resolve.ts'

describe('the other clock', () => {
  test('an offset is never further off than half of the round trip', () => {
    const ms = fc.double({ min: 0, max: 500, noNaN: true })
    fc.assert(
      fc.property(fc.double({ min: -1e6, max: 1e6, noNaN: true }), ms, ms, ms, (offset, there, work, back) => {
        const t1_ms = 1_000_000
        const t2_ms = t1_ms + there + offset
        const t3_ms = t2_ms + work
        const t4_ms = t1_ms + there + work + back
        const found = offsetOf({ t1_ms, t2_ms, t3_ms, t4_ms })
        expect(Math.abs(found.offset_ms - offset)).toBeLessThanOrEqual(found.round_trip_ms / 2 + 1e-6)
        expect(found.round_trip_ms).toBeCloseTo(there + back, 5)
      }),
    )
  })
  test('the sample with the least round trip counts; nonsense does not', () => {
    const clock = new ClockEstimate()
    expect(clock.best).toBeUndefined()
    clock.add({ t1_ms: 0, t2_ms: 110, t3_ms: 110, t4_ms: 20 })
    clock.add({ t1_ms: 0, t2_ms: 101, t3_ms: 101, t4_ms: 2 })
    clock.add({ t1_ms: 0, t2_ms: 190, t3_ms: 190, t4_ms: 80 })
    clock.add({ t1_ms: Number.NaN, t2_ms: 0, t3_ms: 0, t4_ms: 0 })
    expect(clock.best).toEqual({ offset_ms: 100, round_trip_ms: 2, samples: 3 })
    expect(stallOf(1_000, 1_130, clock.best)).toEqual({ stall_ms: 30, error_ms: 1 })
    expect(stallOf(1_000, 1_030, undefined)).toEqual({ stall_ms: 30, error_ms: Number.POSITIVE_INFINITY })
  })
})

describe('after a break', () => {
  const there = (migration: string, status = 'postmigrate'): QemuAnswer => ({
    is: 'there',
    status,
    migration,
    epoch: 1,
  })
  const table: [QemuAnswer, ArrivalState, Resolution][] = [
    [there('completed'), 'waiting', 'go'],
    [there('completed'), 'running', 'finish'],
    [there('completed'), 'committed', 'finish'],
    [there('completed'), 'undone', 'take-back'],
    // It may have run there and written to its disks: what is in RAM here is older.
    [there('completed'), 'unknown', 'lost'],
    // Taken back already.
    [there('completed', 'running'), 'unknown', 'take-back'],
    [there('completed'), 'cannot-tell', 'ask-again'],
    [there('active', 'running'), 'waiting', 'undo-target'],
    [there('active', 'running'), 'undone', 'take-back'],
    [there('failed', 'running'), 'unknown', 'take-back'],
    // It never let go, so `go` was never said.
    [there('active', 'running'), 'cannot-tell', 'take-back'],
    [there('none', 'running'), 'cannot-tell', 'take-back'],
    [there('postcopy-active', 'finish-migrate'), 'waiting', 'go'],
    [there('postcopy-paused', 'finish-migrate'), 'running', 'finish'],
    [there('postcopy-active', 'finish-migrate'), 'undone', 'lost'],
    [{ is: 'gone' }, 'waiting', 'go'],
    [{ is: 'gone' }, 'running', 'finish'],
    [{ is: 'gone' }, 'undone', 'lost'],
    [{ is: 'gone' }, 'unknown', 'lost'],
    [{ is: 'gone' }, 'cannot-tell', 'ask-again'],
    [there('postcopy-paused', 'finish-migrate'), 'cannot-tell', 'ask-again'],
    [{ is: 'unknown', why: '' }, 'waiting', 'ask-again'],
    [{ is: 'unknown', why: '' }, 'undone', 'ask-again'],
    [{ is: 'unknown', why: '' }, 'running', 'finish'],
  ]
  test.each(table)('source %o, target %s: %s', (source, target, wanted) => {
    expect(resolveMove(source, target)).toBe(wanted)
  })
  test('it never runs in two places: one that has let go is taken back only on the word that it never ran there', () => {
    const sources = ['completed', 'active', 'failed', 'cancelled', 'setup', 'device', 'none', 'postcopy-active'].map(
      (m) => there(m),
    )
    const states: ArrivalState[] = ['waiting', 'running', 'committed', 'undone', 'unknown', 'cannot-tell']
    for (const source of [...sources, { is: 'gone' } as const, { is: 'unknown', why: '' } as const]) {
      for (const state of states) {
        const what = resolveMove(source, state)
        if (what === 'take-back' && source.is === 'there' && /completed|postcopy/.test(source.migration))
          expect(state).toBe('undone')
        if (what === 'take-back') expect(['undone', 'unknown', 'cannot-tell']).toContain(state)
        if (what === 'go' && source.is === 'there') expect(source.migration).not.toBe('active')
      }
    }
  })
})

describe('a forecast', () => {
  const MIB = 2 ** 20
  const limits: MoveLimits = { max_stall_ms: 300 }
  const input = (over: Partial<ForecastInput> = {}): ForecastInput => ({
    ram_bytes: 1024 * MIB,
    dirty_bytes_per_s: 10 * MIB,
    bandwidth_bytes_per_s: 100 * MIB,
    mode: 'precopy',
    limits,
    fixed_ms: 25,
    around_ms: 200,
    ...over,
  })
  test('an idle guest: its size over the line, and no more', () => {
    const f = forecast(input({ dirty_bytes_per_s: 0 }))
    expect(f).toEqual({
      how: 'precopy',
      converges: true,
      rounds: 1,
      stall_ms: 25,
      bytes: 1024 * MIB,
      total_ms: 10_240 + 200 + 25,
    })
  })
  test('local disks go before: their bytes are apart, their time counts', () => {
    for (const mode of ['precopy', 'postcopy'] as const) {
      const [without, withDisks] = [forecast(input({ mode })), forecast(input({ mode, disk_bytes: 1024 * MIB }))]
      const total_ms = expect.closeTo(without.total_ms + 10_240, 6)
      expect(withDisks).toEqual({ ...without, disk_bytes: 1024 * MIB, total_ms })
    }
  })
  test('a writing guest takes rounds', () => {
    const f = forecast(input())
    expect(f).toMatchObject({ converges: true, rounds: 2 })
    expect(f.bytes).toBeCloseTo(1024 * 1.11 * MIB, -6)
  })
  test('one that writes faster than the line: no, with the number, unless post-copy may', () => {
    const fast = { dirty_bytes_per_s: 200 * MIB }
    expect(forecast(input(fast))).toMatchObject({ converges: false, why: expect.stringContaining('200 MiB/s') })
    expect(forecast(input({ ...fast, mode: 'auto', limits: { ...limits, may_postcopy: true } }))).toMatchObject({
      how: 'postcopy',
      converges: true,
    })
    expect(forecast(input({ ...fast, mode: 'postcopy' }))).toMatchObject({ converges: true, stall_ms: 25 })
    expect(forecast(input({ bandwidth_bytes_per_s: 0 })).converges).toBe(false)
  })
  test('more line, less writing: never dearer', () => {
    const mib = fc.integer({ min: 0, max: 2_000 })
    fc.assert(
      fc.property(mib, fc.integer({ min: 1, max: 2_000 }), fc.integer({ min: 1, max: 500 }), (dirty, line, more) => {
        const slow = forecast(input({ dirty_bytes_per_s: dirty * MIB, bandwidth_bytes_per_s: line * MIB }))
        const fast = forecast(input({ dirty_bytes_per_s: dirty * MIB, bandwidth_bytes_per_s: (line + more) * MIB }))
        if (slow.converges) expect(fast.converges).toBe(true)
        if (slow.converges) expect(slow.stall_ms).toBeLessThanOrEqual(limits.max_stall_ms + 1)
        expect(Number.isFinite(slow.total_ms)).toBe(true)
      }),
    )
  })
  test('how it came out', () => {
    const f = { how: 'precopy' as const, converges: true, rounds: 1, stall_ms: 50, total_ms: 1_000, bytes: 100 }
    expect(compared(f, { stall_ms: 25, total_ms: 2_000, claim: { sent_bytes: 110 } })).toEqual({
      stall: 0.5,
      total: 2,
      bytes: 1.1,
    })
    expect(compared({ ...f, stall_ms: 0 }, { stall_ms: 25, total_ms: 2_000, claim: {} })).toEqual({ total: 2 })
  })
})

describe('the stream', () => {
  test('of messages that are not known nothing is heard; what is no message ends it', async () => {
    expect(parseMessage('{"type":"from-the-future"}')).toBeUndefined()
    for (const line of ['nonsense', '{}', '[]', 'null', '{"type":5}'])
      expect(() => parseMessage(line)).toThrow('malformed')
    const stream = new PassThrough()
    const link = streamLink(stream)
    const heard: string[] = []
    link.listen((m) => heard.push(m.type))
    stream.write('{"type":"done","job":"j"}\n{"type":"later"}\n{"type":"co')
    stream.write('mmitted","job":"j"}\nnonsense\n')
    expect(await link.closed).toContain('no JSON')
    expect(heard).toEqual(['done', 'committed'])
  })
})
