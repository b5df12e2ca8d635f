/**
 * The head of a qcow2 file, read and written without a process: format as in QEMU's docs/interop/qcow2.txt. What we write is what
 * `qemu-img create -o compat=1.1,cluster_size=64k` writes (no lazy refcounts, no extended L2, 16-bit refcounts), save the table of
 * feature names, which is for messages only. Nothing here touches a file: bytes in, bytes out.
 */

const MAGIC = 0x514649fb
const CLUSTER_BITS = 16
const CLUSTER = 1 << CLUSTER_BITS
const HEADER_LENGTH = 112
/** Guest bytes that one L1 entry maps: an L2 table fills a cluster with 8-byte entries. */
const L1_SPAN = (CLUSTER / 8) * CLUSTER
const EXT_END = 0
const EXT_BACKING_FORMAT = 0xe2792aca
const EXT_DATA_FILE = 0x44415441
/** qcow2 stores the size in 64 bits; we stay where a JavaScript number is exact and QEMU's L1 limit (32 MiB) is far. */
export const MAX_SIZE_BYTES = 2 ** 50
/** QEMU's own limit on the length of a backing file's name. */
const MAX_BACKING_NAME = 1023

export type DiskFormat = 'qcow2' | 'raw'
export type Overlay = { file: string; format: DiskFormat }

/** What to write where into an empty file, and how long the file is: everything else in it is a hole. */
export type Layout = { file_bytes: number; writes: { offset: number; data: Uint8Array }[] }

/**
 * A new qcow2 of `size_bytes` (a multiple of 512), empty or on top of `backing`, whose `file` is looked up beside the overlay when it
 * has no `/`. Throws RangeError on what the format or we can't do: the caller has checked its input.
 */
export function newQcow2(size_bytes: number, backing?: Overlay): Layout {
  if (!Number.isSafeInteger(size_bytes) || size_bytes < 0 || size_bytes > MAX_SIZE_BYTES || size_bytes % 512 !== 0) {
    throw new RangeError(`a qcow2 can't have ${size_bytes} bytes`)
  }
  const l1Entries = Math.ceil(size_bytes / L1_SPAN)
  const l1Clusters = Math.max(1, Math.ceil((l1Entries * 8) / CLUSTER))
  const clusters = 3 + l1Clusters

  const head = Buffer.alloc(CLUSTER)
  head.writeUInt32BE(MAGIC, 0)
  head.writeUInt32BE(3, 4)
  head.writeUInt32BE(CLUSTER_BITS, 20)
  head.writeBigUInt64BE(BigInt(size_bytes), 24)
  head.writeUInt32BE(l1Entries, 36)
  head.writeBigUInt64BE(BigInt(3 * CLUSTER), 40)
  head.writeBigUInt64BE(BigInt(CLUSTER), 48)
  head.writeUInt32BE(1, 56)
  head.writeUInt32BE(4, 96)
  head.writeUInt32BE(HEADER_LENGTH, 100)
  if (backing !== undefined) {
    const name = Buffer.from(backing.file)
    if (name.length === 0 || name.length > MAX_BACKING_NAME || name.includes(0))
      throw new RangeError('bad backing file name')
    const format = Buffer.from(backing.format)
    head.writeUInt32BE(EXT_BACKING_FORMAT, HEADER_LENGTH)
    head.writeUInt32BE(format.length, HEADER_LENGTH + 4)
    format.copy(head, HEADER_LENGTH + 8)
    // Padded to 8 bytes, then the end-of-extensions marker (8 zero bytes), then the name.
    const nameAt = HEADER_LENGTH + 8 + Math.ceil(format.length / 8) * 8 + 8
    name.copy(head, nameAt)
    head.writeBigUInt64BE(BigInt(nameAt), 8)
    head.writeUInt32BE(name.length, 16)
  }

  const refcountTable = Buffer.alloc(8)
  refcountTable.writeBigUInt64BE(BigInt(2 * CLUSTER), 0)
  const refcounts = Buffer.alloc(clusters * 2)
  for (let i = 0; i < clusters; i += 1) refcounts.writeUInt16BE(1, i * 2)
  const used = head.subarray(0, 4096)
  return {
    file_bytes: clusters * CLUSTER,
    writes: [
      { offset: 0, data: used },
      { offset: CLUSTER, data: refcountTable },
      { offset: 2 * CLUSTER, data: refcounts },
    ],
  }
}

/**
 * The first bytes of a qcow2 that stands on another file, with the name of another instead: in place, in one sector, so that no crash
 * leaves half of it. Names of volumes have one length. @throws RangeError when there is no room for it where the old one was
 */
export function withBacking(bytes: Uint8Array, backing: Overlay): Uint8Array {
  const head = readHead(bytes)
  if (typeof head === 'string') throw new RangeError(head)
  const b = Buffer.from(bytes)
  const nameAt = Number(b.readBigUInt64BE(8))
  const name = Buffer.from(backing.file)
  const format = Buffer.from(backing.format)
  if (nameAt === 0 || head.backing === undefined) throw new RangeError('it stands by itself')
  const roomForName = Math.ceil(b.readUInt32BE(16) / 8) * 8
  if (name.length > roomForName) throw new RangeError('no room for a longer name')
  let at = b.readUInt32BE(4) === 3 ? b.readUInt32BE(100) : 72
  for (; at + 8 <= nameAt; at += 8 + Math.ceil(b.readUInt32BE(at + 4) / 8) * 8) {
    const type = b.readUInt32BE(at)
    if (type === EXT_END) throw new RangeError('it does not say the format of what it stands on')
    if (type !== EXT_BACKING_FORMAT) continue
    const room = Math.ceil(b.readUInt32BE(at + 4) / 8) * 8
    if (format.length > room) throw new RangeError('no room for a longer format')
    b.writeUInt32BE(format.length, at + 4)
    b.fill(0, at + 8, at + 8 + room)
    format.copy(b, at + 8)
    b.writeUInt32BE(name.length, 16)
    name.copy(b, nameAt)
    return b.subarray(0, nameAt + name.length)
  }
  throw new RangeError('it does not say the format of what it stands on')
}

