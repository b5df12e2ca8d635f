import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { readOva } from '@wadah/host/imports/ova'
import { manifest, ovfText, tarHead, tarPadding, TAR_END } from '@wadah/host/imports/ova-write'
import { readOvf, unit } from '@wadah/host/imports/ovf'
import { tarFiles } from '@wadah/host/imports/tar'
import { content, type Entry, ITEM, ovf, tar, vmdk } from './made.ts'

const { signal } = new AbortController()
const ova = (entries: readonly Entry[]) => readOva(content(tar(entries)), signal)
const disk = { name: 'disk1.vmdk', data: vmdk() }
const sha = (data: Uint8Array | string) => createHash('sha256').update(data).digest('hex')

describe('an OVA', () => {
  test('its disks, where they lie, and its hardware', async () => {
    const found = await ova([{ name: 'vm.ovf', data: ovf() }, disk])
    expect(found).toMatchObject({
      format: 'ova',
      disks: [{ format: 'vmdk', size_bytes: 2 ** 20, part: { bytes: vmdk().length } }],
      hardware: { cpus: 2, memory_mib: 768, nics: 2, firmware: 'bios', os: 'Debian & friends' },
    })
    expect(found.notes.join()).toContain('no manifest')
  })
  test('its manifest is checked, by every algorithm', async () => {
    const text = ovf()
    const right = `SHA256(vm.ovf)= ${sha(text)}\nSHA256(disk1.vmdk)= ${sha(vmdk())}\n`
    const entries = [{ name: 'vm.ovf', data: text }, disk]
    expect((await ova([...entries, { name: 'vm.mf', data: right }])).notes).toEqual([])
    const sha1 = createHash('sha1').update(vmdk()).digest('hex')
    const mixed = `SHA256(vm.ovf)= ${sha(text)}\nSHA1 (disk1.vmdk) = ${sha1}\n`
    await ova([...entries, { name: 'vm.mf', data: mixed }])
    const wrong = right.replace(sha(vmdk()), sha('other'))
    await expect(ova([...entries, { name: 'vm.mf', data: wrong }])).rejects.toThrow('does not have the checksum')
    const less = `SHA256(vm.ovf)= ${sha(text)}\n`
    await expect(ova([...entries, { name: 'vm.mf', data: less }])).rejects.toThrow('does not list "disk1.vmdk"')
    const odd = [...entries, { name: 'vm.mf', data: 'rm -rf /' }]
    await expect(ova(odd)).rejects.toThrow('not understood')
  })
  test.each<[string, Entry[], RegExp]>([
    ['a name that leads out', [{ name: '../../etc/cron.d/x', data: 'x' }], /plain name/],
    ['an absolute name', [{ name: '/etc/passwd', data: 'x' }], /plain name/],
    ['a name in a folder', [{ name: 'a/b.vmdk', data: 'x' }], /plain name/],
    ['a symbolic link', [{ name: 'disk1.vmdk', type: '2', link: '/etc/shadow' }], /symbolic link/],
    ['a hard link', [{ name: 'disk1.vmdk', type: '1', link: '/etc/shadow' }], /hard link/],
    ['a device', [{ name: 'sda', type: '4' }], /device/],
    ['a folder', [{ name: 'dir', type: '5' }], /folder/],
    ['a name twice', [disk, disk], /twice/],
    [
      'a long name that leads out',
      [
        { name: '././@LongLink', type: 'L', data: '../x\0' },
        { name: 'x', data: 'x' },
      ],
      /plain name/,
    ],
    [
      'a pax name that leads out',
      [
        { name: 'pax', type: 'x', data: '16 path=../../x\n' },
        { name: 'x', data: 'x' },
      ],
      /plain name/,
    ],
    [
      'a pax link',
      [
        { name: 'pax', type: 'x', data: '22 linkpath=/etc/shad\n' },
        { name: 'x', data: 'x' },
      ],
      /links/,
    ],
    ['a size beyond its end', [{ name: 'disk1.vmdk', data: 'x', size: 2 ** 32 }], /cut off/],
    ['65 files', Array.from({ length: 65 }, (_, i) => ({ name: `f${i}`, data: 'x' })), /more than 64/],
    ['no disk of that name', [], /is not in it/],
    ['a disk that is none', [{ name: 'disk1.vmdk', data: 'root:x:0:0' }], /no disk/],
    [
      'a disk whose data lies elsewhere',
      [{ name: 'disk1.vmdk', data: vmdk({ descriptor: 'createType="monolithicFlat"\nRW 1 FLAT "/etc/shadow" 0\n' }) }],
      /monolithicFlat/,
    ],
  ])('%s is refused', async (_what, entries, why) => {
    await expect(ova([{ name: 'vm.ovf', data: ovf() }, ...entries])).rejects.toThrow(why)
  })
  test('one that is cut off', async () => {
    const whole = tar([{ name: 'vm.ovf', data: ovf() }, disk])
    await expect(readOva(content(whole.subarray(0, whole.length - 4096)), signal)).rejects.toThrow('cut off')
  })
})

