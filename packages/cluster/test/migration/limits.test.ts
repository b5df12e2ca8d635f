import { describe, expect, test } from 'vitest'
import { foreseenLimits, moveLimits } from '../../src/migration/limits.ts'

describe('post-copy is decided by what the target says', () => {
  test.each([
    ['it can', 'auto', { postcopy: true }, true, true],
    ['it can not', 'auto', { postcopy: false }, false, false],
    // It would refuse the whole move where it can't.
    ['a host of the release before says nothing', 'auto', {}, false, false],
    ['a host of which nothing is known', 'auto', undefined, false, false],
    ['nobody wants it', 'precopy', { postcopy: true }, false, false],
  ] as const)('%s', (_what, mode, target, may, foreseen) => {
    const limits = moveLimits({}, mode, target)
    expect(limits).toEqual({ max_stall_ms: 300, may_postcopy: may })
    expect(foreseenLimits(limits, target).may_postcopy).toBe(foreseen)
  })
  test('what was wished for goes along', () => {
    expect(moveLimits({ max_stall_ms: 50, bandwidth_mib_per_s: 2 }, 'auto', { postcopy: true })).toEqual({
      max_stall_ms: 50,
      may_postcopy: true,
      bandwidth_bytes_per_s: 2 * 2 ** 20,
    })
  })
})
