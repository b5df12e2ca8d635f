import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isQmpError } from '@wadah/qmp/errors'
import { LineDecoder, parseLine } from '@wadah/qmp/wire'
import { cutAt } from './helpers.ts'

const read = (chunks: Iterable<Uint8Array>, decoder = new LineDecoder()): string[] => {
  const lines: string[] = []
  for (const chunk of chunks) for (const line of decoder.push(chunk)) lines.push(line.toString())
  return lines
}

describe('LineDecoder', () => {
  it('gives the same lines however the bytes are cut', () => {
    const text = fc.string({ unit: 'binary' }).map((line) => JSON.stringify(line))
    fc.assert(
      fc.property(fc.array(text), fc.infiniteStream(fc.integer({ min: 1, max: 9 })), (lines, sizes) => {
        const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''))
        expect(read(cutAt(bytes, sizes))).toEqual(lines)
      }),
    )
  })

  it('keeps an unfinished line, and forgets it on reset', () => {
    const decoder = new LineDecoder()
    expect(read([Buffer.from('a\nbc')], decoder)).toEqual(['a'])
    expect(decoder.pending_bytes).toBe(2)
    decoder.reset()
    expect(read([Buffer.from('d\n')], decoder)).toEqual(['d'])
  })

  it('reads a line of many megabytes that comes in small pieces', () => {
    const pieces = Array.from({ length: 20_000 }, (_, n) => Buffer.alloc(1_000, `${n},`))
    const [line = ''] = read([...pieces, Buffer.from('\n')])
    expect(Buffer.from(line).equals(Buffer.concat(pieces))).toBe(true)
  })

  it('accepts a line of just the limit and refuses one byte more, finished or not', () => {
    expect(read([Buffer.from('12345\n')], new LineDecoder(5))).toEqual(['12345'])
    for (const chunks of [['123456\n'], ['123', '456'], ['123456']]) {
      const decode = () =>
        read(
          chunks.map((chunk) => Buffer.from(chunk)),
          new LineDecoder(5),
        )
      expect(decode).toThrow(expect.objectContaining({ kind: 'protocol' }))
    }
  })

  it('gives the lines before one that is too long', () => {
    const seen: string[] = []
    expect(() => {
      for (const line of new LineDecoder(3).push(Buffer.from('ab\n12345\n'))) seen.push(line.toString())
    }).toThrow('more than 3 bytes')
    expect(seen).toEqual(['ab'])
  })
})

describe('parseLine', () => {
  it.each([
    ['{"a":1}', { a: 1 }],
    ['  {"a":"ü"}\r', { a: 'ü' }],
    ['\r', undefined],
    ['', undefined],
  ])('reads %j', (line, value) => {
    expect(parseLine(Buffer.from(line))).toEqual(value)
  })

  it.each([
    ['no JSON', Buffer.from('{"a":')],
    ['a list', Buffer.from('[1]')],
    ['a number', Buffer.from('1')],
    ['null', Buffer.from('null')],
    ['broken UTF-8', Buffer.concat([Buffer.from('{"a":"'), Buffer.of(0xc3), Buffer.from('"}')])],
    ['very long garbage', Buffer.alloc(100_000, 'x')],
  ])('refuses %s with a short error', (_, line) => {
    try {
      parseLine(line)
      expect.unreachable()
    } catch (error) {
      expect(isQmpError(error, 'protocol')).toBe(true)
      expect((error as Error).message.length).toBeLessThan(300)
    }
  })
})
