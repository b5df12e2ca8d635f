import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { UNLIMITED_MS, isRestless, mostBytes, patience } from '../../src/engine/snapshot/patience.ts'

const GIB = 2 ** 30

describe('how long a guest may be held', () => {
  test.each([
    [0, 0, 50, false],
    [1, 0.9, 50, false],
    [2, 0.95, 100, false],
    [3, 0.96, 300, false],
    [4, 0.97, 1000, true],
    [5, 0.98, UNLIMITED_MS, true],
    [2, 1.01, UNLIMITED_MS, true],
  ])('round %i, %f of its RAM sent: %i ms, restless %s', (rounds, sent, ms, restless) => {
    const saving = { rounds, sent_bytes: sent * GIB, ram_bytes: GIB }
    expect([patience(saving), isRestless(saving)]).toEqual([ms, restless])
  })

  test('never less than before, and without a limit before the file could become too large', () => {
    const saving = fc.record({
      rounds: fc.nat(20),
      sent_bytes: fc.nat(4 * GIB),
      ram_bytes: fc.integer({ min: 1, max: GIB }),
    })
    fc.assert(
      fc.property(saving, fc.nat(3), fc.nat(GIB), (s, rounds, bytes) => {
        expect(patience({ ...s, rounds: s.rounds + rounds, sent_bytes: s.sent_bytes + bytes })).toBeGreaterThanOrEqual(
          patience(s),
        )
        if (s.sent_bytes + s.ram_bytes > mostBytes(s.ram_bytes)) expect(patience(s)).toBe(UNLIMITED_MS)
      }),
    )
  })
})
