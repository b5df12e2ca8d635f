import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  HEAD_BYTES,
  headProblem,
  MAX_SIZE_BYTES,
  newQcow2,
  readHead,
  type Layout,
  type Overlay,
} from '@wadah/host/storage/qcow2'

/** The file that a layout describes. */
function render(layout: Layout): Buffer {
  const file = Buffer.alloc(layout.file_bytes)
  for (const { offset, data } of layout.writes) file.set(data, offset)
  return file
}

const size = fc.integer({ min: 1, max: 2 ** 31 }).map((n) => n * 512)
const backing = fc.record({
  file: fc.stringMatching(/^[a-z0-9./-]{1,200}$/),
  format: fc.constantFrom('qcow2' as const, 'raw' as const),
})

describe('newQcow2', () => {
  test('an empty disk of 1 GiB, field by field as the specification has them', () => {
    const file = render(newQcow2(2 ** 30))
    expect(file.length).toBe(4 * 65536)
    expect(file.subarray(0, 8).toString('hex')).toBe('514649fb00000003')
    expect(file.readBigUInt64BE(8), 'no backing file').toBe(0n)
    expect(file.readUInt32BE(20), 'cluster bits').toBe(16)
    expect(file.readBigUInt64BE(24), 'size').toBe(2n ** 30n)
    expect(file.readUInt32BE(32), 'no encryption').toBe(0)
    expect(file.readUInt32BE(36), 'L1 entries').toBe(2)
    expect(file.readBigUInt64BE(40), 'L1 table').toBe(3n * 65536n)
    expect(file.readBigUInt64BE(48), 'refcount table').toBe(65536n)
    expect(file.readUInt32BE(56), 'its clusters').toBe(1)
    expect(file.readUInt32BE(60), 'snapshots').toBe(0)
    expect(file.subarray(72, 96), 'no features').toEqual(Buffer.alloc(24))
    expect(file.readUInt32BE(96), '16-bit refcounts').toBe(4)
    expect(file.readUInt32BE(100), 'header length').toBe(112)
    expect(file.readBigUInt64BE(65536), 'refcount block').toBe(2n * 65536n)
    expect(file.subarray(131072, 131082).toString('hex')).toBe('00010001000100010000')
    expect(file.subarray(3 * 65536).every((byte) => byte === 0)).toBe(true)
  })

  test('every cluster of the head is counted once, however long the L1 table', () => {
    for (const bytes of [512, 2 ** 29, 2 ** 29 + 512, 2 ** 42, 2 ** 42 + 512, MAX_SIZE_BYTES]) {
      const { file_bytes, writes } = newQcow2(bytes)
      const refcounts = writes[2]?.data ?? new Uint8Array()
      expect(refcounts.length / 2).toBe(file_bytes / 65536)
      expect((file_bytes / 65536 - 3) * 65536).toBeGreaterThanOrEqual(Math.ceil(bytes / 2 ** 29) * 8)
      expect(refcounts.length).toBeLessThanOrEqual(65536)
    }
  })

  test('what is written is read back', () => {
    fc.assert(
      fc.property(size, fc.option(backing, { nil: undefined }), (bytes, base) => {
        const head = readHead(render(newQcow2(bytes, base)).subarray(0, HEAD_BYTES))
        expect(head).toEqual({
          version: 3,
          size_bytes: bytes,
          ...(base === undefined ? {} : { backing: base }),
          data_file: false,
          encrypted: false,
          corrupt: false,
          unknown_features: false,
          internal_snapshots: 0,
        })
        if (typeof head !== 'string') expect(headProblem(head, { size_bytes: bytes, backing: base })).toBeUndefined()
      }),
    )
  })

  test('refuses what the format cannot hold', () => {
    for (const bytes of [-512, 1, 513, 1.5, NaN, MAX_SIZE_BYTES + 512])
      expect(() => newQcow2(bytes)).toThrow(RangeError)
    for (const file of ['', 'x'.repeat(1024), 'a\0b'])
      expect(() => newQcow2(512, { file, format: 'raw' })).toThrow(RangeError)
  })
})

