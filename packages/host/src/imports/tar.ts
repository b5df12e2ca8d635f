/**
 * The entries of a tar archive (POSIX ustar and pax, GNU long names), found by walking over their heads. Nothing is unpacked: the
 * files in it are read where they lie, so that no name can lead anywhere. Strict on purpose: an OVA has plain files in one folder.
 */
import { fail } from '@wadah/api/fault'
import type { Content } from './identify.ts'

export type TarFile = { name: string; offset: number; bytes: number }
const BLOCK = 512
const MOST_FILES = 64
const MOST_META = 64 * 1024

const refuse = (why: string): Error =>
  fail('image_corrupt', `The archive can't be used: ${why}.`, { remedy: 'export it anew as an OVA' })

/** @throws WadahError `image_corrupt` */
export async function tarFiles({ read, bytes }: Content): Promise<TarFile[]> {
  const files: TarFile[] = []
  let long: { name?: string; bytes?: number } = {}
  for (let at = 0; ; ) {
    const head = await read(at, BLOCK)
    if (head.length < BLOCK) throw refuse('it is cut off')
    if (head.every((b) => b === 0)) break
    if (!checksumFits(head)) throw refuse(`at ${at} is no head of a file`)
    const type = head.toString('latin1', 156, 157)
    const size = long.bytes ?? number(head.subarray(124, 136))
    const body = at + BLOCK
    if (!Number.isSafeInteger(size) || size < 0 || body + size > bytes) throw refuse('a file in it is cut off')
    at = body + Math.ceil(size / BLOCK) * BLOCK
    if (type === 'x' || type === 'L') {
      if (size > MOST_META) throw refuse('a name in it is too long')
      const meta = await read(body, size)
      long = type === 'L' ? { ...long, name: meta.toString('utf8').replace(/\0+$/, '') } : { ...long, ...pax(meta) }
      continue
    }
    // Comments for the whole archive: nothing of it concerns us.
    if (type === 'g') continue
    const prefix = head.toString('latin1', 257, 263) === 'ustar\0' ? text(head.subarray(345, 500)) : ''
    const name = long.name ?? (prefix === '' ? '' : `${prefix}/`) + text(head.subarray(0, 100))
    long = {}
    if (type !== '0' && type !== '\0' && type !== '7')
      throw refuse(`"${shown(name)}" in it is ${kindOf(type)}, and only plain files may be`)
    const plain = name.replace(/^\.\//, '')
    if (plain === '' || plain === '.' || plain === '..' || /[/\\\0]/.test(plain) || plain.length > 255)
      throw refuse(`"${shown(name)}" in it is not the plain name of a file in the archive's own folder`)
    if (files.some((f) => f.name === plain)) throw refuse(`"${shown(name)}" is in it twice`)
    if (files.length >= MOST_FILES) throw refuse(`it has more than ${MOST_FILES} files`)
    files.push({ name: plain, offset: body, bytes: size })
  }
  return files
}

const KINDS: Record<string, string> = {
  '1': 'a hard link',
  '2': 'a symbolic link',
  '3': 'a device',
  '4': 'a device',
  '5': 'a folder',
  '6': 'a pipe',
  S: 'a sparse file',
}
const kindOf = (type: string): string => KINDS[type] ?? 'of an unknown kind'
const text = (field: Buffer): string => field.toString('utf8').split('\0')[0] ?? ''
const shown = (name: string): string => name.slice(0, 80).replaceAll(/[^\x20-\x7e]/g, '?')

/** Octal text, or from 8 GiB on base 256 with the highest bit set (GNU). */
function number(field: Buffer): number {
  if (((field[0] ?? 0) & 0x80) === 0) {
    const digits = field.toString('latin1').replaceAll(/[\0 ]/g, '')
    return /^[0-7]{1,12}$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN
  }
  let value = BigInt((field[0] ?? 0) & 0x7f)
  for (const byte of field.subarray(1)) value = (value << 8n) | BigInt(byte)
  return Number(value)
}

/** `LENGTH key=value\n`, as often as there are. */
function pax(meta: Buffer): { name?: string; bytes?: number } {
  const out: { name?: string; bytes?: number } = {}
  for (let at = 0; at < meta.length; ) {
    const space = meta.indexOf(0x20, at)
    const length = Number(meta.toString('latin1', at, space < 0 ? at : space))
    if (!Number.isInteger(length) || length <= 0 || at + length > meta.length) throw refuse('a head in it is not right')
    const [key = '', ...rest] = meta.toString('utf8', space + 1, at + length - 1).split('=')
    if (key === 'path') out.name = rest.join('=')
    if (key === 'size') out.bytes = Number(rest.join('='))
    if (key === 'linkpath' || key.startsWith('GNU.sparse')) throw refuse('it has links or sparse files')
    at += length
  }
  return out
}

function checksumFits(head: Buffer): boolean {
  let sum = 8 * 0x20
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += head[i] as number
  return number(head.subarray(148, 156)) === sum
}
