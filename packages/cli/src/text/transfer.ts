/** What verbs that send or take whole disks share. */
import { basename } from 'node:path'
import type { IncomingMessage } from 'node:http'
import { type Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fail } from '@wadah/api/fault'
import { EXPORT_FORMATS, type ImportFormat } from '@wadah/api/schema/imports'
import type { Cli } from '../cli.ts'
import { oneOf } from '../commands/options.ts'
import { openSource, saveTo } from '../local/files.ts'
import { formatBytes } from './format.ts'

/** A disk may take hours to send, and to be converted before the answer begins. */
const TRANSFER_MS = 24 * 3_600_000
const REDRAW_MS = 200

/** `debian-12-genericcloud.qcow2` → a name; `.` and `_` become hyphens, and endings that say the format go. Pure. */
export function baseName(path: string): string {
  const file = basename(path).toLowerCase()
  return file
    .replace(/\.(gz|xz|zst)$/, '')
    .replace(/\.(qcow2|img|raw|vmdk|vdi|vhdx|vhd|ova)$/, '')
    .replaceAll(/[^a-z0-9-]+/g, '-')
    .replaceAll(/^[^a-z]+|-+$/g, '')
    .slice(0, 63)
    .replace(/-+$/, '')
}

/** 64 hex digits, or a line of `sha256sum`. */
export function parseSha256(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  const hex = text.trim().split(/\s/)[0]?.toLowerCase() ?? ''
  if (!/^[0-9a-f]{64}$/.test(hex))
    throw fail('invalid', `--sha256: "${text.slice(0, 80)}" is not a SHA-256 sum: 64 hex digits`, { field: '--sha256' })
  return hex
}

const ENDINGS: Record<string, ImportFormat> = { img: 'raw', vhd: 'vpc' }

/** What was asked for, or what the name of the file says. */
export function parseExport(format: string | undefined, file: string): ImportFormat {
  const asked = oneOf(format, '--format', EXPORT_FORMATS)
  if (asked) return asked
  const ending = /\.([a-z0-9]+)$/.exec(file.toLowerCase())?.[1] ?? ''
  const known = ENDINGS[ending] ?? EXPORT_FORMATS.find((f) => f === ending)
  if (known) return known
  throw fail('invalid', `${file}: its ending does not say a format; add --format ${EXPORT_FORMATS.join('|')}`, {
    field: '--format',
  })
}

type Upload = { upload: { data: Readable; size_bytes: number | undefined }; timeout_ms: number }

/** Sends a local file (`-` is standard input), showing how far it is. */
export async function sendFile<T>(cli: Cli, file: string, send: (more: Upload) => Promise<T>): Promise<T> {
  const { data, size_bytes } =
    file === '-' ? { data: cli.io.stdin as Readable, size_bytes: undefined } : await openSource(file)
  const meter = new Meter(cli, cli.t('transfer.sending'), size_bytes)
  const counted = data.pipe(meter.stream())
  data.once('error', (error) => counted.destroy(error))
  try {
    return await send({ upload: { data: counted, size_bytes }, timeout_ms: TRANSFER_MS })
  } finally {
    meter.end()
  }
}

/** Takes an answer into a file, whole or not at all (`-` is standard output). */
export async function takeFile(
  cli: Cli,
  file: string,
  ask: (more: { timeout_ms: number }) => Promise<IncomingMessage>,
): Promise<void> {
  cli.out.note(cli.t('transfer.preparing'))
  const response = await ask({ timeout_ms: TRANSFER_MS })
  if (file === '-') {
    await pipeline(response, cli.io.stdout, { end: false })
    return
  }
  const meter = new Meter(cli, cli.t('transfer.taking'), undefined)
  response.on('data', (chunk: Buffer) => meter.count(chunk.length))
  response.pause()
  try {
    const saved = await saveTo(file, basename(file), response)
    meter.end()
    if (cli.out.isJson) cli.out.json(saved)
    else cli.out.note(cli.t('cp.done', { to: saved.path, size: formatBytes(saved.size_bytes) }))
  } finally {
    meter.end()
  }
}

/** One line that rewrites itself on a terminal, and nothing elsewhere. */
class Meter {
  readonly #cli: Cli
  readonly #what: string
  readonly #total: number | undefined
  #done = 0
  #drawn_ms = 0
  constructor(cli: Cli, what: string, total: number | undefined) {
    this.#cli = cli
    this.#what = what
    this.#total = total
  }
  get #shows(): boolean {
    return this.#cli.io.stderr.isTTY === true && !this.#cli.options.quiet && !this.#cli.out.isJson
  }
  count(bytes: number): void {
    this.#done += bytes
    const now = this.#cli.io.now()
    if (!this.#shows || now - this.#drawn_ms < REDRAW_MS) return
    this.#drawn_ms = now
    const of = this.#total === undefined ? '' : ` / ${formatBytes(this.#total)}`
    this.#cli.io.stderr.write(`\r\x1b[K${this.#what} ${formatBytes(this.#done)}${of}`)
  }
  stream(): Transform {
    return new Transform({
      highWaterMark: 2 ** 20,
      transform: (chunk: Buffer, _encoding, done) => {
        this.count(chunk.length)
        done(null, chunk)
      },
    })
  }
  end(): void {
    if (this.#drawn_ms > 0 && this.#shows) this.#cli.io.stderr.write('\r\x1b[K')
    this.#drawn_ms = 0
  }
}
