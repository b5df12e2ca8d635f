/** Networks on which VMs move unencrypted. */
import { describe, expect, test } from 'vitest'
import { isPlainBetween, plainNetworks } from '../../src/members/plain.ts'

describe('as they are kept', () => {
  test('host bits are cut off, each is there once', () => {
    expect(plainNetworks(['10.9.0.7/24', '10.9.0.0/24', 'fd00::1/64'])).toEqual([
      '10.9.0.0/24',
      'fd00:0:0:0:0:0:0:0/64',
    ])
    expect(plainNetworks([])).toEqual([])
  })
  test.each(['', 'lan', '10.9.0.0', '10.9.0.0/33', '10.9.0/24', 'fd00::/129', '10.9.0.0/24/24', '0.0.0.256/8'])(
    '"%s" is none',
    (text) => {
      expect(() => plainNetworks([text])).toThrow(
        expect.objectContaining({ fault: expect.objectContaining({ code: 'invalid' }) }),
      )
    },
  )
})

test.each<[string[], (string | undefined)[], boolean]>([
  [[], ['10.9.0.1', '10.9.0.2'], false],
  [['10.9.0.0/24'], ['10.9.0.1', '10.9.0.2'], true],
  [['10.9.0.0/24'], ['10.9.0.1', '10.9.1.2'], false],
  // Two networks are two: a router between them is somebody who can read.
  [['10.9.0.0/24', '10.9.1.0/24'], ['10.9.0.1', '10.9.1.2'], false],
  [['10.8.0.0/24', '10.9.0.0/24'], ['10.9.0.1', '10.9.0.255'], true],
  [['10.9.0.0/24'], ['10.9.0.1', undefined], false],
  [['10.9.0.0/24'], ['10.9.0.1', 'host.example'], false],
  [['fd00:0:0:0:0:0:0:0/64'], ['fd00::1', 'fd00::2'], true],
  [['fd00:0:0:0:0:0:0:0/64'], ['fd00::1', 'fd00:0:0:1::2'], false],
  [['0.0.0.0/0'], ['10.9.0.1', 'fd00::1'], false],
])('on %j, from and to %j: %s', (networks, hosts, plain) => {
  expect(isPlainBetween(networks, ...hosts)).toBe(plain)
})
