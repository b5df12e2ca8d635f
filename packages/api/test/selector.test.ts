import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseSelector, selects } from '../src/selector.ts'

const labels = { role: 'web', env: 'test', 'a.b/c': 'x=y' }

describe('a selector', () => {
  test.each([
    ['role', true],
    ['role=web', true],
    ['role==web', true],
    ['role=db', false],
    ['role!=db', true],
    ['role!=web', false],
    ['!role', false],
    ['!nosuch', true],
    ['nosuch!=x', true],
    ['nosuch=', false],
    ['role=web,env=test', true],
    ['role=web , env!=test', false],
    ['a.b/c=x=y', true],
    ['constructor', false],
  ])('%s', (text, expected) => {
    expect(selects(parseSelector(text), labels)).toBe(expected)
  })
  test.each(['', ',', 'role,', '=x', '!role=web', '!role!=web', 'Role', 'a b', '!', '-x=1'])(
    'refused, with what would be right: "%s"',
    (text) => {
      expect(() => parseSelector(text, '--selector')).toThrow(/write key, !key, key=value or key!=value/)
    },
  )
  test('`key=value` and `key!=value` part all VMs in two', () => {
    const key = fc.constantFrom('a', 'b')
    const value = fc.constantFrom('', '1', '2')
    fc.assert(
      fc.property(key, value, fc.dictionary(key, value), (k, v, l) => {
        expect(selects(parseSelector(`${k}=${v}`), l)).toBe(!selects(parseSelector(`${k}!=${v}`), l))
        expect(selects(parseSelector(k), l)).toBe(!selects(parseSelector(`!${k}`), l))
      }),
    )
  })
})
