import type { Duplex } from 'node:stream'
import { connectUnix } from './connect.ts'
import { QmpError, messageOf } from './errors.ts'
import {
  EventHub,
  type LostEvents,
  type QmpEvent,
  type QmpEventName,
  type QmpEventOf,
  type QmpListener,
} from './events.ts'
import type { QmpCommands } from './generated/qmp-types.ts'
import type { CloseReason, ConnectOptions, ExecuteOptions, ExecuteRest, Qmp, QmpLogEntry, QmpOptions } from './types.ts'
import { bounded } from './wait.ts'
import { DEFAULT_MAX_LINE_BYTES, type JsonObject, LineDecoder, excerpt, isObject, parseLine } from './wire.ts'

export type { LostEvents, QmpEvent, QmpEventName, QmpEventOf, QmpListener } from './events.ts'
export type { CloseReason, ConnectOptions, ExecuteOptions, ExecuteRest, Qmp, QmpLogEntry, QmpOptions } from './types.ts'

const CONNECT_TIMEOUT_MS = 10_000
const GREETING_TIMEOUT_MS = 5_000
const COMMAND_TIMEOUT_MS = 30_000
const MAX_UNANSWERED = 1_000
/** QEMU stops reading at eight that wait (monitor/qmp.c, QMP_REQ_QUEUE_LEN_MAX), and then hears no out-of-band command either. */
const MAX_SENT = 6
const EVENT_BUFFER = 1_024
/** QEMU's own JSON parser gives up at 64 MiB. */
const MAX_REQUEST_CHARS = 32 * 1024 * 1024

/**
 * Connects to QEMU's monitor socket, waits for the greeting and negotiates. Retries while the socket is not there yet.
 * @throws QmpError `connect-failed`, `aborted`, `protocol`
 */
export async function connectQmp(options: ConnectOptions): Promise<Qmp> {
  const timeout_ms = options.connect_timeout_ms ?? CONNECT_TIMEOUT_MS
  const socket = await connectUnix({ path: options.path, timeout_ms, signal: options.signal, gone: options.gone })
  return attachQmp(socket, options, options.path)
}

/** The same over a stream that is already connected. `name` stands for it in error messages. */
export async function attachQmp(stream: Duplex, options: QmpOptions = {}, name = 'the monitor'): Promise<Qmp> {
  const client = new QmpClient(stream, options)
  try {
    await client.negotiate(name)
    return client
  } catch (error) {
    await client.close()
    throw error
  }
}

type Pending = {
  command: string
  sent_ms: number
  oob: boolean
  /** Absent once the caller gave up: the answer will be dropped. */
  settle?: { resolve: (value: unknown) => void; reject: (error: QmpError) => void }
}

class QmpClient implements Qmp {
  version = { major: 0, minor: 0, micro: 0, package: '' }
  readonly closed: Promise<CloseReason>
  readonly #stream: Duplex
  readonly #decoder: LineDecoder
  readonly #options: QmpOptions
  readonly #now_ms: () => number
  readonly #hub: EventHub
  /** In the order sent, which is the order QEMU answers in. */
  readonly #pending = new Map<number, Pending>()
  /** Not sent yet, because too many wait for their answer. */
  readonly #waiting = new Map<Pending, () => void>()
  readonly #greeting = Promise.withResolvers<JsonObject>()
  readonly #ended = Promise.withResolvers<CloseReason>()
  #greeted = false
  #hasOob = false
  #inBand = 0
  #reason: CloseReason | undefined
  #next_id = 1
  #heard_ms: number

