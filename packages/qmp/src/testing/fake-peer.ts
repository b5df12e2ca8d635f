import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Duplex, duplexPair } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { type JsonObject, LineDecoder, isObject } from '../wire.ts'

/** One thing a fake does. `id` replaces the command's own; `id: undefined` leaves it out. */
export type Step =
  | { return: unknown; id?: unknown }
  /** `{class, desc}`, unless the fake lies. */
  | { error: unknown; id?: unknown }
  | { event: string; data?: object }
  /** Bytes as they are, no newline added. */
  | { raw: string | Uint8Array }
  | { sleep_ms: number }
  /** Goes on when the promise settles. */
  | { until: Promise<unknown> }
  /** Says nothing more to this command. */
  | { stall: true }
  /** Ends the connection, after what was written so far. */
  | { drop: true }

export type Call = {
  command: string
  args: JsonObject
  id: unknown
  /** How often this command came on this fake, this time included. */
  nth: number
  /** It came out of band. */
  oob?: boolean
}

export type Answer = Step | readonly Step[]
export type Handler = Answer | ((call: Call) => Answer | Promise<Answer>)
export type Handlers = { [command: string]: Handler }

export type PeerOptions = {
  /** How each write is cut into chunks. Default: as written. Over a UNIX socket the kernel may join them again. */
  cut?: (bytes: Buffer) => Iterable<Uint8Array>
  /** Ends each connection after this many bytes were sent to it, in the middle of a line or not. */
  drop_after_bytes?: number
}

type Connection = { stream: Duplex; sent: number }

/** What the fake QEMU and the fake agent share: connections, and carrying out steps. */
export abstract class FakePeer {
  /** Every command that came, in order. */
  readonly received: Call[] = []
  /** Connections accepted so far. */
  connections = 0
  /** Handlers may be replaced while the fake runs. */
  readonly handlers: Handlers
  readonly #options: PeerOptions
  readonly #open = new Set<Connection>()
  readonly #watchers = new Set<() => void>()
  #server: Server | undefined
  #folder: string | undefined
  #path = ''

  constructor(handlers: Handlers, options: PeerOptions) {
    this.handlers = handlers
    this.#options = options
  }

  /** Path of the socket, once `listen` was called. */
  get path(): string {
    return this.#path
  }

  /** Bytes written and not read by the clients yet. */
  get unread_bytes(): number {
    let sum = 0
    for (const { stream } of this.#open) sum += stream.writableLength
    return sum
  }

  /** Listens on a UNIX socket, in a temporary folder of its own unless `path` is given. */
  async listen(path?: string): Promise<this> {
    if (path === undefined) this.#folder = await mkdtemp(join(tmpdir(), 'fake-qemu-'))
    this.#path = path ?? join(this.#folder ?? '', 'socket')
    const server = createServer((socket) => this.attach(socket))
    this.#server = server
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(this.#path, resolve)
    })
    return this
  }

  /** A connection in memory: the client's end. Chunks arrive exactly as they are cut. */
  stream(): Duplex {
    const [ours, theirs] = duplexPair()
    this.attach(ours)
    return theirs
  }

