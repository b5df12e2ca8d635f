/** The log of one job: a bounded file of lines `<number> <ms since 1970> <text>`. Line numbers stay true when old lines are dropped. */
import { constants } from 'node:fs'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

export type LogLine = { seq: number; at_ms: number; text: string }

const TEXT_MAX = 4096
const JOB_ID = /^[a-z]+-[a-z2-7]{10}$/
const { O_APPEND, O_CREAT, O_NOFOLLOW, O_RDONLY, O_TRUNC, O_WRONLY } = constants

export function logPath(dir: string, jobId: string): string {
  if (!JOB_ID.test(jobId)) throw new TypeError(`"${jobId}" is not the id of a job`)
  return join(dir, `${jobId}.log`)
}

/** One line of text, without control characters: it may come from a guest or a tool. */
function clean(text: string): string {
  const plain = text.replace(/\p{Cc}/gu, (c) => (c === '\t' ? c : '\ufffd'))
  return plain.length > TEXT_MAX ? `${plain.slice(0, TEXT_MAX)} …` : plain
}

/** Pure: the file without its oldest half, from a line's beginning. */
export function newestHalf(content: Buffer): Buffer {
  const cut = content.indexOf(10, Math.floor(content.length / 2))
  return cut < 0 ? content.subarray(content.length) : content.subarray(cut + 1)
}

export class JobLog {
  #path: string
  #bytesMax: number
  #pending: LogLine[] = []
  #next: number | undefined
  #size = 0
  #writing: Promise<void> | undefined
  #now_ms: () => number
  #onLine: (line: LogLine) => void

  constructor(o: { path: string; bytesMax: number; now_ms: () => number; onLine: (line: LogLine) => void }) {
    this.#path = o.path
    this.#bytesMax = o.bytesMax
    this.#now_ms = o.now_ms
    this.#onLine = o.onLine
  }

  /** Never waits, never throws; the file follows shortly. */
  add(text: string): void {
    for (const part of text.replace(/\r?\n$/, '').split(/\r?\n/)) {
      this.#pending.push({ seq: -1, at_ms: this.#now_ms(), text: clean(part) })
    }
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined
    })
  }

  async flush(): Promise<void> {
    while (this.#writing) await this.#writing
  }

  async #write(): Promise<void> {
    while (this.#pending.length > 0) {
      const lines = this.#pending
      this.#pending = []
      try {
        await this.#append(lines)
      } catch {
        // A log that can't be written must not fail the job; its lines are still seen by who watches now.
        for (const line of lines) this.#onLine(line)
      }
    }
  }

  async #append(lines: LogLine[]): Promise<void> {
    if (this.#next === undefined) {
      const old = await readLines(this.#path)
      this.#next = (old.lines.at(-1)?.seq ?? -1) + 1
      this.#size = old.size
    }
    let text = ''
    for (const line of lines) {
      line.seq = this.#next++
      text += `${line.seq} ${line.at_ms} ${line.text}\n`
    }
    const file = await open(this.#path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600)
    try {
      await file.write(text)
    } finally {
      await file.close()
    }
    this.#size += Buffer.byteLength(text)
    if (this.#size > this.#bytesMax) await this.#shrink()
    for (const line of lines) this.#onLine(line)
  }

  async #shrink(): Promise<void> {
    const kept = newestHalf((await readAll(this.#path)) ?? Buffer.alloc(0))
    const file = await open(`${this.#path}.part`, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600)
    try {
      await file.writeFile(kept)
    } finally {
      await file.close()
    }
    await rename(`${this.#path}.part`, this.#path)
    this.#size = kept.length
  }
}

async function readAll(path: string): Promise<Buffer | undefined> {
  let file: FileHandle
  try {
    file = await open(path, O_RDONLY | O_NOFOLLOW)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    return await file.readFile()
  } finally {
    await file.close()
  }
}

async function readLines(path: string): Promise<{ lines: LogLine[]; size: number }> {
  const content = await readAll(path)
  const lines: LogLine[] = []
  for (const raw of content?.toString().split('\n') ?? []) {
    const found = /^(\d+) (\d+) (.*)$/.exec(raw)
    if (found) lines.push({ seq: Number(found[1]), at_ms: Number(found[2]), text: found[3] ?? '' })
  }
  return { lines, size: content?.length ?? 0 }
}

/** Lines from number `from` on, at most `limit`. `next` is what to ask for afterwards. A job without a log has no lines. */
export async function readJobLog(
  path: string,
  q: { from: number; limit: number },
): Promise<{ lines: LogLine[]; next: number }> {
  const { lines } = await readLines(path)
  const found = lines.filter((l) => l.seq >= q.from).slice(0, q.limit)
  const last = found.at(-1)
  return { lines: found, next: last ? last.seq + 1 : q.from }
}

export async function removeJobLog(path: string): Promise<void> {
  await rm(path, { force: true })
  await rm(`${path}.part`, { force: true })
}
