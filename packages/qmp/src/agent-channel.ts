import { randomInt } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { printable } from './agent-checks.ts'
import { MARK, SyncScanner } from './agent-sync.ts'
import { QmpError } from './errors.ts'
import { bounded } from './wait.ts'
import { type JsonObject, LineDecoder, isObject, parseLine } from './wire.ts'

const DEFAULT_MAX_ANSWER_BYTES = 4 * 1024 * 1024
/** More unread requests than this: nobody in the guest reads the channel. */
const MAX_UNREAD_BYTES = 16 * 1024
const MAX_SYNCS = 3
/** What may come before a sync's reply: at most late answers to earlier requests. */
const MAX_SKIPPED_BYTES = 128 * 1024 * 1024

export type AgentOptions = {
  /** Deadline of a request that does not set its own, waiting for the channel included. Default 10 s. */
  timeout_ms?: number
  /** A monotonic clock. Default performance.now. */
  now_ms?: () => number
  /** The number that a sync must be answered with, 1 … 2^31. Default random. */
  sync_id?: () => number
}

export type RequestOptions = { timeout_ms?: number | undefined; signal?: AbortSignal | undefined }

type Receiver = { receive: (chunk: Buffer) => void; fail: (error: QmpError) => void }

/**
 * One request at a time over the guest agent's byte stream (QEMU, docs/interop/qemu-ga-ref). The channel has no
 * connection on the guest's side: an agent may start, stop or answer at any time, so before the first request and after
 * everything unexpected it is synchronized with `guest-sync-delimited`: whatever came before 0xFF and the right number is
 * thrown away. Between requests the stream is paused, so a guest cannot make this process work unasked.
 */
export class AgentChannel {
  readonly closed: Promise<void>
  readonly #stream: Duplex
  readonly #options: AgentOptions
  readonly #waiting: (() => void)[] = []
  readonly #ended = Promise.withResolvers<void>()
  #busy = false
  #synced = false
  /** Something came after the last answer. */
  #strayed = false
  /** Whether this agent repeats a request's id in its answer; agents before QEMU 4.0 do not. */
  #echoes = false
  #next_id = 1
  #over: QmpError | undefined
  #receiver: Receiver | undefined

