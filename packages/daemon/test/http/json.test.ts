import fc from 'fast-check'
import { expect, test } from 'vitest'
import { toJson } from '../../src/http/json.ts'

test('is what JSON.stringify makes, the first time and again', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.jsonValue(),
        fc.record({ items: fc.array(fc.jsonValue()), next: fc.option(fc.string(), { nil: undefined }) }),
      ),
      (value) => {
        const plain = JSON.parse(JSON.stringify(value) ?? 'null')
        expect(JSON.parse(toJson(value))).toEqual(plain)
        expect(JSON.parse(toJson(value))).toEqual(plain)
      },
    ),
  )
})

test('an item that was given out is not written anew', () => {
  let asked = 0
  const item = {
    get a() {
      asked++
      return 1
    },
  }
  for (let i = 0; i < 3; i++) expect(toJson({ items: [item], next: 'x' })).toBe('{"items":[{"a":1}],"next":"x"}')
  expect(asked).toBe(1)
})
