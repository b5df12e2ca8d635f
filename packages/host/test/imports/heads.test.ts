import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { readDiskHead } from '@wadah/host/imports/heads'
import { type DiskKind, identify } from '@wadah/host/imports/identify'
import { decide } from '@wadah/host/imports/imports'
import { descriptorProblem } from '@wadah/host/imports/vmdk'
import { newQcow2 } from '@wadah/host/storage/qcow2'
import { content, DESCRIPTOR, tar, vdi, vmdk, vpc } from './made.ts'

function qcow2(size = 2 ** 30, change: (head: Buffer) => void = () => {}): Buffer {
  const { file_bytes, writes } = newQcow2(size)
  const file = Buffer.alloc(file_bytes)
  for (const { offset, data } of writes) file.set(data, offset)
  change(file)
  return file
}
const boot = Buffer.alloc(1024)
boot.set([0x55, 0xaa], 510)

describe('what a file is', () => {
  test.each<[string, Uint8Array, unknown]>([
    ['qcow2', qcow2(), { kind: 'disk', format: 'qcow2' }],
    ['vmdk', vmdk(), { kind: 'disk', format: 'vmdk' }],
    ['vdi', vdi(), { kind: 'disk', format: 'vdi' }],
    ['vpc, its footer at the end', vpc(), { kind: 'disk', format: 'vpc' }],
    ['gzip', Buffer.from('1f8b080000', 'hex'), { kind: 'packed', by: 'gzip' }],
    ['xz', Buffer.from('fd377a585a0000', 'hex'), { kind: 'packed', by: 'xz' }],
    ['zstd', Buffer.from('28b52ffd00', 'hex'), { kind: 'packed', by: 'zstd' }],
    ['a boot sector', boot, { kind: 'disk', format: 'raw' }],
    ['nothing known', Buffer.from('<html>not found</html>'), { kind: 'unknown' }],
    ['empty', Buffer.alloc(0), { kind: 'unknown' }],
    ['an OVA', tar([{ name: 'vm.ovf', data: 'x' }]), { kind: 'ova' }],
  ])('%s', async (_what, bytes, wanted) => {
    expect(await identify(content(bytes))).toEqual(wanted)
  })
  test.each<[string, Uint8Array, RegExp]>([
    ['a VMDK descriptor alone', Buffer.from(DESCRIPTOR), /other files/],
    ['a tar without a description', tar([{ name: 'passwd', data: 'x' }]), /no OVA/],
    ['a ZIP', Buffer.from('504b03041400', 'hex'), /ZIP/],
    ['LUKS', Buffer.from('4c554b53babe0001', 'hex'), /encrypted/],
  ])('%s is refused by name', async (_what, bytes, why) => {
    const kind = await identify(content(bytes))
    expect(kind).toMatchObject({ kind: 'refused', why: expect.stringMatching(why) })
    expect(() => decide(kind, undefined)).toThrow(why)
  })
  test('what was asked for must be what it is', () => {
    const found = { kind: 'disk', format: 'qcow2' } as const
    expect(decide(found, undefined)).toBe('qcow2')
    expect(() => decide(found, 'raw')).toThrow('The file is qcow2, and not raw')
    expect(() => decide({ kind: 'unknown' }, undefined)).toThrow('no boot sector')
    expect(decide({ kind: 'unknown' }, 'raw')).toBe('raw')
    expect(() => decide({ kind: 'unknown' }, 'qcow2')).toThrow('no disk')
  })
})

