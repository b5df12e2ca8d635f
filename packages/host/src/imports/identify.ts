/** What a file is, by its first bytes (and its last, for the formats that keep their head there). Nothing it says is believed yet. */

/** Bytes of a file from somewhere on; fewer at its end. */
export type Read = (offset: number, length: number) => Promise<Buffer>
/** A file, or a part of one. */
export type Content = { read: Read; bytes: number }

export type DiskKind = 'qcow2' | 'vmdk' | 'vdi' | 'vhdx' | 'vpc' | 'raw'
export type Packing = 'gzip' | 'xz' | 'zstd'
export type Kind =
  | { kind: 'disk'; format: DiskKind }
  | { kind: 'packed'; by: Packing }
  | { kind: 'ova' }
  /** A thing we know and do not take; `why` finishes the sentence "This file …". */
  | { kind: 'refused'; why: string }
  /** Nothing that we know, not even a boot sector. */
  | { kind: 'unknown' }

/** From the specifications of each format; offsets in bytes. */
const MAGICS: readonly { at: number; hex: string; is: Kind }[] = [
  { at: 0, hex: '514649fb', is: { kind: 'disk', format: 'qcow2' } },
  { at: 0, hex: '4b444d56', is: { kind: 'disk', format: 'vmdk' } },
  { at: 64, hex: '7f10dabe', is: { kind: 'disk', format: 'vdi' } },
  { at: 0, hex: Buffer.from('vhdxfile').toString('hex'), is: { kind: 'disk', format: 'vhdx' } },
  { at: 0, hex: Buffer.from('conectix').toString('hex'), is: { kind: 'disk', format: 'vpc' } },
  { at: 0, hex: '1f8b08', is: { kind: 'packed', by: 'gzip' } },
  { at: 0, hex: 'fd377a585a00', is: { kind: 'packed', by: 'xz' } },
  { at: 0, hex: '28b52ffd', is: { kind: 'packed', by: 'zstd' } },
  {
    at: 0,
    hex: Buffer.from('# Disk DescriptorFile').toString('hex'),
    is: {
      kind: 'refused',
      why: 'is only the description of a VMDK, whose data lies in other files; import an OVA, or a VMDK in one file (monolithicSparse or streamOptimized)',
    },
  },
  {
    at: 0,
    hex: Buffer.from('COWD').toString('hex'),
    is: { kind: 'refused', why: 'is one extent of an old VMDK; export the VM as an OVA' },
  },
  { at: 0, hex: '51454400', is: { kind: 'refused', why: 'is a QED disk, which is not taken' } },
  { at: 0, hex: '4c554b53babe', is: { kind: 'refused', why: 'is encrypted (LUKS)' } },
  { at: 0, hex: Buffer.from('WithoutFreeSpace').toString('hex'), is: { kind: 'refused', why: 'is a Parallels disk' } },
  { at: 0, hex: Buffer.from('WithouFreSpacExt').toString('hex'), is: { kind: 'refused', why: 'is a Parallels disk' } },
  { at: 0, hex: '504b0304', is: { kind: 'refused', why: 'is a ZIP archive: unpack it, and import the disk in it' } },
  { at: 0, hex: '425a68', is: { kind: 'refused', why: 'is packed by bzip2: unpack it first (bunzip2)' } },
  { at: 0, hex: '377abcaf271c', is: { kind: 'refused', why: 'is a 7z archive: unpack it, and import the disk in it' } },
  {
    at: 32_769,
    hex: Buffer.from('CD001').toString('hex'),
    is: { kind: 'refused', why: 'is a CD or DVD (ISO 9660), not a disk: install from it' },
  },
]

/** Sector size of footers. */
const SECTOR = 512

export async function identify({ read, bytes }: Content): Promise<Kind> {
  const head = await read(0, 36_864)
  for (const { at, hex, is } of MAGICS) {
    if (head.subarray(at, at + hex.length / 2).toString('hex') !== hex) continue
    // An ISO that also has a partition table is meant to be written to a USB stick: still no disk of a server.
    return is
  }
  if (head.toString('latin1', 257, 262) === 'ustar') {
    const first = head.toString('latin1', 0, 100).split('\0')[0] ?? ''
    return first.toLowerCase().endsWith('.ovf')
      ? { kind: 'ova' }
      : { kind: 'refused', why: 'is a tar archive, but no OVA: its first file is no .ovf' }
  }
  if (bytes >= SECTOR && (await read(bytes - SECTOR, 8)).toString('latin1') === 'conectix')
    return { kind: 'disk', format: 'vpc' }
  // A boot sector (also the protective one of GPT).
  if (bytes >= SECTOR && head[510] === 0x55 && head[511] === 0xaa) return { kind: 'disk', format: 'raw' }
  return { kind: 'unknown' }
}
