/** Who changed what: one line of JSON for each write, in order, in a file that is only ever added to. */
import { type FileHandle, mkdir, open, rename } from 'node:fs/promises'
import { constants } from 'node:fs'
import { dirname } from 'node:path'
import type { AuditEntry } from '@wadah/api/schema/access'
import type { Clock } from '@wadah/store/clock'

export type AuditOptions = {
  file: string
  clock: Clock
  /** A file that grew beyond this is put aside as `.1`, `.2`, …; default 8 MiB. */
  bytesMax?: number
  /** Number of files put aside that are kept; default 7. */
  keep?: number
  /** Lines a minute for tries without login, so that they can't push out the others; default 60. */
  anonymousPerMinute?: number
  onTrouble: (error: unknown) => void
}

type Line = { text: string; written: () => void }
const READ_BYTES_MAX = 1024 * 1024

export class AuditLog {
  #o: Required<AuditOptions>
  #file: FileHandle | undefined
  #size = 0
  #queue: Line[] = []
  #working: Promise<void> | undefined
  #minute = { began_ms: 0, count: 0, suppressed: 0 }

  constructor(options: AuditOptions) {
    this.#o = { bytesMax: 8 * 1024 * 1024, keep: 7, anonymousPerMinute: 60, ...options }
  }

  /** Resolves once the line was handed to the kernel: it then survives the end of the daemon. Never rejects: trouble is reported apart. */
  append(entry: AuditEntry): Promise<void> {
    const counted = entry.subject === 'nobody' ? this.#count(entry) : entry
    if (!counted) return Promise.resolve()
    return new Promise((resolve) => {
      this.#queue.push({ text: `${JSON.stringify(counted)}\n`, written: resolve })
      this.#working ??= this.#work()
    })
  }

  /** The entry, or undefined when there are too many of its kind; how many were left out is told by the next one. */
  #count(entry: AuditEntry): AuditEntry | undefined {
    const minute = this.#minute
    const now = this.#o.clock.monotonic_ms()
    if (now - minute.began_ms >= 60_000) {
      minute.began_ms = now
      minute.count = 0
    }
    if (minute.count >= this.#o.anonymousPerMinute) {
      minute.suppressed += 1
      return undefined
    }
    minute.count += 1
    if (minute.suppressed === 0) return entry
    const told = { ...entry, suppressed: minute.suppressed }
    minute.suppressed = 0
    return told
  }

  async #work(): Promise<void> {
    while (this.#queue.length > 0) {
      const lines = this.#queue.splice(0, 256)
      try {
        await this.#write(lines.map((l) => l.text).join(''))
      } catch (error) {
        this.#o.onTrouble(error)
        await this.#file?.close().catch(() => undefined)
        this.#file = undefined
      }
      for (const line of lines) line.written()
    }
    this.#working = undefined
  }

  async #write(text: string): Promise<void> {
    if (this.#file && this.#size >= this.#o.bytesMax) await this.#rotate()
    this.#file ??= await this.#open()
    await this.#file.appendFile(text)
    this.#size += Buffer.byteLength(text)
  }

  async #open(): Promise<FileHandle> {
    const { O_APPEND, O_CREAT, O_RDWR, O_NOFOLLOW } = constants
    await mkdir(dirname(this.#o.file), { recursive: true, mode: 0o700 })
    const file = await open(this.#o.file, O_APPEND | O_CREAT | O_RDWR | O_NOFOLLOW, 0o600)
    this.#size = (await file.stat()).size
    // A daemon killed in the middle of a line: the next one begins on its own.
    if (this.#size > 0) {
      const { buffer } = await file.read({ buffer: Buffer.alloc(1), position: this.#size - 1 })
      if (buffer[0] !== 0x0a) await file.appendFile('\n')
    }
    return file
  }

  async #rotate(): Promise<void> {
    await this.#file?.close()
    this.#file = undefined
    const name = (n: number) => (n === 0 ? this.#o.file : `${this.#o.file}.${n}`)
    for (let n = this.#o.keep - 1; n >= 0; n--) {
      await rename(name(n), name(n + 1)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error
      })
    }
  }

  /** The last entries, newest first. */
  async tail(limit: number): Promise<AuditEntry[]> {
    await this.#working
    const entries: AuditEntry[] = []
    for (let n = 0; n <= this.#o.keep && entries.length < limit; n++) {
      const text = await readEnd(n === 0 ? this.#o.file : `${this.#o.file}.${n}`)
      if (text === undefined) break
      for (const line of text.split('\n').toReversed()) {
        if (entries.length === limit) break
        const entry = parse(line)
        if (entry) entries.push(entry)
      }
    }
    return entries
  }

  async close(): Promise<void> {
    await this.#working
    await this.#file?.close()
    this.#file = undefined
  }
}

function parse(line: string): AuditEntry | undefined {
  if (line === '') return undefined
  try {
    return JSON.parse(line) as AuditEntry
  } catch {
    return undefined
  }
}

/** The end of a file from the first whole line on; undefined when there is none. */
async function readEnd(path: string): Promise<string | undefined> {
  let file: FileHandle
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    const { size } = await file.stat()
    const length = Math.min(size, READ_BYTES_MAX)
    const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(length), position: size - length })
    const text = buffer.subarray(0, bytesRead).toString()
    return length < size ? text.slice(text.indexOf('\n') + 1) : text
  } finally {
    await file.close()
  }
}