describe('its description', () => {
  test('disks come in the order of their places', () => {
    const three = [1, 2, 3]
    const text = ovf({
      files: three.map((n) => `<File ovf:id="file${n}" ovf:href="d${n}.vmdk"/>`).join(''),
      disks: three
        .map(
          (n) =>
            `<Disk ovf:diskId="v${n}" ovf:fileRef="file${n}" ovf:capacity="${n}" ovf:capacityAllocationUnits="byte * 2^30"/>`,
        )
        .join(''),
      items: ITEM(2, 'v1') + ITEM(0, 'v2') + ITEM(1, 'v3'),
    })
    expect(readOvf(text).disks.map((d) => d.file)).toEqual(['d2.vmdk', 'd3.vmdk', 'd1.vmdk'])
  })
  test('an empty disk, and one without a controller', () => {
    const text = ovf({
      disks:
        '<Disk ovf:diskId="vmdisk1" ovf:capacity="4" ovf:capacityAllocationUnits="byte * 2^20"/><Disk ovf:diskId="lost" ovf:capacity="9"/>',
    })
    const found = readOvf(text)
    expect(found.disks).toEqual([{ size_bytes: 4 * 2 ** 20 }])
    expect(found.notes).toEqual([expect.stringContaining('1 disks')])
  })
  test('firmware, as VMware and as VirtualBox say it', () => {
    expect(readOvf(ovf({ more: '<vmw:Config vmw:key="firmware" vmw:value="efi"/>' })).hardware.firmware).toBe('uefi')
    const vbox = ovf().replace(
      '</VirtualSystem>',
      '<vbox:Machine><Hardware><Firmware type="EFI64"/></Hardware></vbox:Machine></VirtualSystem>',
    )
    expect(readOvf(vbox).hardware.firmware).toBe('uefi')
  })
  test.each<[string, string, RegExp]>([
    ['entities', `<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/shadow">]>${ovf()}`, /document type/],
    ['no XML', 'hello', /envelope/],
    ['several VMs', ovf().replaceAll('VirtualSystem', 'VirtualSystemCollection'), /several VMs/],
    ['compressed files', ovf({ files: '<File ovf:id="file1" ovf:href="d" ovf:compression="gzip"/>' }), /compressed/],
    ['chunks', ovf({ files: '<File ovf:id="file1" ovf:href="d" ovf:chunkSize="7"/>' }), /chunks/],
    ['no disk', ovf({ disks: '', items: '' }), /no disk/],
    [
      'a size that is none',
      ovf({ disks: '<Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="-1"/>' }),
      /size/,
    ],
    [
      '8 EiB',
      ovf({
        disks:
          '<Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^60"/>',
      }),
      /size/,
    ],
    ['too long', ovf() + ' '.repeat(2 ** 20), /longer/],
  ])('%s is refused', (_what, text, why) => {
    expect(() => readOvf(text)).toThrow(why)
  })
  test.each([
    ['byte * 2^20', 2 ** 20],
    ['byte*2^30', 2 ** 30],
    ['MegaBytes', 2 ** 20],
    ['GB', 2 ** 30],
    ['byte', 1],
  ])('%s', (text, bytes) => {
    expect(unit(text)).toBe(bytes)
  })
})

test('what we write we read', async () => {
  const parts = [
    { name: 'vm-disk1.vmdk', data: vmdk() },
    { name: 'vm-disk2.vmdk', data: vmdk({ capacity: 4096n }) },
  ]
  const hardware = { cpus: 3, memory_mib: 1024, nics: 2, firmware: 'uefi', os: 'A & "B" <C>' } as const
  const text = Buffer.from(
    ovfText('vm', hardware, [
      { name: 'vm-disk1.vmdk', bytes: 1, size_bytes: 2 ** 20 },
      { name: 'vm-disk2.vmdk', bytes: 1, size_bytes: 2 ** 21 },
    ]),
  )
  const mf = Buffer.from(
    manifest([{ file: 'vm.ovf', sha256: sha(text) }, ...parts.map((p) => ({ file: p.name, sha256: sha(p.data) }))]),
  )
  const all = [{ name: 'vm.ovf', data: text }, { name: 'vm.mf', data: mf }, ...parts]
  const archive = Buffer.concat([
    ...all.flatMap((e) => [tarHead(e.name, e.data.length), e.data, tarPadding(e.data.length)]),
    TAR_END,
  ])
  const found = await readOva(content(archive), signal)
  expect(found.hardware).toEqual(hardware)
  expect(found.disks.map((d) => d.size_bytes)).toEqual([2 ** 20, 2 ** 21])
  expect(found.notes).toEqual([])
})

test('files from 8 GiB on keep their size', async () => {
  const big = 9 * 2 ** 30
  const head = tarHead('disk.vmdk', big)
  const sparse = {
    bytes: 512 + big + 1024,
    read: async (at: number, n: number) => (at === 0 ? head.subarray(0, n) : Buffer.alloc(n)),
  }
  expect(await tarFiles(sparse)).toEqual([{ name: 'disk.vmdk', offset: 512, bytes: big }])
})
