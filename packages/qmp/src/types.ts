import type { QmpError } from './errors.ts'
import type { LostEvents, QmpEvent, QmpEventName, QmpEventOf, QmpListener } from './events.ts'
import type { QmpCommands } from './generated/qmp-types.ts'

/** What happened on the connection, for a log. Never contains arguments or results: they may hold secrets. */
export type QmpLogEntry = {
  what: 'connected' | 'sent' | 'answered' | 'late' | 'anomaly' | 'closed'
  command?: string
  id?: number
  /** Time since the command was sent. */
  ms?: number
  detail?: string
}

export type QmpOptions = {
  /** Deadline for QEMU's greeting, and again for the answer to `qmp_capabilities`. Default 5 s. */
  greeting_timeout_ms?: number
  /** Deadline of a command that does not set its own. Default 30 s. */
  command_timeout_ms?: number
  /** A longer line from QEMU ends the connection. Default 64 MiB. */
  max_line_bytes?: number
  /** Gives up connecting; has no effect on the connection once made. */
  signal?: AbortSignal | undefined
  /** Settles when the QEMU process is gone: connecting then fails at once. */
  gone?: Promise<unknown> | undefined
  log?: ((entry: QmpLogEntry) => void) | undefined
  /** A monotonic clock. Default performance.now. */
  now_ms?: () => number
}

export type ConnectOptions = QmpOptions & {
  /** UNIX socket of `-qmp unix:PATH,server=on,wait=off`. It need not exist yet. */
  path: string
  /** Deadline until which a missing socket is tried again. Default 10 s. */
  connect_timeout_ms?: number
}

export type ExecuteOptions = {
  /** Deadline for the answer. When it passes the connection stays open, and the late answer is dropped. */
  timeout_ms?: number
  signal?: AbortSignal | undefined
  /**
   * Out of band: carried out at once, whatever QEMU's main loop hangs on, where QEMU offers that. Only commands that its schema says
   * `allow-oob` of: `migrate-recover`, `migrate-pause`, `yank`. Source: QEMU, docs/interop/qmp-spec.txt, 2.3.1.
   */
  oob?: boolean
}

export type CloseReason = {
  /** `us`: close() was called. `peer`: QEMU ended it. `protocol`: QEMU broke the protocol. `error`: the socket failed. */
  by: 'us' | 'peer' | 'protocol' | 'error'
  detail: string
  error?: QmpError
}

/** Arguments may be left out where the command has none that must be given. */
export type ExecuteRest<K extends keyof QmpCommands> =
  Record<never, never> extends QmpCommands[K]['arguments']
    ? [args?: QmpCommands[K]['arguments'], options?: ExecuteOptions]
    : [args: QmpCommands[K]['arguments'], options?: ExecuteOptions]

/** One monitor connection, negotiated and ready. Commands may overlap; each answer finds its own caller. */
export interface Qmp {
  /** QEMU's version as its greeting said. */
  readonly version: { major: number; minor: number; micro: number; package: string }
  /** How long nothing was heard: neither answer nor event. Large while commands wait: QEMU is busy or hung. */
  readonly silent_ms: number
  /** Commands not answered, those whose callers gave up included. */
  readonly unanswered: number
  /** Settles, never rejects, when the connection ends for whatever reason. */
  readonly closed: Promise<CloseReason>
  /**
   * Runs a command. Only the envelope of the answer is checked, not that the result has the type QEMU's schema promises.
   * @throws QmpError `command-failed`, `timeout`, `aborted`, `closed`, `protocol`, `limit`
   */
  execute<K extends keyof QmpCommands>(command: K, ...rest: ExecuteRest<K>): Promise<QmpCommands[K]['returns']>
  /** The same for commands and arguments that the generated types do not know. */
  executeAny(command: string, args?: object, options?: ExecuteOptions): Promise<unknown>
  /** Calls `listener` for every event until the returned function is called or the connection ends. */
  subscribe(listener: QmpListener): () => void
  /** Calls `listener` for every event of one name. */
  on<K extends QmpEventName>(event: K, listener: (event: QmpEventOf<K>) => void): () => void
  /**
   * Events from this call on. At most `limit` (1,024) wait for the reader; when it falls behind, newer ones are dropped and
   * one `{event: null, lost: n}` stands in their place. Ends, without throwing, when the signal or the connection does.
   */
  events(signal: AbortSignal, limit?: number): AsyncIterableIterator<QmpEvent | LostEvents>
  /**
   * The next event of this name (or of one of these names) that `predicate` accepts. Listens from the call itself, so call it
   * before the command that causes the event, and await it after: an event in between is not missed. A rejection that
   * nobody awaits, because the command failed, is not reported as unhandled.
   * @throws QmpError `timeout`, `aborted`, `closed`
   */
  waitFor<K extends QmpEventName>(
    event: K | readonly K[],
    predicate: ((event: QmpEventOf<K>) => boolean) | undefined,
    options: { timeout_ms: number; signal?: AbortSignal | undefined },
  ): Promise<QmpEventOf<K>>
  /** Ends the connection, not QEMU. Whatever waits is rejected with `closed`. */
  close(): Promise<void>
}
