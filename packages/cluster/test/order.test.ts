import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Ordered, graceOf, orderedOf, rebooted, startGroups, stopGroups } from '../src/host/order.ts'

const vm = (name: string, order: number, delay_s = 0): Ordered => ({ vm: `vm-${name}`, name, order, delay_s })
const ordered = fc.array(
  fc.tuple(fc.string(), fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 9 })).map(([n, o, d]) => vm(n, o, d)),
)

describe('the order of starts', () => {
  test('smaller first, equal together, the longest delay of a group after it', () => {
    const groups = startGroups([vm('c', 20), vm('b', 10, 5), vm('a', 10, 30), vm('d', 5)])
    expect(groups.map((g) => [g.order, g.vms.map((v) => v.name), g.delay_s])).toEqual([
      [5, ['d'], 0],
      [10, ['a', 'b'], 30],
      [20, ['c'], 0],
    ])
  })
  test('without anything said a VM has order 100 and no delay', () => {
    expect(orderedOf({ id: 'vm-a', name: 'a' })).toEqual({ vm: 'vm-a', name: 'a', order: 100, delay_s: 0 })
    expect(orderedOf({ id: 'vm-a', name: 'a', autostart: { enabled: true, order: 7, delay_s: 3 } }).order).toBe(7)
  })
  test('every VM once, in order; down in the reverse of up', () => {
    fc.assert(
      fc.property(ordered, (list) => {
        const groups = startGroups(list)
        expect(groups.flatMap((g) => g.vms).length).toBe(list.length)
        expect(groups.map((g) => g.order)).toEqual(groups.map((g) => g.order).toSorted((a, b) => a - b))
        expect(stopGroups(list)).toEqual(groups.toReversed())
      }),
    )
  })
})

describe('the time a group is given to shut down', () => {
  test.each([
    [{ left_ms: 300_000, later_groups: 0, each_s: 120 }, 120],
    [{ left_ms: 100_000, later_groups: 0, each_s: 120 }, 100],
    [{ left_ms: 100_000, later_groups: 3, each_s: 120 }, 85],
    [{ left_ms: 10_000, later_groups: 3, each_s: 120 }, 1],
    [{ left_ms: -5, later_groups: 0, each_s: 120 }, 1],
  ])('%j: %d s', (o, s) => {
    expect(graceOf(o)).toBe(s)
  })
  test('all groups together keep within what is given, but for a second each', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 400 }),
        fc.integer({ min: 1, max: 20 }),
        fc.integer({ min: 1, max: 300 }),
        (total_s, groups, each_s) => {
          let left_ms = total_s * 1000
          for (let later = groups - 1; later >= 0; later--)
            left_ms -= graceOf({ left_ms, later_groups: later, each_s }) * 1000
          expect(left_ms).toBeGreaterThanOrEqual(-groups * 1000)
        },
      ),
    )
  })
})

test('a boot is told from a start of the daemon; a host never seen before starts nothing', () => {
  expect([rebooted('a', 'a'), rebooted('a', 'b'), rebooted(undefined, 'b')]).toEqual([false, true, false])
})
