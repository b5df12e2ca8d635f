/**
 * What the heads of disks from elsewhere say, read by ourselves: the size as a guest sees it, and everything for which a disk is
 * refused. A text that comes back finishes the sentence "This disk can't be used: …". The bytes may come from anybody.
 */
import { HEAD_BYTES, readHead } from '../storage/qcow2.ts'
import type { Content, DiskKind } from './identify.ts'
import { type Head, SECTOR, sane } from './sane.ts'
import { readVmdk } from './vmdk.ts'

export async function readDiskHead(format: DiskKind, content: Content): Promise<Head | string> {
  switch (format) {
    case 'raw':
      return content.bytes === 0 ? 'it is empty' : { size_bytes: Math.ceil(content.bytes / SECTOR) * SECTOR, notes: [] }
    case 'qcow2':
      return readQcow2(content)
    case 'vmdk':
      return readVmdk(content)
    case 'vdi':
      return readVdi(content)
    case 'vhdx':
      return readVhdx(content)
    case 'vpc':
      return readVpc(content)
  }
}

async function readQcow2({ read }: Content): Promise<Head | string> {
  const head = readHead(await read(0, HEAD_BYTES))
  if (typeof head === 'string') return head
  if (head.backing !== undefined)
    return 'it is only the changes on top of another file (a backing file), which is not taken from where it says; flatten it first: qemu-img convert -O qcow2 DISK WHOLE.qcow2'
  if (head.data_file) return 'its data is said to lie in another file (an external data file)'
  if (head.encrypted) return 'it is encrypted; decrypt it first: qemu-img convert'
  if (head.corrupt) return 'QEMU marked it as corrupt; repair it first: qemu-img check -r all'
  if (head.unknown_features) return 'it needs features that are not known here'
  const size = sane(BigInt(head.size_bytes))
  if (typeof size === 'string') return size
  const notes = head.internal_snapshots > 0 ? [`its ${head.internal_snapshots} internal snapshots were left out`] : []
  return { size_bytes: size, notes }
}

/** VirtualBox: VDICore.h of its sources, as QEMU's block/vdi.c has it too. Little endian. */
async function readVdi({ read, bytes }: Content): Promise<Head | string> {
  const head = await read(0, 512)
  if (head.length < 512) return 'its head is cut off'
  const version = head.readUInt32LE(0x44)
  if (version !== 0x00010001) return `its VDI version is ${version >> 16}.${version & 0xffff}`
  const type = head.readUInt32LE(0x4c)
  if (type === 4) return 'it is only the changes on top of another disk; merge or clone it in VirtualBox first'
  if (type !== 1 && type !== 2) return `its VDI type is ${type}`
  // A link or a parent is another file.
  if (head.subarray(0x1a8, 0x1c8).some((b) => b !== 0))
    return 'it names another disk that it stands on; clone it in VirtualBox first'
  const size = sane(head.readBigUInt64LE(0x170))
  if (typeof size === 'string') return size
  const blockBytes = head.readUInt32LE(0x178)
  const [blocks, allocated] = [head.readUInt32LE(0x180), head.readUInt32LE(0x184)]
  if (blockBytes !== 2 ** 20) return `its block size is ${blockBytes} bytes`
  if (allocated > blocks || blocks * blockBytes + blockBytes < size) return 'its table of blocks does not fit its size'
  if (head.readUInt32LE(0x158) + allocated * blockBytes > bytes) return 'it is cut off'
  return { size_bytes: size, notes: [] }
}

/** Microsoft's "Virtual Hard Disk Image Format Specification": a footer at the end, for dynamic disks also at the start. Big endian. */
async function readVpc({ read, bytes }: Content): Promise<Head | string> {
  const first = await read(0, SECTOR)
  const foot = first.toString('latin1', 0, 8) === 'conectix' ? first : await read(bytes - SECTOR, SECTOR)
  if (foot.length < SECTOR || foot.toString('latin1', 0, 8) !== 'conectix') return 'its footer is missing'
  let sum = 0
  for (let i = 0; i < SECTOR; i++) if (i < 64 || i >= 68) sum += foot[i] as number
  if (~sum >>> 0 !== foot.readUInt32BE(64)) return 'the checksum of its footer is wrong'
  const type = foot.readUInt32BE(60)
  if (type === 4) return 'it is only the changes on top of another disk (differencing); merge it first'
  if (type !== 2 && type !== 3) return `its VHD type is ${type}`
  const size = sane(foot.readBigUInt64BE(48))
  if (typeof size === 'string') return size
  if (type === 2 && size > bytes - SECTOR) return 'it is cut off'
  return { size_bytes: size, notes: [] }
}

// GUIDs as they lie in the file (MS-VHDX 2.2): the first three groups are little endian.
const METADATA_REGION = '06a27c8b90479a4bb8fe575f050f886e'
const VIRTUAL_DISK_SIZE = '2442a52f1bcd7648b2115dbed83bf4b8'
const FILE_PARAMETERS = '3767a1ca36fa434db3b633f0aa44e76b'
const MIB = 2 ** 20

/** MS-VHDX: the region table at 192 KiB, in it the metadata region, in it the size. */
async function readVhdx({ read, bytes }: Content): Promise<Head | string> {
  const regions = await read(192 * 1024, 64 * 1024)
  if (regions.length < 64 * 1024 || regions.toString('latin1', 0, 4) !== 'regi') return 'its region table is missing'
  const count = regions.readUInt32LE(8)
  if (count > 2047) return 'its region table is not right'
  let at = -1
  for (let i = 0; i < count; i++) {
    const entry = 16 + i * 32
    if (regions.toString('hex', entry, entry + 16) !== METADATA_REGION) continue
    const offset = regions.readBigUInt64LE(entry + 16)
    if (offset < BigInt(MIB) || offset > BigInt(bytes)) return 'its metadata lies outside of it'
    at = Number(offset)
  }
  if (at < 0) return 'it has no metadata'
  const table = await read(at, 64 * 1024)
  if (table.length < 64 * 1024 || table.toString('latin1', 0, 8) !== 'metadata') return 'its metadata is cut off'
  const items = new Map<string, Buffer>()
  const entries = table.readUInt16LE(10)
  if (entries > 2047) return 'its metadata is not right'
  for (let i = 0; i < entries; i++) {
    const entry = 32 + i * 32
    const length = table.readUInt32LE(entry + 20)
    if (length > 1024) continue
    items.set(table.toString('hex', entry, entry + 16), await read(at + table.readUInt32LE(entry + 16), length))
  }
  const parameters = items.get(FILE_PARAMETERS)
  const sized = items.get(VIRTUAL_DISK_SIZE)
  if (!parameters || parameters.length < 8 || !sized || sized.length < 8) return 'its metadata has no size'
  if ((parameters.readUInt32LE(4) & 2) !== 0)
    return 'it is only the changes on top of another disk (differencing); merge it first (Merge-VHD)'
  const size = sane(sized.readBigUInt64LE(0))
  return typeof size === 'string' ? size : { size_bytes: size, notes: [] }
}
