/** One entry of an archive that is laid over a guest's root. */
export interface TarEntry {
  kind: 'dir' | 'file'
  /** Relative to the guest's root. */
  path: string
  mode: number
  /** Owner by name, as the guest knows it; root when left out. */
  user?: string
  group?: string
  data?: Uint8Array
}

/** Pack entries as a POSIX ustar archive (pax(1)); long paths get a GNU long-name entry. */
export function packTar(entries: readonly TarEntry[]): Buffer {
  const parts: Buffer[] = []
  for (const entry of entries) {
    const path = entry.kind === 'dir' ? `${entry.path}/` : entry.path
    if (Buffer.byteLength(path) > 99) {
      const name = Buffer.from(`${path}\0`)
      parts.push(header('././@LongLink', 'L', name.length, 0o644, 'root', 'root'), pad(name))
    }
    const data = Buffer.from(entry.data ?? [])
    const type = entry.kind === 'dir' ? '5' : '0'
    parts.push(header(path, type, data.length, entry.mode, entry.user ?? 'root', entry.group ?? 'root'), pad(data))
  }
  parts.push(Buffer.alloc(1024))
  return Buffer.concat(parts)
}

function header(path: string, type: string, size: number, mode: number, user: string, group: string): Buffer {
  const block = Buffer.alloc(512)
  const octal = (value: number, length: number): string => `${value.toString(8).padStart(length - 1, '0')}\0`
  block.write(Buffer.from(path).subarray(0, 99).toString('latin1'), 0, 'latin1')
  block.write(octal(mode, 8), 100)
  block.write(octal(0, 8), 108)
  block.write(octal(0, 8), 116)
  block.write(octal(size, 12), 124)
  block.write(octal(0, 12), 136)
  block.write('        ', 148)
  block.write(type, 156)
  block.write('ustar\x0000', 257)
  block.write(user, 265, 31)
  block.write(group, 297, 31)
  let sum = 0
  for (const byte of block) sum += byte
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

function pad(data: Buffer): Buffer {
  const rest = data.length % 512
  return rest === 0 ? data : Buffer.concat([data, Buffer.alloc(512 - rest)])
}
