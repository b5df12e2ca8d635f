/**
 * Archives in the "newc" cpio format that the Linux kernel unpacks as its initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst). Written by hand so that device nodes and owners need
 * no root.
 */
export type CpioEntry =
  | { kind: 'dir'; path: string; mode?: number }
  | { kind: 'file'; path: string; mode?: number; data: Uint8Array }
  | { kind: 'link'; path: string; target: string }
  | { kind: 'char'; path: string; mode?: number; major: number; minor: number }

const TYPE = { dir: 0o040000, file: 0o100000, link: 0o120000, char: 0o020000 } as const

/** Pack entries, in the given order, parents before children. Paths are relative to the root ("bin/sh"). */
export function packCpio(entries: readonly CpioEntry[]): Buffer {
  const parts: Buffer[] = []
  let ino = 1
  for (const entry of entries) parts.push(packEntry(entry, ino++))
  parts.push(header({ ino: 0, mode: 0, nlink: 1, size: 0, major: 0, minor: 0, path: 'TRAILER!!!' }))
  return Buffer.concat(parts)
}

function packEntry(entry: CpioEntry, ino: number): Buffer {
  const data = entry.kind === 'file' ? Buffer.from(entry.data) : Buffer.from(entry.kind === 'link' ? entry.target : '')
  const permissions = entry.kind === 'link' ? 0o777 : (entry.mode ?? (entry.kind === 'dir' ? 0o755 : 0o644))
  const head = header({
    ino,
    mode: TYPE[entry.kind] | permissions,
    nlink: entry.kind === 'dir' ? 2 : 1,
    size: data.length,
    major: entry.kind === 'char' ? entry.major : 0,
    minor: entry.kind === 'char' ? entry.minor : 0,
    path: entry.path,
  })
  return Buffer.concat([head, pad4(data)])
}

interface Head {
  ino: number
  mode: number
  nlink: number
  size: number
  major: number
  minor: number
  path: string
}

function header(h: Head): Buffer {
  const name = Buffer.from(`${h.path}\0`)
  const uid = 0
  const gid = 0
  const mtime = 0
  const fields = [h.ino, h.mode, uid, gid, h.nlink, mtime, h.size, 0, 0, h.major, h.minor, name.length, 0]
  const text = `070701${fields.map((f) => f.toString(16).toUpperCase().padStart(8, '0')).join('')}`
  return pad4(Buffer.concat([Buffer.from(text, 'ascii'), name]))
}

function pad4(data: Buffer): Buffer {
  const rest = data.length % 4
  return rest === 0 ? data : Buffer.concat([data, Buffer.alloc(4 - rest)])
}
