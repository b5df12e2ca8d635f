/**
 * A small ISO 9660 image with a few files in its root (ECMA-119), with Rock Ridge names so that Linux shows them as they are. Enough
 * for a seed disk; written in memory, without a program.
 */
const SECTOR = 2048
/** Layout: 16 system sectors, the primary descriptor, its end, two path tables, the root, then the files. */
const PVD = 16
const PATH_L = 18
const PATH_M = 19
const ROOT = 20

// In the root's own record: that System Use entries are used (SP), and that they are Rock Ridge (ER).
const SP = Buffer.from([0x53, 0x50, 7, 1, 0xbe, 0xef, 0])
const ER = Buffer.concat([Buffer.from('ER'), Buffer.from([18, 1, 10, 0, 0, 1]), Buffer.from('RRIP_1991A')])

export type IsoFile = { name: string; data: Uint8Array }

/** `label`: up to 32 characters. The same files give the same bytes: it has no times. */
export function isoImage(label: string, files: readonly IsoFile[]): Buffer {
  const sorted = [...files].sort((a, b) => (isoName(a.name) < isoName(b.name) ? -1 : 1))
  let next = ROOT + 1
  const placed = sorted.map((file) => {
    const at = next
    next += Math.max(1, Math.ceil(file.data.length / SECTOR))
    return { ...file, at }
  })
  const image = Buffer.alloc(next * SECTOR)
  const root = (name: string, susp: Buffer) => record(Buffer.from(name, 'latin1'), ROOT, SECTOR, true, susp)
  const entries = Buffer.concat([
    root('\0', Buffer.concat([SP, px(0o040555, 2), ER])),
    root('\x01', px(0o040555, 2)),
    ...placed.map((f) =>
      record(Buffer.from(isoName(f.name)), f.at, f.data.length, false, Buffer.concat([px(0o100444, 1), nm(f.name)])),
    ),
  ])
  if (entries.length > SECTOR) throw new RangeError('too many files for one sector of names')
  entries.copy(image, ROOT * SECTOR)
  for (const f of placed) image.set(f.data, f.at * SECTOR)
  descriptor(label, next).copy(image, PVD * SECTOR)
  Buffer.concat([Buffer.from([255]), Buffer.from('CD001'), Buffer.from([1])]).copy(image, (PVD + 1) * SECTOR)
  // One folder, itself its parent: little endian, then big endian.
  const path = Buffer.alloc(10)
  path[0] = 1
  path.writeUInt32LE(ROOT, 2)
  path.writeUInt16LE(1, 6)
  path.copy(image, PATH_L * SECTOR)
  path.writeUInt32BE(ROOT, 2)
  path.writeUInt16BE(1, 6)
  path.copy(image, PATH_M * SECTOR)
  return image
}

/** As readers without Rock Ridge will see it. */
const isoName = (name: string): string =>
  `${name
    .toUpperCase()
    .replaceAll(/[^A-Z0-9]/g, '_')
    .slice(0, 28)}.;1`

function both32(target: Buffer, value: number, at: number): void {
  target.writeUInt32LE(value, at)
  target.writeUInt32BE(value, at + 4)
}
function both16(target: Buffer, value: number, at: number): void {
  target.writeUInt16LE(value, at)
  target.writeUInt16BE(value, at + 2)
}

/** A directory record (ECMA-119, 9.1) with its System Use entries. */
function record(name: Buffer, at: number, bytes: number, folder: boolean, susp: Buffer): Buffer {
  const nameEnd = 33 + name.length + (name.length % 2 === 0 ? 1 : 0)
  const length = nameEnd + susp.length + (susp.length % 2)
  const out = Buffer.alloc(length)
  out[0] = length
  both32(out, at, 2)
  both32(out, bytes, 10)
  // 1 January 1980: a time there must be.
  Buffer.from([80, 1, 1, 0, 0, 0, 0]).copy(out, 18)
  out[25] = folder ? 2 : 0
  both16(out, 1, 28)
  out[32] = name.length
  name.copy(out, 33)
  susp.copy(out, nameEnd)
  return out
}

/** Rock Ridge PX: mode, links, user, group, serial number. */
function px(mode: number, links: number): Buffer {
  const out = Buffer.alloc(36)
  out.write('PX', 0)
  out[2] = 36
  out[3] = 1
  both32(out, mode, 4)
  both32(out, links, 12)
  return out
}

/** Rock Ridge NM: the name as it is. */
function nm(name: string): Buffer {
  const text = Buffer.from(name)
  return Buffer.concat([Buffer.from('NM'), Buffer.from([5 + text.length, 1, 0]), text])
}

/** The primary volume descriptor (ECMA-119, 8.4). */
function descriptor(label: string, sectors: number): Buffer {
  const out = Buffer.alloc(SECTOR)
  out[0] = 1
  out.write('CD001', 1)
  out[6] = 1
  out.fill(0x20, 8, 72)
  out.write('LINUX', 8)
  out.write(label.slice(0, 32), 40)
  both32(out, sectors, 80)
  both16(out, 1, 120)
  both16(out, 1, 124)
  both16(out, SECTOR, 128)
  both32(out, 10, 132)
  out.writeUInt32LE(PATH_L, 140)
  out.writeUInt32BE(PATH_M, 148)
  record(Buffer.from([0]), ROOT, SECTOR, true, Buffer.alloc(0)).copy(out, 156)
  out.fill(0x20, 190, 813)
  for (const at of [813, 830, 847, 864]) {
    out.write('0000000000000000', at)
    out[at + 16] = 0
  }
  out[881] = 1
  return out
}
