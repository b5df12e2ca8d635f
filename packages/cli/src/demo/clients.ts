/** Clients that go on using a server while it moves, as ordinary users would; each counts what went wrong. */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { clean } from '../text/clean.ts'
import { findPrinted, type Page, printPage, smbArguments, sum, type Target } from './check.ts'
import type { ServiceKind } from './plan.ts'

/** What a client got while it was at work. `errors`: each answer that did not come, or was not the right one. */
export type Used = { requests: number; bytes: number; longest_ms: number; errors: string[] }
/** One thing a user does, over and over, and what is looked at once it is over. */
type Round = { once: () => Promise<number>; every_ms: number; after?: () => Promise<string[]>; close?: () => void }

const HTTP_EVERY_MS = 20
const HTTP_PATIENCE_MS = 30_000
const PRINT_EVERY_MS = 400
const FILE_BYTES = 2 ** 20
const SMB_PATIENCE_S = 60
const HANG_UP_MS = 10_000

export class Client {
  readonly #folder: string
  readonly #round: Round
  readonly #used: Used = { requests: 0, bytes: 0, longest_ms: 0, errors: [] }
  readonly #work: Promise<void>
  #over = false

  private constructor(folder: string, round: Round) {
    this.#folder = folder
    this.#round = round
    this.#work = this.#run()
  }

  /** Returns once its first request was answered. @throws what kept it from beginning */
  static async begin(service: ServiceKind, target: Target): Promise<Client> {
    const folder = await mkdtemp(join(tmpdir(), 'wadah-client-'))
    try {
      const round = await { http: browse, smb: transfer, ipp: print }[service](target, folder)
      await round.once()
      return new Client(folder, round)
    } catch (error) {
      await rm(folder, { recursive: true, force: true })
      throw error
    }
  }

  async #run(): Promise<void> {
    const { once, every_ms } = this.#round
    while (!this.#over) {
      const began = performance.now()
      this.#used.requests += 1
      try {
        this.#used.bytes += await once()
      } catch (error) {
        this.#used.errors.push(clean((error as Error).message).slice(0, 200))
      }
      this.#used.longest_ms = Math.max(this.#used.longest_ms, Math.round(performance.now() - began))
      await delay(every_ms)
    }
  }

  /** Lets what is under way come to its end, and looks whether all of it arrived. */
  async end(): Promise<Used> {
    this.#over = true
    try {
      await this.#work
      this.#used.errors.push(...((await this.#round.after?.()) ?? []))
      return this.#used
    } finally {
      this.#round.close?.()
      await rm(this.#folder, { recursive: true, force: true })
    }
  }
}

/** The page, again and again over one connection that is kept. */
async function browse({ host, port }: Target): Promise<Round> {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  let page: string | undefined
  const once = () =>
    new Promise<number>((resolve, reject) => {
      const request = http.get({ host, port, path: '/', agent, timeout: HTTP_PATIENCE_MS }, (response) => {
        const parts: Buffer[] = []
        response.on('data', (part: Buffer) => parts.push(part))
        response.once('error', reject)
        response.once('end', () => {
          const text = Buffer.concat(parts).toString('utf8')
          page ??= text
          if (response.statusCode !== 200) reject(new Error(`HTTP ${response.statusCode}`))
          else if (text !== page) reject(new Error('another page'))
          else resolve(Buffer.byteLength(text))
        })
      })
      request.once('timeout', () => request.destroy(new Error(`no answer within ${HTTP_PATIENCE_MS / 1000} s`)))
      request.once('error', reject)
    })
  return { once, every_ms: HTTP_EVERY_MS, close: () => agent.destroy() }
}

/** A file is put and got back in one session that stays: a broken connection would end it. */
async function transfer(target: Target, folder: string): Promise<Round> {
  const data = randomBytes(FILE_BYTES)
  await writeFile(join(folder, 'sent'), data)
  const child = spawn('smbclient', await smbArguments(target, folder, SMB_PATIENCE_S), {
    cwd: folder,
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  })
  const session = new Session(child)
  const name = `wadah-transfer-${randomBytes(6).toString('hex')}.bin`
  const once = async () => {
    await session.say(`put sent ${name}`, /putting file/)
    await session.say(`get ${name} got`, /getting file/)
    const got = await readFile(join(folder, 'got'))
    if (sum(got) !== sum(data)) throw new Error('the file that came back is not the one that was put')
    return 2 * FILE_BYTES
  }
  const after = async () => {
    await session.end(`del ${name}`)
    return []
  }
  return { once, every_ms: 0, after, close: () => void child.kill('SIGKILL') }
}

/** What smbclient says to what it is told. */
class Session {
  readonly #child: ChildProcess
  #said = ''
  #ended = false
  #heard: () => void = () => {}

  constructor(child: ChildProcess) {
    this.#child = child
    const hear = (part: Buffer) => {
      this.#said = (this.#said + part.toString('utf8')).slice(-16_384)
      this.#heard()
    }
    child.stdout?.on('data', hear)
    child.stderr?.on('data', hear)
    child.stdin?.on('error', () => {})
    const end = () => {
      this.#ended = true
      this.#heard()
    }
    child.once('error', end)
    child.once('close', end)
  }

  /** Says a last word and hangs up. */
  async end(line: string): Promise<void> {
    this.#child.stdin?.end(`${line}\nquit\n`)
    const deadline = AbortSignal.timeout(HANG_UP_MS)
    while (!this.#ended && !deadline.aborted) await this.#news(deadline)
  }

  #news(deadline: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      this.#heard = resolve
      deadline.addEventListener('abort', () => resolve(), { once: true })
    })
  }

  async say(line: string, answer: RegExp): Promise<void> {
    const deadline = AbortSignal.timeout(SMB_PATIENCE_S * 1000)
    this.#said = ''
    this.#child.stdin?.write(`${line}\n`)
    for (;;) {
      const wrong = /NT_STATUS_\w+|[Cc]onnection.*|protocol negotiation failed.*/.exec(this.#said)?.[0]
      if (wrong !== undefined) throw new Error(`smbclient: ${wrong}`)
      if (answer.test(this.#said)) return
      if (this.#ended) throw new Error('smbclient ended: the connection broke')
      if (deadline.aborted) throw new Error(`smbclient: no answer within ${SMB_PATIENCE_S} s`)
      await this.#news(deadline)
    }
  }
}

/** Page after page into the queue; in the end each must have come out with its own word on it. */
async function print(target: Target, folder: string): Promise<Round> {
  const pages: Page[] = []
  const once = async () => {
    const page = await printPage(target, folder)
    if (typeof page === 'string') throw new Error(page)
    pages.push(page)
    return 0
  }
  const after = async () => {
    const wrong: string[] = []
    for (const page of pages) {
      const problem = await findPrinted(target, page, folder)
      if (problem !== undefined) wrong.push(problem)
    }
    return wrong
  }
  return { once, every_ms: PRINT_EVERY_MS, after }
}
