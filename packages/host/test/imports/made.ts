/** Heads of disks and archives, made byte by byte for the tests: also such as no honest program makes. */
import type { Content } from '@wadah/host/imports/identify'

export function content(bytes: Uint8Array): Content {
  const all = Buffer.from(bytes)
  return { bytes: all.length, read: async (at, length) => all.subarray(at, at + length) }
}

export const DESCRIPTOR = [
  '# Disk DescriptorFile',
  'version=1',
  'CID=fffffffe',
  'parentCID=ffffffff',
  'createType="monolithicSparse"',
  'RW 2048 SPARSE "disk.vmdk"',
  '',
].join('\n')

export function vmdk(o: { descriptor?: string; capacity?: bigint; gd?: bigint } = {}): Buffer {
  const file = Buffer.alloc(64 * 512)
  file.write('KDMV', 0)
  file.writeUInt32LE(1, 4)
  file.writeBigUInt64LE(o.capacity ?? 2048n, 12)
  file.writeBigUInt64LE(128n, 20)
  file.writeBigUInt64LE(1n, 28)
  file.writeBigUInt64LE(20n, 36)
  file.writeBigUInt64LE(o.gd ?? 26n, 56)
  file.write(o.descriptor ?? DESCRIPTOR, 512)
  return file
}

export function vdi(change: (head: Buffer) => void = () => {}): Buffer {
  const file = Buffer.alloc(3 * 2 ** 20)
  file.writeUInt32LE(0xbeda107f, 0x40)
  file.writeUInt32LE(0x00010001, 0x44)
  file.writeUInt32LE(1, 0x4c)
  file.writeUInt32LE(2 ** 20, 0x158)
  file.writeBigUInt64LE(4n * 2n ** 20n, 0x170)
  file.writeUInt32LE(2 ** 20, 0x178)
  file.writeUInt32LE(4, 0x180)
  file.writeUInt32LE(2, 0x184)
  change(file)
  return file
}

export function vpc(change: (foot: Buffer) => void = () => {}): Buffer {
  const foot = Buffer.alloc(512)
  foot.write('conectix', 0)
  foot.writeBigUInt64BE(2n ** 20n, 48)
  foot.writeUInt32BE(2, 60)
  change(foot)
  let sum = 0
  for (const byte of foot) sum += byte
  foot.writeUInt32BE(~sum >>> 0, 64)
  return Buffer.concat([Buffer.alloc(2 ** 20), foot])
}

export type Entry = { name: string; data?: Uint8Array | string; type?: string; link?: string; size?: number }

/** A tar archive of anything. */
export function tar(entries: readonly Entry[]): Buffer {
  const parts = entries.flatMap(({ name, data = '', type = '0', link = '', size }) => {
    const body = Buffer.from(data as string)
    const head = Buffer.alloc(512)
    head.write(name, 0, 100)
    head.write('0000644\0', 100)
    head.write('0000000\0', 108)
    head.write('0000000\0', 116)
    head.write(`${(size ?? body.length).toString(8).padStart(11, '0')}\0`, 124)
    head.write('00000000000\0', 136)
    head.write('        ', 148)
    head.write(type, 156)
    head.write(link, 157)
    head.write('ustar\x0000', 257)
    let sum = 0
    for (const byte of head) sum += byte
    head.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    return [head, body, Buffer.alloc((512 - (body.length % 512)) % 512)]
  })
  return Buffer.concat([...parts, Buffer.alloc(1024)])
}

export function ovf(o: { files?: string; disks?: string; items?: string; more?: string } = {}): string {
  return `<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="r">
  <References>${o.files ?? '<File ovf:id="file1" ovf:href="disk1.vmdk"/>'}</References>
  <DiskSection><Info>x</Info>${o.disks ?? '<Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^20"/>'}</DiskSection>
  <VirtualSystem ovf:id="vm">
    <OperatingSystemSection ovf:id="96"><Description>Debian &amp; friends</Description></OperatingSystemSection>
    <VirtualHardwareSection>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>768</rasd:VirtualQuantity></Item>
      ${o.items ?? ITEM(1, 'vmdisk1')}
      <Item><rasd:InstanceID>20</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
      <Item><rasd:InstanceID>21</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
      ${o.more ?? ''}
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>`
}
export const ITEM = (at: number, disk: string, parent = 3): string =>
  `<Item><rasd:AddressOnParent>${at}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/${disk}</rasd:HostResource><rasd:InstanceID>${100 + at}</rasd:InstanceID><rasd:Parent>${parent}</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>`
