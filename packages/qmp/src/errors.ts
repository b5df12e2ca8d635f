/**
 * What went wrong on a monitor or guest agent channel. One class for both wires, told apart by `kind`:
 *
 * - `command-failed`: QEMU (or the agent) answered with an error; `class` and `command` say which, never match `message`.
 * - `timeout`: no answer before the deadline. The connection stays open: slow is not dead.
 * - `aborted`: the caller's AbortSignal fired.
 * - `closed`: the connection ended before the answer.
 * - `protocol`: the peer sent something that is not the protocol.
 * - `connect-failed`: no usable connection was made.
 * - `limit`: a limit on this side was reached: too many commands unanswered, a request or a file too large.
 */
export type QmpErrorKind = 'command-failed' | 'timeout' | 'aborted' | 'closed' | 'protocol' | 'connect-failed' | 'limit'

/** Classes QEMU documents; a newer QEMU may send others, so it stays open. */
export type QmpErrorClass =
  | 'GenericError'
  | 'CommandNotFound'
  | 'DeviceNotActive'
  | 'DeviceNotFound'
  | 'KVMMissingCap'
  | (string & {})

export type QmpErrorInit = {
  /** The QMP or agent command this belongs to. */
  command?: string | undefined
  /** QEMU's error class, only with `command-failed`. */
  class?: QmpErrorClass | undefined
  /** True once the command's bytes were handed to the socket: it may have run, or may still run. */
  sent?: boolean | undefined
  cause?: unknown
}

export class QmpError extends Error {
  override readonly name = 'QmpError'
  readonly kind: QmpErrorKind
  readonly command: string | undefined
  readonly class: QmpErrorClass | undefined
  readonly sent: boolean

  constructor(kind: QmpErrorKind, message: string, init: QmpErrorInit = {}) {
    super(message, init.cause === undefined ? undefined : { cause: init.cause })
    this.kind = kind
    this.command = init.command
    this.class = init.class
    this.sent = init.sent ?? false
  }
}

/** Whether `error` is a QmpError, and of `kind` when one is named. */
export function isQmpError(error: unknown, kind?: QmpErrorKind): error is QmpError {
  return error instanceof QmpError && (kind === undefined || error.kind === kind)
}

/** Whether QEMU refused a command with this error class. */
export function isCommandError(error: unknown, errorClass: QmpErrorClass): error is QmpError {
  return isQmpError(error, 'command-failed') && error.class === errorClass
}

/** Text of any thrown value, for messages. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
