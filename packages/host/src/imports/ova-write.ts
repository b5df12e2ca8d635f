/** The parts of an OVA that we write: description (OVF 1, DSP0243), manifest, heads of the archive (POSIX ustar). Pure. */
import type { ImageHardware } from '@wadah/api/schema/imports'

const BLOCK = 512
export const TAR_END = Buffer.alloc(2 * BLOCK)

/** The head of one plain file. From 8 GiB on the size is written in base 256, as GNU tar and VMware's tools do. */
export function tarHead(name: string, bytes: number): Buffer {
  const block = Buffer.alloc(BLOCK)
  const octal = (value: number, length: number): string => `${value.toString(8).padStart(length - 1, '0')}\0`
  if (Buffer.byteLength(name) > 99) throw new RangeError(`too long a name for an archive: ${name}`)
  block.write(name, 0, 'utf8')
  block.write(octal(0o644, 8), 100)
  block.write(octal(0, 8), 108)
  block.write(octal(0, 8), 116)
  if (bytes < 8 ** 11) block.write(octal(bytes, 12), 124)
  else {
    block[124] = 0x80
    block.writeBigUInt64BE(BigInt(bytes), 128)
  }
  block.write(octal(0, 12), 136)
  block.write('        ', 148)
  block.write('0', 156)
  block.write('ustar\x0000', 257)
  let sum = 0
  for (const byte of block) sum += byte
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

export const tarPadding = (bytes: number): Buffer => Buffer.alloc((BLOCK - (bytes % BLOCK)) % BLOCK)

export function manifest(sums: readonly { file: string; sha256: string }[]): string {
  return sums.map(({ file, sha256 }) => `SHA256(${file})= ${sha256}\n`).join('')
}

const escape = (value: string): string =>
  value
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll(/[^\x20-\x7e]/g, '?')

/** Hardware that VMware, VirtualBox and others take: SATA disks and E1000 NICs need no drivers of ours. */
export function ovfText(
  name: string,
  hardware: ImageHardware,
  disks: readonly { name: string; bytes: number; size_bytes: number }[],
): string {
  const { cpus = 1, memory_mib = 512, nics = 1, firmware = 'bios' } = hardware
  const item = (fields: Record<string, string | number>): string =>
    `      <Item>\n${Object.entries(fields)
      .toSorted(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, value]) => `        <rasd:${key}>${escape(String(value))}</rasd:${key}>\n`)
      .join('')}      </Item>\n`
  let id = 3
  const diskItems = disks.map((_, i) =>
    item({
      AddressOnParent: i,
      ElementName: `disk${i + 1}`,
      HostResource: `ovf:/disk/vmdisk${i + 1}`,
      InstanceID: ++id,
      Parent: 3,
      ResourceType: 17,
    }),
  )
  const nicItems = Array.from({ length: nics }, (_, i) =>
    item({
      AddressOnParent: i,
      AutomaticAllocation: 'true',
      Connection: 'network',
      ElementName: `ethernet${i}`,
      InstanceID: ++id,
      ResourceSubType: 'E1000',
      ResourceType: 10,
    }),
  )
  return `<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
${disks.map((d, i) => `    <File ovf:href="${escape(d.name)}" ovf:id="file${i + 1}" ovf:size="${d.bytes}"/>\n`).join('')}  </References>
  <DiskSection>
    <Info>Disks</Info>
${disks.map((d, i) => `    <Disk ovf:capacity="${d.size_bytes}" ovf:diskId="vmdisk${i + 1}" ovf:fileRef="file${i + 1}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>\n`).join('')}  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="network"><Description>network</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id="${escape(name)}">
    <Info>A virtual machine</Info>
    <Name>${escape(name)}</Name>
    <OperatingSystemSection ovf:id="${hardware.os === undefined ? 1 : 101}">
      <Info>Guest system</Info>
      <Description>${escape(hardware.os ?? 'Other')}</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>${escape(name)}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
${item({ AllocationUnits: 'hertz * 10^6', ElementName: `${cpus} CPUs`, InstanceID: 1, ResourceType: 3, VirtualQuantity: cpus })}${item({ AllocationUnits: 'byte * 2^20', ElementName: `${memory_mib} MiB`, InstanceID: 2, ResourceType: 4, VirtualQuantity: memory_mib })}${item({ Address: 0, ElementName: 'sata', InstanceID: 3, ResourceSubType: 'AHCI', ResourceType: 20 })}${diskItems.join('')}${nicItems.join('')}${firmware === 'uefi' ? '      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>\n' : ''}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`
}