export type Qcow2Head = {
  version: 2 | 3
  size_bytes: number
  backing?: { file: string; format?: string }
  /** Guest data lies in another file. */
  data_file: boolean
  encrypted: boolean
  corrupt: boolean
  /** Incompatible feature bits we know nothing of. */
  unknown_features: boolean
  internal_snapshots: number
}

/** How much of a file `readHead` needs: a header with extensions fits in the first cluster, and ours are at most 2 MiB by the format. */
export const HEAD_BYTES = 64 * 1024

const DIRTY = 1n
const CORRUPT = 2n
const DATA_FILE = 4n
const COMPRESSION = 8n
const EXTENDED_L2 = 16n

/**
 * Reads the head of a qcow2 from its first bytes (`HEAD_BYTES`, or all of a shorter file). Returns a text that says what is wrong when
 * it is none. The bytes may come from anybody.
 */
export function readHead(bytes: Uint8Array): Qcow2Head | string {
  const b = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (b.length < 72 || b.readUInt32BE(0) !== MAGIC) return 'it does not begin like a qcow2 file'
  const version = b.readUInt32BE(4)
  if (version !== 2 && version !== 3) return `its qcow2 version is ${version}`
  if (version === 3 && b.length < 104) return 'its qcow2 header is cut off'
  const clusterBits = b.readUInt32BE(20)
  if (clusterBits < 9 || clusterBits > 21) return `its cluster size is 2^${clusterBits}`
  const size = b.readBigUInt64BE(24)
  if (size > BigInt(MAX_SIZE_BYTES)) return `its size is ${size} bytes`
  const incompatible = version === 3 ? b.readBigUInt64BE(72) : 0n
  const headerLength = version === 3 ? b.readUInt32BE(100) : 72
  const headEnd = Math.min(b.length, 2 ** clusterBits)
  if (headerLength < (version === 3 ? 104 : 72) || headerLength > headEnd) return `its header length is ${headerLength}`

  const nameAt = b.readBigUInt64BE(8)
  const nameLength = b.readUInt32BE(16)
  let file: string | undefined
  if (nameAt !== 0n) {
    if (nameLength > MAX_BACKING_NAME || nameAt + BigInt(nameLength) > BigInt(headEnd))
      return 'its backing file name lies outside its header'
    file = b.toString('utf8', Number(nameAt), Number(nameAt) + nameLength)
  }

  let format: string | undefined
  let dataFile = (incompatible & DATA_FILE) !== 0n
  const extensionsEnd = nameAt !== 0n ? Number(nameAt) : headEnd
  let at = headerLength
  while (at + 8 <= extensionsEnd) {
    const type = b.readUInt32BE(at)
    const length = b.readUInt32BE(at + 4)
    if (type === EXT_END) break
    if (length > extensionsEnd - at - 8) return 'a header extension runs over its end'
    if (type === EXT_BACKING_FORMAT) format = b.toString('utf8', at + 8, at + 8 + length)
    if (type === EXT_DATA_FILE) dataFile = true
    at += 8 + Math.ceil(length / 8) * 8
  }
  return {
    version,
    size_bytes: Number(size),
    ...(file === undefined ? {} : { backing: { file, ...(format === undefined ? {} : { format }) } }),
    data_file: dataFile,
    encrypted: b.readUInt32BE(32) !== 0,
    corrupt: (incompatible & CORRUPT) !== 0n,
    unknown_features: (incompatible & ~(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2)) !== 0n,
    internal_snapshots: b.readUInt32BE(60),
  }
}

/**
 * What is wrong with a volume's head when it is held against what is recorded of it, or undefined. A backing file, other than the one
 * recorded by that very name and format, would make QEMU read a file of the author's choice.
 */
export function headProblem(
  head: Qcow2Head,
  recorded: { size_bytes: number; backing?: Overlay | undefined },
): string | undefined {
  if (head.data_file) return 'its data is said to lie in another file'
  if (head.encrypted) return 'it is encrypted'
  if (head.corrupt) return 'QEMU marked it as corrupt'
  if (head.unknown_features) return 'it needs features that are not known here'
  const { backing } = recorded
  if (backing === undefined) {
    if (head.backing !== undefined) return 'it is based on another file, and should stand by itself'
  } else if (head.backing === undefined) return 'it should be based on another volume, and stands by itself'
  else if (head.backing.file !== backing.file) return 'it is based on another file than the one recorded'
  else if (head.backing.format !== backing.format)
    return 'the format of the file it is based on is not the one recorded'
  if (head.size_bytes !== recorded.size_bytes)
    return `its size is ${head.size_bytes} bytes and should be ${recorded.size_bytes}`
  return undefined
}
