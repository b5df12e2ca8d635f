import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  type Order,
  type Policy,
  type Seen,
  beginSteering,
  roomFor,
  stallOf,
  steer,
} from '../../src/engine/migration/steer.ts'

const MIB = 2 ** 20
const policy = (over: Partial<Policy> = {}): Policy => ({
  max_stall_ms: 300,
  fixed_ms: 25,
  may_postcopy: false,
  step_ms: 100,
  patience: 6,
  ...over,
})
/** A guest that leaves so many bytes at the begin of each round, over a line of so many bytes a second. */
function drive(rests: readonly number[], bandwidth: number, p: Policy): { orders: Order[]; limits: number[] } {
  let s = beginSteering(p, 0)
  const orders: Order[] = []
  const limits: number[] = [s.limit_ms]
  rests.forEach((remaining_bytes, i) => {
    const seen: Seen = { at_ms: (i + 1) * 150, round: i + 1, remaining_bytes, bandwidth_bytes_per_s: bandwidth }
    const [next, order] = steer(s, seen, p)
    s = next
    orders.push(order)
    limits.push(s.limit_ms)
  })
  return { orders, limits }
}
const last = (orders: Order[]) => orders.findLast((o) => o.do !== 'wait')

describe('when to switch', () => {
  test('the first pass says nothing; an idle guest switches by itself at the first, smallest limit', () => {
    const { orders, limits } = drive([500 * MIB], 100 * MIB, policy())
    expect(orders).toEqual([{ do: 'wait' }])
    expect(limits).toEqual([5, 5])
  })
  test('relaxed step by step', () => {
    const { limits } = drive([500 * MIB, 90 * MIB, 90 * MIB, 90 * MIB, 90 * MIB], 100 * MIB, policy())
    expect(limits).toEqual([5, 5, 8, 12, 18, 27])
  })
  test('the least rest so far that fits is taken at once', () => {
    const { orders } = drive([500 * MIB, 50 * MIB, 10 * MIB], 100 * MIB, policy())
    // 10 MiB at 100 MiB/s are 100 ms; a tenth and a millisecond for what is not known, rounded up.
    expect(orders.at(-1)).toEqual({ do: 'limit', ms: 112 })
  })
  test('it can never end: refused with the number that would do', () => {
    const { orders } = drive(Array<number>(40).fill(100 * MIB), 100 * MIB, policy())
    expect(last(orders)).toEqual({ do: 'refuse', needs_ms: Math.ceil(stallOf(100 * MIB, 100 * MIB, 25) * 1.1) })
  })
  test('it can never end, and post-copy is allowed', () => {
    const { orders } = drive(Array<number>(40).fill(100 * MIB), 100 * MIB, policy({ may_postcopy: true }))
    expect(last(orders)).toEqual({ do: 'postcopy' })
  })
  test('as long as it gets nearer it is not given up', () => {
    const rests = Array.from({ length: 40 }, (_, i) => 1000 * MIB * 0.88 ** i)
    const { orders } = drive(rests, 100 * MIB, policy({ max_stall_ms: 50 }))
    expect(orders.some((o) => o.do === 'refuse')).toBe(false)
  })

  const rests = fc.array(fc.integer({ min: 0, max: 4096 * MIB }), { minLength: 1, maxLength: 60 })
  const bandwidth = fc.integer({ min: 0, max: 10_000 * MIB })
  const policies = fc.record({
    max_stall_ms: fc.integer({ min: 1, max: 10_000 }),
    fixed_ms: fc.integer({ min: 0, max: 200 }),
    may_postcopy: fc.boolean(),
    step_ms: fc.constantFrom(0, 100, 1_000),
    patience: fc.integer({ min: 1, max: 10 }),
  })
  test('the ceiling is never raised, the limit never falls, and post-copy is never begun unasked', () => {
    fc.assert(
      fc.property(rests, bandwidth, policies, (r, b, p) => {
        const { orders, limits } = drive(r, b, p)
        limits.forEach((limit, i) => {
          expect(limit).toBeLessThanOrEqual(roomFor(p))
          expect(limit).toBeGreaterThanOrEqual(Math.max(1, limits[i - 1] ?? 1))
        })
        for (const o of orders) {
          if (o.do === 'limit') expect(o.ms).toBeLessThanOrEqual(roomFor(p))
          if (o.do === 'postcopy') expect(p.may_postcopy).toBe(true)
          if (o.do === 'refuse') {
            expect(p.may_postcopy).toBe(false)
            expect(o.needs_ms).toBeGreaterThan(p.max_stall_ms)
          }
        }
      }),
    )
  })
  test('it always comes to a decision', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 4096 }), policies, (mib, p) => {
        const wanted = { ...p, step_ms: 0 }
        const { orders } = drive(Array<number>(200).fill(mib * MIB), 100 * MIB, wanted)
        const fits = ((mib * MIB) / (100 * MIB)) * 1000 <= roomFor(wanted)
        // What fits is switched by QEMU itself once the limit is there.
        expect(fits || ['postcopy', 'refuse'].includes(last(orders)?.do ?? '')).toBe(true)
      }),
    )
  })
})
