import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { asBytes, asExecStatus, asInfo, asInteger, asInterfaces, asOs, asText } from '@wadah/qmp/agent-checks'
import { isQmpError } from '@wadah/qmp/errors'

const lies = expect.objectContaining({ kind: 'protocol', command: 'c' })

describe('what a guest says is checked', () => {
  it('whatever it says: a value of the right shape or a QmpError', () => {
    const checks = [asInfo, asInterfaces, asOs, (c: string, v: unknown) => asExecStatus(c, v, 100)]
    fc.assert(
      fc.property(fc.jsonValue(), fc.constantFrom(...checks), (value, check) => {
        try {
          check('c', value)
        } catch (error) {
          expect(isQmpError(error, 'protocol')).toBe(true)
        }
      }),
    )
  })

  it.each([
    ['no list', {}],
    ['no object', [1]],
    ['no name', [{}]],
    ['a long name', [{ name: 'x'.repeat(300) }]],
    ['no address', [{ name: 'a', 'ip-addresses': [{ 'ip-address': '1.2.3', prefix: 1 }] }]],
    ['a prefix too long', [{ name: 'a', 'ip-addresses': [{ 'ip-address': '1.2.3.4', prefix: 33 }] }]],
    ['a prefix of text', [{ name: 'a', 'ip-addresses': [{ 'ip-address': '::1', prefix: '64' }] }]],
    ['a numeric MAC', [{ name: 'a', 'hardware-address': 5 }]],
  ])('interfaces with %s', (_, value) => {
    expect(() => asInterfaces('c', value)).toThrow(lies)
  })

  it('of many interfaces keeps 64 and counts the rest', () => {
    const address = { 'ip-address': 'fe80::1', prefix: 64 }
    const one = { name: 'e', 'hardware-address': 'AA:BB:CC:00:00:01', 'ip-addresses': Array(70).fill(address) }
    const { interfaces, omitted } = asInterfaces('c', Array(100).fill(one))
    expect(interfaces.length).toBe(64)
    expect(interfaces[0]).toMatchObject({ mac: 'aa:bb:cc:00:00:01' })
    expect(interfaces[0]?.addresses.length).toBe(64)
    expect(omitted).toBe(36 + 64 * 6)
  })

  it('takes the teeth out of control characters', () => {
    expect(asText('c', 'a\u001b[2J\u009b1m\nb', 'x')).toBe('a\ufffd[2J\ufffd1m\ufffdb')
  })

  it.each([[1.5], [-1], [11], ['5'], [null], [undefined], [2 ** 60]])('%j is no integer from 0 to 10', (value) => {
    expect(() => asInteger('c', value, 'x', 0, 10)).toThrow(lies)
  })

  it.each([['AAA'], ['A?=='], ['===='], [1], ['AAAAAAAA']])('%j is no base64 of at most 3 bytes', (value) => {
    expect(() => asBytes('c', value, 'x', 3)).toThrow(lies)
  })

  it('counts bytes, not characters', () => {
    expect(() => asBytes('c', 'AQID', 'x', 2)).toThrow(lies)
  })

  it('accepts base64 of just the limit', () => {
    expect(asBytes('c', 'AQID', 'x', 3)).toEqual(Buffer.of(1, 2, 3))
    expect(asBytes('c', '', 'x', 0)).toEqual(Buffer.alloc(0))
  })

  it.each([
    [{ exited: 'yes' }],
    [{ exited: true, exitcode: 'x' }],
    [{ exited: true, 'out-data': 5 }],
    [{ exited: true, 'out-truncated': 1 }],
    [{ exited: true, 'err-data': Buffer.alloc(200).toString('base64') }],
  ])('an exec status of %j', (value) => {
    expect(() => asExecStatus('c', value, 100)).toThrow(lies)
  })
})
