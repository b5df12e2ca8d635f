/** An OVA: a tar with one description, its disks, and perhaps a manifest of checksums. Its disks are read where they lie. */
import { createHash } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import type { Found } from '@wadah/ports/imports'
import { readDiskHead } from './heads.ts'
import { type Content, identify } from './identify.ts'
import { MOST_OVF_BYTES, readOvf } from './ovf.ts'
import { SECTOR } from './sane.ts'
import { type TarFile, tarFiles } from './tar.ts'

const MOST_MANIFEST_BYTES = 64 * 1024
const CHUNK = 1024 * 1024

const refuse = (why: string): Error => fail('image_corrupt', `The OVA can't be used: ${why}.`)

/** A part of a file as a file of its own. */
export function partOf({ read, bytes }: Content, offset: number, length: number): Content {
  const whole = Math.max(0, Math.min(length, bytes - offset))
  return {
    bytes: whole,
    read: (at, wanted) => read(offset + at, Math.max(0, Math.min(wanted, whole - at))),
  }
}

/** @throws WadahError `image_corrupt` */
export async function readOva(content: Content, signal: AbortSignal, log?: (line: string) => void): Promise<Found> {
  const files = await tarFiles(content)
  const named = (suffix: string) => files.filter((f) => f.name.toLowerCase().endsWith(suffix))
  const [description] = named('.ovf')
  if (!description || named('.ovf').length > 1) throw refuse(`it has ${named('.ovf').length} descriptions (.ovf)`)
  if (description.bytes > MOST_OVF_BYTES) throw refuse('its description is too long')
  const ovf = readOvf((await content.read(description.offset, description.bytes)).toString('utf8'))
  const notes = [...ovf.notes]
  const [manifest] = named('.mf')
  if (manifest) {
    if (manifest.bytes > MOST_MANIFEST_BYTES) throw refuse('its manifest is too long')
    const text = (await content.read(manifest.offset, manifest.bytes)).toString('latin1')
    const needed = [description.name, ...ovf.disks.flatMap((d) => (d.file === undefined ? [] : [d.file]))]
    await verify(content, files, readManifest(text), needed, signal)
    log?.(`the manifest fits: ${needed.length} files`)
  } else notes.push('it has no manifest, so that nothing says whether its disks are whole')
  if (named('.cert').length > 0) notes.push('its signature was not looked at')
  const disks: Found['disks'] = []
  for (const disk of ovf.disks) {
    if (disk.file === undefined) {
      disks.push({ format: 'empty', size_bytes: Math.ceil(disk.size_bytes / SECTOR) * SECTOR })
      continue
    }
    const file = files.find((f) => f.name === disk.file)
    if (!file) throw refuse(`its description names "${disk.file.slice(0, 80)}", which is not in it`)
    const part = partOf(content, file.offset, file.bytes)
    const kind = await identify(part)
    if (kind.kind === 'refused') throw refuse(`"${file.name.slice(0, 80)}" ${kind.why}`)
    if (kind.kind !== 'disk') throw refuse(`"${file.name.slice(0, 80)}" is no disk`)
    const head = await readDiskHead(kind.format, part)
    if (typeof head === 'string') throw refuse(`"${file.name.slice(0, 80)}": ${head}`)
    notes.push(...head.notes)
    disks.push({
      format: kind.format,
      size_bytes: head.size_bytes,
      part: { offset: file.offset, bytes: file.bytes },
    })
  }
  return {
    format: 'ova',
    disks,
    hardware: ovf.hardware,
    ...(ovf.description === undefined ? {} : { description: ovf.description }),
    notes,
  }
}

export type ManifestLine = { algorithm: 'sha1' | 'sha256' | 'sha512'; file: string; digest: string }

/** `SHA256(disk.vmdk)= 12ab…`, one a line (DSP0243, 5.1). Pure. @throws WadahError `image_corrupt` */
export function readManifest(text: string): ManifestLine[] {
  return text
    .split(/\r?\n/)
    .filter((line) => line.trim() !== '')
    .map((line) => {
      const found = /^\s*SHA(1|256|512)\s*\(([^)]{1,255})\)\s*=\s*([0-9a-f]{40,128})\s*$/i.exec(line)
      if (!found) throw refuse(`its manifest has a line that is not understood ("${line.slice(0, 60)}")`)
      const algorithm = `sha${found[1]}` as ManifestLine['algorithm']
      return { algorithm, file: found[2] as string, digest: (found[3] as string).toLowerCase() }
    })
}

async function verify(
  content: Content,
  files: readonly TarFile[],
  lines: readonly ManifestLine[],
  needed: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const unlisted = needed.find((name) => !lines.some((l) => l.file === name))
  if (unlisted !== undefined) throw refuse(`its manifest does not list "${unlisted.slice(0, 80)}"`)
  for (const { algorithm, file, digest } of lines) {
    const at = files.find((f) => f.name === file)
    if (!at) throw refuse(`its manifest lists "${file.slice(0, 80)}", which is not in it`)
    const hash = createHash(algorithm)
    for (let done = 0; done < at.bytes; done += CHUNK) {
      signal.throwIfAborted()
      hash.update(await content.read(at.offset + done, Math.min(CHUNK, at.bytes - done)))
    }
    if (hash.digest('hex') !== digest)
      throw refuse(`"${file.slice(0, 80)}" does not have the checksum that its manifest says`)
  }
}
