import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { mergeCidrs, parseCidr, parsePorts } from '@wadah/api/cidr'

describe('subnets', () => {
  test.each([
    ['10.1.2.3/8', '10.0.0.0/8'],
    ['10.1.2.3', '10.1.2.3/32'],
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['2001:DB8::1/32', '2001:db8:0:0:0:0:0:0/32'],
    ['::', '0:0:0:0:0:0:0:0/128'],
    ['fe80::1', 'fe80:0:0:0:0:0:0:1/128'],
    ['1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8/128'],
  ])('%s is %s', (text, wanted) => expect(parseCidr(text)?.text).toBe(wanted))
  test.each([
    '',
    '10.0.0',
    '10.0.0.256',
    '010.0.0.1',
    '10.0.0.1/33',
    '10.0.0.1/08',
    '1::2::3',
    ':1',
    '1:2:3:4:5:6:7',
    '::g',
    '1::/129',
    '10.0.0.1/8/8',
    '::1.2.3.4',
    '1:2:3:4:5:6:7:8::',
  ])('%j is none', (text) => expect(parseCidr(text)).toBeUndefined())
  test('merged they are apart, and hold what they held before', () => {
    const cidr = fc
      .tuple(fc.nat(15), fc.integer({ min: 28, max: 32 }))
      .map(([n, bits]) => parseCidr(`10.0.0.${n}/${bits}`)!)
    fc.assert(
      fc.property(fc.array(cidr, { maxLength: 8 }), fc.nat(31), (list, n) => {
        const at = parseCidr(`10.0.0.${n}`)!.first
        const holds = (of: typeof list) => of.filter((c) => c.first <= at && at <= c.last).length
        expect(holds(mergeCidrs(list))).toBe(Math.min(1, holds(list)))
      }),
    )
  })
})

test('ports are put in order and together', () => {
  expect(parsePorts('443,80,80-81,82')).toEqual([
    [80, 82],
    [443, 443],
  ])
  for (const none of ['', '0', '65536', '9-8', '1,', 'x', '1-2-3']) expect(parsePorts(none)).toBeUndefined()
})
