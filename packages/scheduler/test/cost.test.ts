import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ASSUMED_LINK_BYTES_PER_S, costOf, etaOf, linkOf } from '../src/cost.ts'
import { host, vm } from './kit/world.ts'

const MIB = 2 ** 20
const link = (bytes_per_s: number) => ({ bytes_per_s, assumed: false })

describe('what a move costs', () => {
  test('a guest that writes nothing: its RAM once', () => {
    const cost = costOf(vm('x', 'a', { memory_mib: 1000 }), true, [], link(100 * MIB), 1)
    expect(cost).toEqual({ bytes: 1000 * MIB, seconds: 13, assumed: [], converges: true })
  })
  test('one that dirties half of what the link carries: nearly twice', () => {
    const cost = costOf(vm('x', 'a', { memory_mib: 1000, dirty_bytes_per_s: 50 * MIB }), true, [], link(100 * MIB), 1)
    // 1000 + 500 + 250 + 125 + 62.5 + 31.25 + 15.6: no more than 30 are left for the last one.
    expect(cost.bytes / MIB).toBeCloseTo(1984.375, 3)
  })
  test('one that dirties faster than the link carries does not converge, and is no more than twice its RAM', () => {
    const cost = costOf(vm('x', 'a', { memory_mib: 1000, dirty_bytes_per_s: 200 * MIB }), true, [], link(100 * MIB), 1)
    expect(cost).toMatchObject({ bytes: 2000 * MIB, converges: false })
  })
  test('sharing the link with another takes twice as long, and may not converge', () => {
    const busy = vm('x', 'a', { memory_mib: 1000, dirty_bytes_per_s: 50 * MIB })
    expect(costOf(busy, true, [], link(100 * MIB), 2).converges).toBe(false)
    expect(costOf(vm('x', 'a', { memory_mib: 1000 }), true, [], link(100 * MIB), 2).seconds).toBe(23)
  })
  test('a stopped one: its local disks alone', () => {
    const disks = [{ pool: 'a', to_pool: 'b', bytes: 500 * MIB }]
    expect(costOf(vm('x', 'a'), false, disks, link(100 * MIB), 1)).toMatchObject({ bytes: 500 * MIB, seconds: 6 })
    expect(costOf(vm('x', 'a'), false, [], link(100 * MIB), 1)).toMatchObject({ bytes: 0, seconds: 1 })
  })
  test('of local disks what they hold counts, and as full where nobody knows', () => {
    const disks = [
      { pool: 'a', to_pool: 'b', bytes: 500 * MIB, send_bytes: 20 * MIB },
      { pool: 'a', to_pool: 'b', bytes: 500 * MIB, send_bytes: 0 },
    ]
    const web = vm('x', 'a', { memory_mib: 100 })
    expect(costOf(web, true, disks, link(100 * MIB), 1)).toMatchObject({ bytes: 120 * MIB, assumed: [] })
    const unknown = [...disks, { pool: 'a', to_pool: 'b', bytes: 80 * MIB }]
    expect(costOf(web, true, unknown, link(100 * MIB), 1)).toMatchObject({ bytes: 200 * MIB, assumed: ['disk_use'] })
    expect(etaOf([{ cost: costOf(web, true, unknown, link(MIB), 1), after: [] }], 1).how).toContain('taken as full')
  })
  test('says what was assumed', () => {
    const { dirty_bytes_per_s: _, ...unsampled } = vm('x', 'a')
    expect(costOf(unsampled, true, [], { bytes_per_s: 1e8, assumed: true }, 1).assumed).toEqual([
      'link_speed',
      'dirty_rate',
    ])
  })
  test('the link is the slower of both', () => {
    const { link_bytes_per_s: _, ...unknown } = host('u')
    expect(linkOf(host('a', { link_bytes_per_s: 5 }), host('b', { link_bytes_per_s: 7 }))).toEqual(link(5))
    expect(linkOf(unknown, host('b', { link_bytes_per_s: 7 }))).toEqual({ bytes_per_s: 7, assumed: true })
    expect(linkOf(unknown, unknown).bytes_per_s).toBe(ASSUMED_LINK_BYTES_PER_S)
  })
})

const one = (seconds: number, after: number[] = []) => ({
  cost: { bytes: 10, seconds, assumed: [], converges: true },
  after,
})
describe('when all is through', () => {
  test.each([
    ['nothing', [], 2, 0],
    ['one after the other', [one(3), one(4)], 1, 7],
    ['two at once', [one(3), one(4), one(2)], 2, 5],
    ['one that waits for another', [one(3), one(4, [0])], 2, 7],
  ])('%s', (_, actions, at_once, seconds) => {
    expect(etaOf(actions, at_once)).toMatchObject({ seconds, bytes: 10 * actions.length, at_once, assumed: [] })
  })
  test('never sooner than the work allows, nor later than one after the other', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 50 }), { maxLength: 20 }),
        fc.integer({ min: 1, max: 4 }),
        (all, n) => {
          const { seconds } = etaOf(
            all.map((s) => one(s)),
            n,
          )
          const sum = all.reduce((a, b) => a + b, 0)
          expect(seconds).toBeGreaterThanOrEqual(Math.max(sum / n, ...all, 0))
          expect(seconds).toBeLessThanOrEqual(sum)
        },
      ),
    )
  })
})
