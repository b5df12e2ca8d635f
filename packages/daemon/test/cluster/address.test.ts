import { WadahError } from '@wadah/api/fault'
import { expect, test } from 'vitest'
import { canonical, checkAddress, unreachableFor } from '../../src/cluster/address.ts'

const OWN = ['127.0.0.1', '::1', 'fe80::1', '192.0.2.11', '2001:db8::11']
const refused = (address: string, own = OWN) => {
  try {
    checkAddress(address, own)
  } catch (error) {
    if (error instanceof WadahError) return error.fault
    throw error
  }
  throw new Error(`${address} was taken`)
}

test.each([
  ['127.0.0.1', 'loopback'],
  ['127.8.9.10', 'loopback'],
  ['::1', 'loopback'],
  ['0:0:0:0:0:0:0:1', 'loopback'],
  ['::ffff:127.0.0.1', 'loopback'],
  ['169.254.3.4', 'link-local'],
  ['fe80::1', 'link-local'],
  ['fe80::1%eth0', 'link-local'],
  ['febf::1', 'link-local'],
  ['0.0.0.0', 'no one host'],
  ['::', 'no one host'],
  ['224.0.0.5', 'no one host'],
  ['ff02::1', 'no one host'],
  ['host2.example', 'no IP address'],
  ['', 'no IP address'],
  ['192.0.2.77', 'no address of this host'],
])('%s is refused, and what would do is said', (address, why) => {
  const { code, field, detail, remedy } = refused(address)
  expect({ code, field }).toEqual({ code: 'invalid', field: '/address' })
  expect(detail).toContain(why)
  expect(detail).toContain('This host has 192.0.2.11, 2001:db8::11.')
  expect(remedy).toContain('--address ADDRESS')
})

test('where only one would do it is named', () => {
  expect(refused('127.0.0.1', ['127.0.0.1', '192.0.2.11']).remedy).toBe('--address 192.0.2.11')
  expect(refused('127.0.0.1', ['127.0.0.1', 'fe80::1']).detail).toContain('has no address that would do')
})

test('an address of the host is taken, in its usual form', () => {
  expect(checkAddress('192.0.2.11', OWN)).toBe('192.0.2.11')
  expect(checkAddress('2001:DB8:0::11', OWN)).toBe('2001:db8::11')
  expect(canonical('host-bbbbbbbbbb')).toBeUndefined()
  expect(unreachableFor('10.0.0.1')).toBeUndefined()
})
