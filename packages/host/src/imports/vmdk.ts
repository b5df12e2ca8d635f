/**
 * VMDK in one file: "hosted sparse extents" with the descriptor inside (VMware's Virtual Disk Format 1.1). The descriptor may name
 * other files as extents or as parent, and QEMU would open them: only one that names itself alone is taken.
 */
import type { Content } from './identify.ts'
import { type Head, SECTOR, sane } from './sane.ts'

const MOST_DESCRIPTOR = 64 * 1024
const GD_AT_END = 0xffff_ffff_ffff_ffffn

export async function readVmdk({ read, bytes }: Content): Promise<Head | string> {
  const head = await read(0, SECTOR)
  if (head.length < SECTOR) return 'its head is cut off'
  const version = head.readUInt32LE(4)
  if (version < 1 || version > 3) return `its VMDK version is ${version}`
  const capacity = head.readBigUInt64LE(12)
  // With no capacity QEMU takes the descriptor for the whole truth, and follows it.
  if (capacity === 0n) return 'its head gives no size'
  const grain = head.readBigUInt64LE(20)
  if (grain < 1n || grain > 0x200000n) return `its grain is ${grain} sectors`
  const [at, length] = [head.readBigUInt64LE(28), head.readBigUInt64LE(36)]
  if (at === 0n || length === 0n)
    return 'it is one extent of a disk in several files; export the VM as an OVA, or convert the disk to one file'
  if (length * BigInt(SECTOR) > MOST_DESCRIPTOR || (at + length) * BigInt(SECTOR) > BigInt(bytes))
    return 'its descriptor is not right'
  const problem = descriptorProblem((await read(Number(at) * SECTOR, Number(length) * SECTOR)).toString('latin1'))
  if (problem !== undefined) return problem
  if (head.readBigUInt64LE(56) === GD_AT_END) {
    // Marker, then the head once more, then the end of the stream: what QEMU goes by is this second head.
    const foot = await read(bytes - 2 * SECTOR, SECTOR)
    if (foot.length < SECTOR || foot.toString('latin1', 0, 4) !== 'KDMV') return 'it is cut off: its footer is missing'
    if (foot.readBigUInt64LE(12) !== capacity) return 'its head and its footer give different sizes'
  }
  const size = sane(capacity * BigInt(SECTOR))
  return typeof size === 'string' ? size : { size_bytes: size, notes: [] }
}

const TYPES = ['monolithicSparse', 'streamOptimized']

/** What is wrong with an embedded descriptor, or undefined. Pure. */
export function descriptorProblem(padded: string): string | undefined {
  const text = padded.split('\0')[0] ?? ''
  const value = (key: string): string | undefined =>
    new RegExp(`^[ \\t]*${key}[ \\t]*=[ \\t]*"?([^"\\r\\n]*?)"?[ \\t]*$`, 'im').exec(text)?.[1]
  const type = value('createType')
  if (type === undefined) return 'its descriptor has no createType'
  if (!TYPES.includes(type))
    return `it is a VMDK of the type ${type.slice(0, 40)}, whose data lies in other files; ${TYPES.join(' and ')} are in one file`
  if ((value('parentCID') ?? 'ffffffff').toLowerCase() !== 'ffffffff' || value('parentFileNameHint') !== undefined)
    return 'it is a snapshot on top of another disk; consolidate or clone it first'
  const extents = text.split(/\r?\n/).filter((line) => /^[ \t]*(RW|RDONLY|NOACCESS)\s/i.test(line))
  if (extents.length !== 1) return `its descriptor names ${extents.length} extents; one in the same file is right`
  if (!/^[ \t]*RW\s+\d+\s+SPARSE\s+"[^"]*"\s*\d*\s*$/i.test(extents[0] as string))
    return 'its descriptor names an extent of a kind that would lie in another file'
  return undefined
}
