import { expect, test } from 'vitest'
import { olderQemu } from '../src/qemu-version.ts'

test.each([
  ['7.2.22', '7.2.22', false],
  ['7.2.0', '7.2.22', false],
  ['7.1.5', '7.2.0', true],
  ['7.2', '8.0.0', true],
  ['10.0.2', '9.2.1', false],
  ['9.2.1', '10.0.2', true],
])('%s is older than %s: %s', (a, b, older) => {
  expect(olderQemu(a, b)).toBe(older)
})