  constructor(stream: Duplex, options: AgentOptions = {}) {
    this.#stream = stream
    this.#options = options
    this.closed = this.#ended.promise
    stream.on('data', (chunk: Buffer) => {
      if (this.#receiver) this.#receiver.receive(chunk)
      else {
        this.#synced = false
        this.#strayed = true
      }
    })
    stream.on('end', () => this.#end('QEMU closed the agent channel'))
    stream.on('close', () => this.#end('the agent channel was closed'))
    stream.on('error', (error) => this.#end(`the agent channel failed: ${error.message}`, error))
    stream.pause()
  }

  now_ms(): number {
    return this.#options.now_ms?.() ?? performance.now()
  }

  /** The deadline of a request that sets none. */
  get timeout_ms(): number {
    return this.#options.timeout_ms ?? 10_000
  }

  /**
   * Sends one command and gives back its unchecked result. The deadline covers waiting for the channel, synchronizing and the answer.
   * @throws QmpError `command-failed`, `timeout`, `aborted`, `closed`, `protocol`
   */
  async request(
    command: string,
    args: object | undefined,
    options: RequestOptions & { max_answer_bytes?: number } = {},
  ): Promise<unknown> {
    const timeout_ms = options.timeout_ms ?? this.timeout_ms
    const deadline_ms = this.now_ms() + timeout_ms
    const phase: Phase = { command, timeout_ms, deadline_ms, signal: options.signal }
    const max_bytes = options.max_answer_bytes ?? DEFAULT_MAX_ANSWER_BYTES
    await this.#lock(phase)
    try {
      // Unasked bytes that came since the last answer.
      if (this.#stream.readableLength > 0) this.#synced = false
      this.#stream.resume()
      for (let tries = 0; !this.#synced; tries += 1) {
        if (tries === MAX_SYNCS)
          throw new QmpError('protocol', 'the guest agent keeps sending what nobody asked for', { command })
        await this.#sync(phase)
      }
      return await this.#ask(phase, args, max_bytes)
    } finally {
      this.#stream.pause()
      this.#unlock()
    }
  }

  /** Ends the channel; the agent in the guest does not notice. */
  close(): void {
    this.#end('the agent channel was closed on this side')
  }

  /**
   * The agent closed its end: what it has not answered, it never will. The request on the wire ends with `closed`; the channel stays, and
   * whoever waits for it goes on.
   */
  left(): void {
    this.#receiver?.fail(new QmpError('closed', 'the guest agent was closed in the guest before it answered'))
  }

  async #lock(phase: Phase): Promise<void> {
    if (!this.#busy) {
      this.#busy = true
      return
    }
    await this.#bounded<void>(phase, 'another request holds the agent channel', false, (resolve) => {
      let granted = false
      const grant = (): void => {
        granted = true
        resolve()
      }
      this.#waiting.push(grant)
      return () => {
        if (!granted) this.#waiting.splice(this.#waiting.indexOf(grant), 1)
      }
    })
  }

  #unlock(): void {
    const next = this.#waiting.shift()
    if (next) next()
    else this.#busy = false
  }

  async #sync(phase: Phase): Promise<void> {
    const silence = 'it does not run, is not installed, or the guest is too busy'
    if (this.#stream.writableLength > MAX_UNREAD_BYTES) {
      throw new QmpError('timeout', `the guest agent reads nothing: ${silence}`, { command: phase.command })
    }
    const id = this.#options.sync_id?.() ?? randomInt(1, 2 ** 31)
    const scanner = new SyncScanner(id)
    const request = { execute: 'guest-sync-delimited', arguments: { id }, id }
    const bytes = Buffer.concat([Buffer.of(MARK), Buffer.from(`${JSON.stringify(request)}\n`)])
    const reply = await this.#exchange(phase, silence, false, bytes, (chunk) => {
      const found = scanner.push(chunk)
      if (!found && scanner.seen_bytes > MAX_SKIPPED_BYTES) {
        throw new QmpError('protocol', 'the guest agent floods the channel', { command: phase.command })
      }
      return found
    })
    this.#echoes = reply.echoes
    // Nothing may follow unasked: if it did already, synchronize once more.
    this.#synced = reply.rest.length === 0 && !this.#strayed
  }

  async #ask(phase: Phase, args: object | undefined, max_bytes: number): Promise<unknown> {
    const { command } = phase
    const id = this.#next_id
    this.#next_id += 1
    const bytes = Buffer.from(`${JSON.stringify({ execute: command, ...(args ? { arguments: args } : {}), id })}\n`)
    const decoder = new LineDecoder(max_bytes)
    this.#synced = false
    let more = false
    const message = await this.#exchange<JsonObject>(phase, 'it is busy or stopped', true, bytes, (chunk) => {
      let answer: JsonObject | undefined
      for (const line of decoder.push(chunk)) {
        if (answer) more = true
        else answer = this.#accept(line, id, command)
      }
      more ||= answer !== undefined && decoder.pending_bytes > 0
      return answer
    })
    this.#synced = !more && !this.#strayed
    if ('return' in message) return message.return
    const { class: errorClass, desc } = isObject(message.error) ? message.error : {}
    throw new QmpError('command-failed', `the guest agent refused ${command}: ${limited(desc)}`, {
      command,
      class: limited(errorClass),
      sent: true,
    })
  }

  /** The answer to request `id`, or undefined for a line that is not it. */
  #accept(line: Uint8Array, id: number, command: string): JsonObject | undefined {
    const message = parseLine(line)
    if (!message) return undefined
    // An agent that echoes ids tells late answers apart. Only its "cannot parse that" comes without.
    if ('id' in message ? message.id !== id : this.#echoes && 'return' in message) return undefined
    if ('return' in message || isObject(message.error)) return message
    const text = `the guest agent answered ${command} with neither result nor error`
    throw new QmpError('protocol', text, { command, sent: true })
  }

  /** Sends `bytes` and hands what comes to `receive` until that gives back a result; what it throws ends the wait. */
  #exchange<T>(
    phase: Phase,
    why: string,
    sent: boolean,
    bytes: Buffer,
    receive: (chunk: Buffer) => T | undefined,
  ): Promise<T> {
    return this.#bounded<T>(phase, why, sent, (resolve, reject) => {
      this.#strayed = false
      this.#receiver = {
        fail: (cause) => reject(closedError(phase.command, cause, sent)),
        receive: (chunk) => {
          try {
            const result = receive(chunk)
            if (result === undefined) return
            this.#receiver = undefined
            resolve(result)
          } catch (error) {
            this.#receiver = undefined
            reject(error)
          }
        },
      }
      this.#stream.write(bytes)
      return () => {
        this.#receiver = undefined
      }
    })
  }

  /** A wait within the phase's deadline. */
  #bounded<T>(
    phase: Phase,
    why: string,
    sent: boolean,
    start: (resolve: (value: T) => void, reject: (error: unknown) => void) => () => void,
  ): Promise<T> {
    const { command, timeout_ms } = phase
    return bounded<T>(
      (resolve, reject) => {
        if (this.#over) throw closedError(command, this.#over, false)
        return start(resolve, reject)
      },
      {
        timeout_ms: phase.deadline_ms - this.now_ms(),
        signal: phase.signal,
        onTimeout: () => {
          const message = `the guest agent did not answer ${command} within ${timeout_ms} ms: ${why}`
          return new QmpError('timeout', message, { command, sent })
        },
        onAbort: () => new QmpError('aborted', `the guest agent's ${command} was aborted`, { command, sent }),
      },
    )
  }

  #end(detail: string, cause?: Error): void {
    if (this.#over) return
    this.#over = new QmpError('closed', detail, { cause })
    this.#stream.destroy()
    this.#receiver?.fail(this.#over)
    this.#ended.resolve()
  }
}

type Phase = { command: string; timeout_ms: number; deadline_ms: number; signal: AbortSignal | undefined }

function closedError(command: string, cause: QmpError, sent: boolean): QmpError {
  return new QmpError('closed', `${command}: ${cause.message}`, { command, sent, cause })
}

function limited(value: unknown): string {
  return typeof value === 'string' ? printable(value.slice(0, 500)) : 'no reason given'
}