  constructor(stream: Duplex, options: QmpOptions) {
    this.#stream = stream
    this.#options = options
    this.#now_ms = options.now_ms ?? (() => performance.now())
    this.#heard_ms = this.#now_ms()
    this.#decoder = new LineDecoder(options.max_line_bytes ?? DEFAULT_MAX_LINE_BYTES)
    this.#hub = new EventHub((error) => this.#anomaly(`an event listener failed: ${messageOf(error)}`))
    this.closed = this.#ended.promise
    this.#greeting.promise.catch(() => {})
    stream.on('data', (chunk: Buffer) => this.#receive(chunk))
    stream.on('end', () => this.#end({ by: 'peer', detail: 'QEMU closed the monitor connection' }))
    stream.on('close', () => this.#end({ by: 'peer', detail: 'the monitor connection ended' }))
    stream.on('error', (cause: NodeJS.ErrnoException) => {
      // A QEMU that exits with our bytes unread resets the connection: that is its end, not a fault of the socket.
      if (cause.code === 'ECONNRESET' || cause.code === 'EPIPE') {
        this.#end({ by: 'peer', detail: `QEMU ended the monitor connection (${cause.code})` })
        return
      }
      const detail = `the monitor connection failed: ${cause.message}`
      this.#end({ by: 'error', detail, error: new QmpError('closed', detail, { cause }) })
    })
  }

  get silent_ms(): number {
    return Math.max(0, this.#now_ms() - this.#heard_ms)
  }

  get unanswered(): number {
    return this.#pending.size + this.#waiting.size
  }

  async negotiate(name: string): Promise<void> {
    const timeout_ms = this.#options.greeting_timeout_ms ?? GREETING_TIMEOUT_MS
    const { signal, gone } = this.#options
    const greeting = await bounded<JsonObject>(
      (resolve, reject) => {
        this.#greeting.promise.then(resolve, reject)
        const message = `QEMU went away before ${name} was ready`
        const onGone = (): void => reject(new QmpError('connect-failed', message))
        gone?.then(onGone, onGone)
        return undefined
      },
      {
        timeout_ms,
        signal,
        onAbort: () => new QmpError('aborted', `waiting for QEMU's greeting on ${name} was aborted`),
        onTimeout: () => {
          const message = `QEMU sent no greeting on ${name} within ${timeout_ms} ms`
          return new QmpError('connect-failed', `${message}: it hangs, or another client holds this monitor`)
        },
      },
    )
    this.version = readVersion(greeting)
    const { capabilities } = greeting.QMP as JsonObject
    this.#hasOob = Array.isArray(capabilities) && capabilities.includes('oob')
    try {
      await this.executeAny('qmp_capabilities', this.#hasOob ? { enable: ['oob'] } : {}, { timeout_ms, signal })
    } catch (error) {
      if (error instanceof QmpError && (error.kind === 'aborted' || error.kind === 'protocol')) throw error
      const message = `QEMU did not accept qmp_capabilities on ${name}: ${messageOf(error)}`
      throw new QmpError('connect-failed', message, { cause: error })
    }
    this.#log({ what: 'connected' })
  }

  execute<K extends keyof QmpCommands>(command: K, ...rest: ExecuteRest<K>): Promise<QmpCommands[K]['returns']> {
    const [args, options] = rest
    return this.executeAny(command, args, options) as Promise<QmpCommands[K]['returns']>
  }

  executeAny(command: string, args?: object, options: ExecuteOptions = {}): Promise<unknown> {
    const timeout_ms = options.timeout_ms ?? this.#options.command_timeout_ms ?? COMMAND_TIMEOUT_MS
    const oob = options.oob === true && this.#hasOob
    let sent = false
    return bounded<unknown>(
      (resolve, reject) => {
        if (this.#reason) throw this.#closedError(command, false)
        if (this.unanswered >= MAX_UNANSWERED) {
          const message = `QEMU has ${MAX_UNANSWERED} unanswered commands and was silent for ${Math.round(this.silent_ms)} ms`
          throw new QmpError('limit', `${message}: ${command} was not sent`, { command })
        }
        const id = this.#next_id
        const line = encode(command, args, id, oob)
        this.#next_id += 1
        const pending: Pending = { command, sent_ms: 0, oob, settle: { resolve, reject } }
        const send = () => {
          pending.sent_ms = this.#now_ms()
          this.#pending.set(id, pending)
          if (!oob) this.#inBand += 1
          sent = true
          this.#stream.write(line)
          this.#log({ what: 'sent', command, id })
        }
        if (oob || this.#inBand < MAX_SENT) send()
        else this.#waiting.set(pending, send)
        return () => {
          delete pending.settle
          this.#waiting.delete(pending)
        }
      },
      {
        timeout_ms,
        signal: options.signal,
        onTimeout: () =>
          new QmpError('timeout', `QEMU did not answer ${command} within ${timeout_ms} ms`, { command, sent }),
        onAbort: () => new QmpError('aborted', `waiting for the answer to ${command} was aborted`, { command, sent }),
      },
    )
  }

  subscribe(listener: QmpListener): () => void {
    return this.#hub.subscribe(listener)
  }

  on<K extends QmpEventName>(event: K, listener: (event: QmpEventOf<K>) => void): () => void {
    return this.#hub.subscribe((seen) => (seen.event === event ? listener(seen as QmpEventOf<K>) : undefined))
  }

  events(signal: AbortSignal, limit: number = EVENT_BUFFER): AsyncIterableIterator<QmpEvent | LostEvents> {
    return this.#hub.stream(signal, limit)
  }

  waitFor<K extends QmpEventName>(
    event: K | readonly K[],
    predicate: ((event: QmpEventOf<K>) => boolean) | undefined,
    options: { timeout_ms: number; signal?: AbortSignal | undefined },
  ): Promise<QmpEventOf<K>> {
    const names: readonly string[] = typeof event === 'string' ? [event] : event
    const what = names.join(' or ')
    const waiting = bounded<QmpEventOf<K>>(
      (resolve, reject) =>
        this.#hub.subscribe(
          (seen) => {
            if (!names.includes(seen.event)) return
            try {
              if (predicate?.(seen as QmpEventOf<K>) ?? true) resolve(seen as QmpEventOf<K>)
            } catch (error) {
              reject(error)
            }
          },
          () => reject(this.#closedError(undefined, false)),
        ),
      {
        ...options,
        onTimeout: () => new QmpError('timeout', `QEMU sent no ${what} within ${options.timeout_ms} ms`),
        onAbort: () => new QmpError('aborted', `waiting for ${what} was aborted`),
      },
    )
    waiting.catch(() => {})
    return waiting
  }

  async close(): Promise<void> {
    this.#end({ by: 'us', detail: 'the monitor connection was closed on this side' })
    if (!this.#stream.closed) await new Promise<void>((resolve) => this.#stream.once('close', () => resolve()))
  }

  #receive(chunk: Buffer): void {
    if (this.#reason) return
    this.#heard_ms = this.#now_ms()
    try {
      for (const line of this.#decoder.push(chunk)) {
        const message = parseLine(line)
        if (message) this.#dispatch(message, line)
        if (this.#reason) return
      }
    } catch (error) {
      const cause = error instanceof QmpError ? error : new QmpError('protocol', messageOf(error), { cause: error })
      this.#end({ by: 'protocol', detail: cause.message, error: cause })
    }
  }

  #dispatch(message: JsonObject, line: Uint8Array): void {
    if (!this.#greeted) {
      if (!isObject(message.QMP)) throw new QmpError('protocol', `this is not a QMP monitor; it sent ${excerpt(line)}`)
      this.#greeted = true
      this.#greeting.resolve(message)
    } else if ('event' in message) this.#event(message, line)
    else if ('return' in message || 'error' in message) this.#answer(message, line)
    else if ('QMP' in message) this.#anomaly('a second greeting was ignored')
    else throw new QmpError('protocol', `QEMU sent neither answer nor event: ${excerpt(line)}`)
  }

  #event(message: JsonObject, line: Uint8Array): void {
    const { event, data = {}, timestamp } = message
    if (typeof event !== 'string' || !isObject(data))
      throw new QmpError('protocol', `malformed event: ${excerpt(line)}`)
    const { seconds, microseconds } = isObject(timestamp) ? timestamp : {}
    const known = typeof seconds === 'number' && typeof microseconds === 'number'
    const time = known ? { seconds, microseconds } : { seconds: -1, microseconds: -1 }
    this.#hub.emit({ event, data, timestamp: time } as QmpEvent)
  }

  #answer(message: JsonObject, line: Uint8Array): void {
    let { id } = message
    // QEMU leaves the id out when it could not parse a command. Answers come in order, so it means the oldest.
    if (id === undefined && 'error' in message) id = this.#pending.keys().next().value
    const pending = typeof id === 'number' ? this.#pending.get(id) : undefined
    if (typeof id !== 'number' || !pending) {
      this.#anomaly(`an answer that belongs to no command was ignored: ${excerpt(line)}`)
      return
    }
    this.#pending.delete(id)
    if (!pending.oob) {
      this.#inBand -= 1
      this.#sendNext()
    }
    const { command, settle } = pending
    const ms = this.#now_ms() - pending.sent_ms
    this.#log({ what: settle ? 'answered' : 'late', command, id, ms })
    if (!('error' in message)) {
      settle?.resolve(message.return)
      return
    }
    const error = isObject(message.error) ? message.error : {}
    if (typeof error.class === 'string' && typeof error.desc === 'string') {
      const init = { command, class: error.class, sent: true }
      settle?.reject(new QmpError('command-failed', `QEMU refused ${command}: ${error.desc}`, init))
    } else {
      const text = `QEMU answered ${command} with a malformed error: ${excerpt(line)}`
      settle?.reject(new QmpError('protocol', text, { command, sent: true }))
    }
  }

  #sendNext(): void {
    const [next] = this.#waiting
    if (!next) return
    this.#waiting.delete(next[0])
    next[1]()
  }

  #end(reason: CloseReason): void {
    if (this.#reason) return
    this.#reason = reason
    this.#stream.destroy()
    this.#decoder.reset()
    const pending = [...this.#pending.values()]
    this.#pending.clear()
    for (const { command, settle } of pending) settle?.reject(this.#closedError(command, true))
    for (const { command, settle } of [...this.#waiting.keys()]) settle?.reject(this.#closedError(command, false))
    this.#greeting.reject(this.#greetingError(reason))
    this.#hub.end()
    this.#log({ what: 'closed', detail: reason.detail })
    this.#ended.resolve(reason)
  }

  #greetingError(reason: CloseReason): QmpError {
    if (reason.by === 'protocol' && reason.error) return reason.error
    return new QmpError('connect-failed', `${reason.detail} before its greeting`, { cause: reason.error })
  }

  #closedError(command: string | undefined, sent: boolean): QmpError {
    const reason = this.#reason
    const message = `${command ?? 'the wait'} has no answer: ${reason?.detail ?? 'the connection ended'}`
    const kind = reason?.by === 'protocol' && sent ? 'protocol' : 'closed'
    return new QmpError(kind, message, { command, sent, cause: reason?.error })
  }

  #anomaly(detail: string): void {
    this.#log({ what: 'anomaly', detail })
  }

  #log(entry: QmpLogEntry): void {
    try {
      this.#options.log?.(entry)
    } catch {
      // A broken log must not end the monitor.
    }
  }
}

function encode(command: string, args: object | undefined, id: number, oob: boolean): string {
  const execute = oob ? 'exec-oob' : 'execute'
  const line = JSON.stringify({ [execute]: command, ...(args === undefined ? {} : { arguments: args }), id })
  if (line.length > MAX_REQUEST_CHARS) {
    const message = `the arguments of ${command} are larger than ${MAX_REQUEST_CHARS} characters; nothing was sent`
    throw new QmpError('limit', message, { command })
  }
  return `${line}\n`
}

function readVersion(greeting: JsonObject): Qmp['version'] {
  const { version } = greeting.QMP as JsonObject
  const { qemu, package: pkg } = isObject(version) ? version : {}
  const part = (name: string): number => {
    const value = isObject(qemu) ? qemu[name] : undefined
    return typeof value === 'number' ? value : 0
  }
  return {
    major: part('major'),
    minor: part('minor'),
    micro: part('micro'),
    package: typeof pkg === 'string' ? pkg : '',
  }
}