describe('readHead', () => {
  test('never throws, whatever the bytes', () => {
    const valid = render(newQcow2(2 ** 30, { file: 'vol-aaaaaaaaaa.qcow2', format: 'qcow2' })).subarray(0, 4096)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        readHead(bytes)
      }),
    )
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat({ max: 400 }), fc.nat({ max: 255 })), { maxLength: 12 }),
        fc.nat({ max: 4096 }),
        (changes, cut) => {
          const bytes = Buffer.from(valid)
          for (const [at, value] of changes) bytes[at] = value
          bytes.writeUInt32BE(0x514649fb, 0)
          readHead(bytes.subarray(0, cut))
        },
      ),
      { numRuns: 2000 },
    )
  })

  test('says what is wrong with what is no qcow2', () => {
    const valid = (): Buffer => render(newQcow2(2 ** 30, { file: 'a', format: 'raw' })).subarray(0, 65536)
    const changed = (change: (b: Buffer) => void): unknown => {
      const b = valid()
      change(b)
      return readHead(b)
    }
    expect(readHead(Buffer.from('hello'))).toContain('does not begin')
    expect(changed((b) => b.writeUInt32BE(4, 4))).toContain('version is 4')
    expect(changed((b) => b.writeUInt32BE(40, 20))).toContain('cluster size')
    expect(changed((b) => b.writeUInt32BE(9999999, 100))).toContain('header length')
    expect(changed((b) => b.writeUInt32BE(2000, 16))).toContain('outside')
    expect(changed((b) => b.writeBigUInt64BE(2n ** 63n, 8))).toContain('outside')
    expect(changed((b) => b.writeUInt32BE(0xffffffff, 116))).toContain('over its end')
    expect(changed((b) => b.writeBigUInt64BE(2n ** 63n, 24))).toContain('size')
  })
})

describe('headProblem', () => {
  const base: Overlay = { file: 'vol-aaaaaaaaaa.qcow2', format: 'qcow2' }
  const head = (change: (b: Buffer) => void = () => {}, on: Overlay | undefined = base) => {
    const b = render(newQcow2(1024, on)).subarray(0, 65536)
    change(b)
    const read = readHead(b)
    if (typeof read === 'string') throw new Error(read)
    return read
  }
  test('only the recorded base, by name and format, passes', () => {
    const recorded = { size_bytes: 1024, backing: base }
    expect(headProblem(head(), recorded)).toBeUndefined()
    expect(headProblem(head(undefined, { ...base, file: '/etc/shadow' }), recorded)).toContain('another file')
    expect(headProblem(head(undefined, { ...base, format: 'raw' }), recorded)).toContain('format')
    expect(headProblem(head(), { size_bytes: 1024 })).toContain('stand by itself')
    expect(headProblem(head(), { ...recorded, size_bytes: 2048 })).toContain('size')
  })
  test('foreign data files, encryption, corruption and unknown features do not pass', () => {
    const recorded = { size_bytes: 1024, backing: base }
    expect(
      headProblem(
        head((b) => b.writeBigUInt64BE(4n, 72)),
        recorded,
      ),
    ).toContain('another file')
    expect(
      headProblem(
        head((b) => b.writeUInt32BE(0x44415441, 112)),
        { size_bytes: 1024, backing: base },
      ),
    ).toContain('another file')
    expect(
      headProblem(
        head((b) => b.writeUInt32BE(1, 32)),
        recorded,
      ),
    ).toContain('encrypted')
    expect(
      headProblem(
        head((b) => b.writeBigUInt64BE(2n, 72)),
        recorded,
      ),
    ).toContain('corrupt')
    expect(
      headProblem(
        head((b) => b.writeBigUInt64BE(1n << 40n, 72)),
        recorded,
      ),
    ).toContain('features')
  })
})
