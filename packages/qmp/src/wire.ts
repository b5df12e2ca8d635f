import { QmpError } from './errors.ts'

/** Longest line accepted unless told otherwise. `query-qmp-schema` of QEMU 7.2 is about 0.2 MiB. */
export const DEFAULT_MAX_LINE_BYTES = 64 * 1024 * 1024

const NEWLINE = 0x0a
const FIRST_BUFFER_BYTES = 16 * 1024
const KEEP_BUFFER_BYTES = 256 * 1024

/**
 * Cuts a byte stream into lines. Bytes of an unfinished line are kept in one buffer that doubles, so a line costs linear
 * time however it was chunked, and one-byte chunks cost no more memory than large ones. Decoding happens per whole line:
 * a UTF-8 sequence split over chunks is never seen in halves (0x0A is no part of any).
 */
export class LineDecoder {
  /** Longest line in bytes, its newline not counted. May be changed between pushes. */
  max_line_bytes: number
  #buffer = Buffer.allocUnsafe(0)
  #used = 0

  constructor(max_line_bytes: number = DEFAULT_MAX_LINE_BYTES) {
    this.max_line_bytes = max_line_bytes
  }

  /** Bytes of the line that is not finished yet. */
  get pending_bytes(): number {
    return this.#used
  }

  /**
   * Every line that `chunk` completes, in order; yields lazily, so stop pulling to stop decoding. The yielded bytes are
   * valid only until the next step.
   * @throws QmpError `protocol` when a line is longer than `max_line_bytes`
   */
  *push(chunk: Uint8Array): Generator<Buffer> {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    let from = 0
    while (from < bytes.length) {
      const end = bytes.indexOf(NEWLINE, from)
      const part = bytes.subarray(from, end === -1 ? bytes.length : end)
      this.#checkLength(part.length)
      if (end === -1) {
        this.#keep(part)
        return
      }
      from = end + 1
      if (this.#used === 0) {
        yield part
      } else {
        this.#keep(part)
        const line = this.#buffer.subarray(0, this.#used)
        this.reset()
        yield line
      }
    }
  }

  /** Forgets the unfinished line. */
  reset(): void {
    this.#used = 0
    if (this.#buffer.length > KEEP_BUFFER_BYTES) this.#buffer = Buffer.allocUnsafe(0)
  }

  #checkLength(more: number): void {
    if (this.#used + more <= this.max_line_bytes) return
    throw new QmpError('protocol', `the peer sent a line of more than ${this.max_line_bytes} bytes`)
  }

  #keep(part: Buffer): void {
    const need = this.#used + part.length
    if (need > this.#buffer.length) {
      let size = Math.max(this.#buffer.length, FIRST_BUFFER_BYTES)
      while (size < need) size *= 2
      const grown = Buffer.allocUnsafe(size)
      this.#buffer.copy(grown, 0, 0, this.#used)
      this.#buffer = grown
    }
    part.copy(this.#buffer, this.#used)
    this.#used = need
  }
}

export type JsonObject = { [key: string]: unknown }

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * One line as a JSON object; undefined for a blank line (QEMU ends its lines with CR LF).
 * @throws QmpError `protocol` when it is not UTF-8, not JSON or not an object
 */
export function parseLine(line: Uint8Array): JsonObject | undefined {
  let value: unknown
  try {
    const text = utf8.decode(line).trim()
    if (text === '') return undefined
    value = JSON.parse(text)
  } catch (cause) {
    throw new QmpError('protocol', `the peer sent a line that is not JSON: ${excerpt(line)}`, { cause })
  }
  if (!isObject(value)) {
    throw new QmpError('protocol', `the peer sent JSON that is not an object: ${excerpt(line)}`)
  }
  return value
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The start of a line, printable, for error messages and logs. */
export function excerpt(line: Uint8Array): string {
  const text = Buffer.from(line.subarray(0, 80)).toString('latin1')
  return JSON.stringify(text) + (line.length > 80 ? `… (${line.length} bytes)` : '')
}