  attach(stream: Duplex): void {
    const connection: Connection = { stream, sent: 0 }
    this.connections += 1
    this.#open.add(connection)
    stream.on('error', () => {})
    stream.on('close', () => this.#open.delete(connection))
    const decoder = new LineDecoder()
    stream.on('data', (chunk: Buffer) => {
      for (const line of decoder.push(chunk)) this.#take(connection, line)
    })
    for (const step of this.opening()) this.#perform(connection, step, undefined)
  }

  /** Says this on every open connection. */
  say(step: Step): void {
    for (const connection of this.#open) this.#perform(connection, step, undefined)
  }

  /** Ends every open connection; new ones are still accepted. */
  drop(): void {
    this.say({ drop: true })
  }

  /** Waits until `command` came `nth` times. Never gives up: the test's own deadline does. */
  async came(command: string, nth = 1): Promise<Call> {
    for (;;) {
      const call = this.received.find((seen) => seen.command === command && seen.nth === nth)
      if (call) return call
      await new Promise<void>((resolve) => this.#watchers.add(resolve))
    }
  }

  async close(): Promise<void> {
    for (const { stream } of this.#open) stream.destroy()
    const server = this.#server
    if (server?.listening) await new Promise<void>((resolve) => server.close(() => resolve()))
    if (this.#folder) await rm(this.#folder, { recursive: true, force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** What is said as soon as somebody connects. */
  protected abstract opening(): readonly Step[]
  protected abstract unknown(call: Call): Answer
  /** The bytes before a command's answer. */
  protected prefix(_call: Call): string | Uint8Array {
    return ''
  }

  #take(connection: Connection, line: Buffer): void {
    // The agent protocol puts 0xFF before a line; no JSON contains it.
    const text = line.subarray(line.lastIndexOf(0xff) + 1).toString()
    let message: unknown
    try {
      message = JSON.parse(text)
    } catch {
      message = undefined
    }
    const command = isObject(message) ? (message.execute ?? message['exec-oob']) : undefined
    if (!isObject(message) || typeof command !== 'string') {
      const error = { class: 'GenericError', desc: 'JSON parse error, invalid command' }
      this.#perform(connection, { error, id: undefined }, undefined)
      return
    }
    const nth = this.received.filter((seen) => seen.command === command).length + 1
    const args = isObject(message.arguments) ? message.arguments : {}
    const oob = 'exec-oob' in message
    const call: Call = { command, args, id: message.id, nth, ...(oob ? { oob } : {}) }
    this.received.push(call)
    for (const wake of this.#watchers) wake()
    this.#watchers.clear()
    void this.#respond(connection, call)
  }

  async #respond(connection: Connection, call: Call): Promise<void> {
    const handler = Object.hasOwn(this.handlers, call.command) ? this.handlers[call.command] : undefined
    let answer = handler ?? this.unknown(call)
    if (typeof answer === 'function') {
      const made = answer(call)
      answer = made instanceof Promise ? await made : made
    }
    for (const step of 'length' in answer ? answer : [answer]) {
      if ('stall' in step) return
      if ('sleep_ms' in step) await sleep(step.sleep_ms, undefined, { ref: false })
      else if ('until' in step) await Promise.allSettled([step.until])
      else this.#perform(connection, step, call)
    }
  }

  #perform(connection: Connection, step: Step, call: Call | undefined): void {
    if ('drop' in step) connection.stream.end()
    else if ('raw' in step) this.#write(connection, step.raw)
    else if ('event' in step) {
      const now_us = Date.now() * 1000
      const timestamp = { seconds: Math.floor(now_us / 1e6), microseconds: now_us % 1e6 }
      this.#write(connection, line({ timestamp, event: step.event, data: step.data ?? {} }))
    } else if ('return' in step || 'error' in step) {
      const id = 'id' in step ? step.id : call?.id
      const body = 'return' in step ? { return: step.return } : { error: step.error }
      const text = line(id === undefined ? body : { ...body, id })
      this.#write(connection, call ? Buffer.concat([Buffer.from(this.prefix(call)), Buffer.from(text)]) : text)
    }
  }

  #write(connection: Connection, data: string | Uint8Array): void {
    const { stream } = connection
    const { cut, drop_after_bytes = Number.POSITIVE_INFINITY } = this.#options
    const whole = Buffer.from(data as Uint8Array)
    const bytes = whole.subarray(0, Math.max(0, drop_after_bytes - connection.sent))
    if (stream.writableEnded || stream.destroyed) return
    connection.sent += bytes.length
    for (const chunk of cut ? cut(bytes) : [bytes]) if (chunk.length > 0) stream.write(chunk)
    if (connection.sent >= drop_after_bytes) stream.end()
  }
}

function line(message: object): string {
  return `${JSON.stringify(message)}\r\n`
}