describe('heads', () => {
  test.each<[DiskKind, Uint8Array, number]>([
    ['qcow2', qcow2(), 2 ** 30],
    ['vmdk', vmdk(), 2 ** 20],
    ['vdi', vdi(), 4 * 2 ** 20],
    ['vpc', vpc(), 2 ** 20],
    ['raw', Buffer.alloc(1000), 1024],
  ])('%s: its size', async (format, bytes, size_bytes) => {
    expect(await readDiskHead(format, content(bytes))).toEqual({ size_bytes, notes: [] })
  })

  const named = (name: string) => (head: Buffer) => {
    head.writeBigUInt64BE(512n, 8)
    head.writeUInt32BE(name.length, 16)
    head.write(name, 512)
  }
  test.each<[string, DiskKind, Uint8Array, RegExp]>([
    ['backing file', 'qcow2', qcow2(2 ** 30, named('/etc/shadow')), /backing file/],
    ['backing file by protocol', 'qcow2', qcow2(2 ** 30, named('nbd://10.0.0.1/x')), /backing file/],
    ['external data file', 'qcow2', qcow2(2 ** 30, (h) => h.writeBigUInt64BE(4n, 72)), /external data file/],
    ['encrypted', 'qcow2', qcow2(2 ** 30, (h) => h.writeUInt32BE(2, 32)), /encrypted/],
    ['8 EiB', 'qcow2', qcow2(2 ** 30, (h) => h.writeBigUInt64BE(2n ** 63n, 24)), /size/],
    ['unknown feature', 'qcow2', qcow2(2 ** 30, (h) => h.writeBigUInt64BE(1n << 40n, 72)), /features/],
    ['cut', 'qcow2', qcow2().subarray(0, 60), /begin/],
    ['vmdk: no size, so that the descriptor would count', 'vmdk', vmdk({ capacity: 0n }), /no size/],
    ['vmdk: 8 EiB', 'vmdk', vmdk({ capacity: 2n ** 54n }), /more than any disk/],
    ['vmdk: footer missing', 'vmdk', vmdk({ gd: 2n ** 64n - 1n }), /cut off/],
    ['vdi: differencing', 'vdi', vdi((h) => h.writeUInt32LE(4, 0x4c)), /changes on top/],
    ['vdi: parent', 'vdi', vdi((h) => h.writeUInt8(7, 0x1b8)), /another disk/],
    ['vdi: cut', 'vdi', vdi((h) => h.writeUInt32LE(4, 0x184)), /cut off/],
    ['vdi: 8 EiB', 'vdi', vdi((h) => h.writeBigUInt64LE(2n ** 63n, 0x170)), /more than any disk/],
    ['vpc: differencing', 'vpc', vpc((f) => f.writeUInt32BE(4, 60)), /differencing/],
    ['vpc: cut', 'vpc', vpc((f) => f.writeBigUInt64BE(2n ** 30n, 48)), /cut off/],
    ['vpc: checksum', 'vpc', Buffer.from(vpc()).fill(1, 2 ** 20 + 100, 2 ** 20 + 104), /checksum/],
    ['vhdx: nothing in it', 'vhdx', Buffer.from('vhdxfile'), /region table/],
    ['raw: empty', 'raw', Buffer.alloc(0), /empty/],
  ])('%s is refused', async (_what, format, bytes, why) => {
    expect(await readDiskHead(format, content(bytes))).toMatch(why)
  })
  test('internal snapshots are left out, and that is said', async () => {
    const head = await readDiskHead('qcow2', content(qcow2(2 ** 30, (h) => h.writeUInt32BE(3, 60))))
    expect(head).toMatchObject({ notes: [expect.stringContaining('3 internal snapshots')] })
  })
  test('no bytes make a reader fail or claim a size that is none', async () => {
    const formats: DiskKind[] = ['qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'raw']
    const begin = [qcow2().subarray(0, 512), vmdk().subarray(0, 2048), vdi().subarray(0, 512), vpc().subarray(2 ** 20)]
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...begin),
        fc.array(fc.tuple(fc.nat(511), fc.nat(255)), { maxLength: 12 }),
        fc.constantFrom(...formats),
        async (seed, changes, format) => {
          const bytes = Buffer.from(seed)
          for (const [at, value] of changes) bytes[at] = value
          await identify(content(bytes))
          const head = await readDiskHead(format, content(bytes))
          if (typeof head === 'string') return
          expect(Number.isSafeInteger(head.size_bytes) && head.size_bytes > 0 && head.size_bytes <= 2 ** 50).toBe(true)
          expect(head.size_bytes % 512).toBe(0)
        },
      ),
      { numRuns: 500 },
    )
  })
})

describe('the descriptor in a VMDK', () => {
  test('one extent in the same file is right', () => {
    expect(descriptorProblem(DESCRIPTOR)).toBeUndefined()
    expect(descriptorProblem(DESCRIPTOR.replace('monolithicSparse', 'streamOptimized'))).toBeUndefined()
  })
  test.each<[string, string, RegExp]>([
    [
      'an extent that is another file',
      DESCRIPTOR.replace('RW 2048 SPARSE "disk.vmdk"', 'RW 2048 FLAT "/etc/shadow" 0'),
      /another file/,
    ],
    ['two extents', `${DESCRIPTOR}RW 2048 SPARSE "b.vmdk"\n`, /2 extents/],
    ['two extents, one in disguise', `${DESCRIPTOR}\t rw 2048 flat "/etc/shadow" 0\n`, /2 extents/],
    ['no extent', DESCRIPTOR.replace(/RW .*\n/, ''), /0 extents/],
    ['a type in several files', DESCRIPTOR.replace('monolithicSparse', 'twoGbMaxExtentFlat'), /twoGbMaxExtentFlat/],
    ['a parent', DESCRIPTOR.replace('parentCID=ffffffff', 'parentCID=12345678'), /snapshot/],
    ['a parent by name', `${DESCRIPTOR}parentFileNameHint="/etc/shadow"\n`, /snapshot/],
    ['no type', DESCRIPTOR.replace(/createType.*\n/, ''), /createType/],
  ])('%s is refused', (_what, text, why) => {
    expect(descriptorProblem(text)).toMatch(why)
  })
})
