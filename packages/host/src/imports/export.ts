/** Volumes → one file of another format, for whoever takes it away. An OVA is put together only while it is read. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { ImportFormat } from '@wadah/api/schema/imports'
import type { Imports, ImportWork } from '@wadah/ports/imports'
import { convert } from '../storage/qemu-img.ts'
import type { HostVolumes } from '../storage/volumes.ts'
import type { Confinement } from '../system/confine.ts'
import { createExclusive } from '../system/files.ts'
import { manifest, ovfText, tarHead, tarPadding, TAR_END } from './ova-write.ts'

/** The file, piece by piece: text of ours, or a file of the same folder. */
type Piece = { base64: string } | { file: string; bytes: number }
type Request = Parameters<Imports['pack']>[2]

/** What qemu-img is told when it makes the file. */
const OPTIONS: Record<Exclude<ImportFormat, 'ova'>, string[]> = {
  qcow2: ['compat=1.1'],
  raw: [],
  vmdk: ['subformat=streamOptimized'],
  vdi: [],
  vhdx: ['subformat=dynamic'],
  // Without it the size would be rounded to what cylinders, heads and sectors of old can say.
  vpc: ['subformat=dynamic,force_size=on'],
}

export async function pack(
  o: { confinement: Confinement; volumes: HostVolumes; dir: string },
  request: Request,
  work: ImportWork,
): Promise<{ size_bytes: number }> {
  const { format } = request
  if (format !== 'ova' && request.volumes.length !== 1)
    throw fail('invalid', `It has ${request.volumes.length} disks, and a ${format} file holds one.`, {
      field: '/format',
      remedy: 'export it as ova, or each volume by itself: wadah volume download',
    })
  await rm(o.dir, { recursive: true, force: true })
  await mkdir(o.dir, { mode: 0o711 })
  const disks: { file: string; bytes: number; size_bytes: number }[] = []
  for (const [i, { pool, volume }] of request.volumes.entries()) {
    const file = `disk${i + 1}`
    const chain = await o.volumes.chain(pool, volume)
    const handle = await createExclusive(join(o.dir, file), 0o600)
    try {
      const target = format === 'ova' ? 'vmdk' : format
      const direct = pool.direct_io && (await o.volumes.facts(pool)).direct_io
      work.log?.(`writing ${volume.id} as ${target}`)
      await o.confinement.use({ reads: chain.map((c) => c.path), writes: handle }, (confined) =>
        convert(
          confined,
          {
            from: chain,
            to: { path: join(o.dir, file), format: target, fresh: { options: OPTIONS[target] } },
            size_bytes: volume.size_bytes,
            direct_io: { from: direct, to: false },
          },
          work.signal,
          (percent) => work.progress?.((i + percent / 100) / request.volumes.length),
        ),
      )
    } finally {
      await handle.close()
    }
    disks.push({ file, bytes: (await stat(join(o.dir, file))).size, size_bytes: volume.size_bytes })
  }
  const pieces: Piece[] =
    format === 'ova'
      ? await ovaPieces(o.dir, request, disks, work.signal)
      : disks.map(({ file, bytes }) => ({ file, bytes }))
  await writeFile(join(o.dir, 'pieces.json'), JSON.stringify(pieces), { mode: 0o600 })
  return { size_bytes: pieces.reduce((sum, p) => sum + lengthOf(p), 0) }
}

const lengthOf = (p: Piece): number => ('file' in p ? p.bytes : Buffer.from(p.base64, 'base64').length)
const text = (data: Uint8Array): Piece => ({ base64: Buffer.from(data).toString('base64') })

async function ovaPieces(
  dir: string,
  request: Request,
  disks: readonly { file: string; bytes: number; size_bytes: number }[],
  signal: AbortSignal,
): Promise<Piece[]> {
  const { name, hardware } = request
  const named = disks.map((d, i) => ({ ...d, name: `${name}-disk${i + 1}.vmdk` }))
  const ovf = Buffer.from(ovfText(name, hardware, named))
  const sums = [{ file: `${name}.ovf`, sha256: createHash('sha256').update(ovf).digest('hex') }]
  for (const disk of named) {
    const hash = createHash('sha256')
    for await (const part of createReadStream(join(dir, disk.file), { highWaterMark: 2 ** 20 })) {
      signal.throwIfAborted()
      hash.update(part as Buffer)
    }
    sums.push({ file: disk.name, sha256: hash.digest('hex') })
  }
  const mf = Buffer.from(manifest(sums))
  const whole = (file: string, data: Uint8Array): Piece =>
    text(Buffer.concat([tarHead(file, data.length), data, tarPadding(data.length)]))
  return [
    whole(`${name}.ovf`, ovf),
    whole(`${name}.mf`, mf),
    ...named.flatMap((d): Piece[] => [
      text(tarHead(d.name, d.bytes)),
      { file: d.file, bytes: d.bytes },
      text(tarPadding(d.bytes)),
    ]),
    text(TAR_END),
  ]
}

export async function* readPacked(dir: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const pieces = JSON.parse(await readFile(join(dir, 'pieces.json'), 'utf8')) as Piece[]
  for (const piece of pieces) {
    if (!('file' in piece)) {
      yield Buffer.from(piece.base64, 'base64')
      continue
    }
    const handle = await open(join(dir, piece.file))
    try {
      for (let at = 0; at < piece.bytes; ) {
        signal.throwIfAborted()
        const buffer = Buffer.allocUnsafe(Math.min(2 ** 20, piece.bytes - at))
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, at)
        if (bytesRead === 0) throw fail('tool_failed', 'The exported file became shorter.', { effect: 'unknown' })
        at += bytesRead
        yield buffer.subarray(0, bytesRead)
      }
    } finally {
      await handle.close()
    }
  }
}
