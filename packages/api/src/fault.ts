/**
 * Every error the product shows is a Fault with a code from this one table. Clients switch on `code`, never on text;
 * a code is never renamed or reused. On the wire a Fault is problem+json (RFC 9457).
 */
import Type from 'typebox'

/** code → HTTP status, whether trying again can help, and what it means. */
export const FAULTS = {
  invalid: { status: 422, retryable: false, title: 'The request has a value that cannot be used' },
  malformed: { status: 400, retryable: false, title: 'The request could not be read' },
  unauthenticated: { status: 401, retryable: false, title: 'Who is asking is not known' },
  forbidden: { status: 403, retryable: false, title: 'Not allowed' },
  not_found: { status: 404, retryable: false, title: 'There is no such thing' },
  method_not_allowed: { status: 405, retryable: false, title: 'Not possible with this method' },
  name_taken: { status: 409, retryable: false, title: 'The name is in use' },
  address_taken: { status: 409, retryable: false, title: 'The address is in use' },
  port_taken: { status: 409, retryable: false, title: 'The port is in use' },
  in_use: { status: 409, retryable: false, title: 'Something else needs it' },
  protected: { status: 409, retryable: false, title: 'It is protected against this' },
  wrong_state: { status: 409, retryable: false, title: 'Not possible in the present state' },
  busy: { status: 409, retryable: true, title: 'Another job is at work on it' },
  too_late: { status: 409, retryable: false, title: 'The point of no return has passed' },
  conflict: { status: 409, retryable: true, title: 'It was changed meanwhile' },
  not_owner: { status: 409, retryable: false, title: 'Another host holds it' },
  idempotency_mismatch: { status: 409, retryable: false, title: 'The idempotency key was used for another request' },
  gone: { status: 410, retryable: false, title: 'It was, and is no more' },
  precondition_failed: { status: 412, retryable: true, title: 'The generation does not match' },
  too_large: { status: 413, retryable: false, title: 'Too large' },
  unsupported_media_type: { status: 415, retryable: false, title: 'The content type is not understood' },
  precondition_required: { status: 428, retryable: false, title: 'A generation is required' },
  rate_limited: { status: 429, retryable: true, title: 'Too many tries' },
  no_room: { status: 507, retryable: false, title: 'Not enough room' },
  host_lacks: { status: 409, retryable: false, title: 'This host lacks something' },
  image_corrupt: { status: 422, retryable: false, title: 'The image cannot be used' },
  build_failed: { status: 500, retryable: true, title: 'The image could not be built' },
  cancelled: { status: 409, retryable: true, title: 'The job was cancelled' },
  timeout: { status: 504, retryable: true, title: 'It took longer than its deadline' },
  agent_silent: { status: 504, retryable: true, title: 'The guest agent does not answer' },
  agent_failed: { status: 502, retryable: false, title: 'The guest agent refused' },
  qemu_failed: { status: 502, retryable: false, title: 'QEMU refused or failed' },
  memory_lost: { status: 500, retryable: false, title: 'What was in the memory of the VM is lost' },
  monitor_silent: { status: 504, retryable: true, title: 'QEMU does not answer' },
  does_not_converge: { status: 409, retryable: false, title: 'It changes faster than it can be moved' },
  tool_failed: { status: 500, retryable: false, title: 'A program of the host failed' },
  store_failed: { status: 503, retryable: true, title: 'The record store failed' },
  unreachable: { status: 503, retryable: true, title: 'The daemon cannot be reached' },
  download_failed: { status: 502, retryable: true, title: 'The file could not be fetched' },
  unavailable: { status: 503, retryable: true, title: 'Not ready yet' },
  internal: { status: 500, retryable: false, title: 'A mistake of ours' },
} as const

export type FaultCode = keyof typeof FAULTS

/** `none`: nothing was changed. `partial`: half done, and undone or finished by itself later. `unknown`: cannot tell. */
export type Effect = 'none' | 'partial' | 'unknown'

export type Fault = {
  code: FaultCode
  status: number
  title: string
  /** What was wrong, and what would be right. */
  detail: string
  /** JSON pointer of the field that was wrong, e.g. `/memory_mib`. */
  field?: string
  /** The next command to type. */
  remedy?: string
  effect: Effect
  retryable: boolean
}

export const FaultSchema = Type.Object(
  {
    type: Type.Optional(Type.String()),
    code: Type.Enum(Object.keys(FAULTS) as FaultCode[]),
    status: Type.Integer(),
    title: Type.String(),
    detail: Type.String(),
    field: Type.Optional(Type.String()),
    remedy: Type.Optional(Type.String()),
    effect: Type.Enum(['none', 'partial', 'unknown'] as const),
    retryable: Type.Boolean(),
  },
  { title: 'Fault', description: 'RFC 9457 problem details; `code` is stable.' },
)

export type FaultOptions = {
  field?: string | undefined
  remedy?: string | undefined
  effect?: Effect
  retryable?: boolean
}

/** Builds a fault as plain data; `effect` is `none` unless said. */
export function fault(code: FaultCode, detail: string, options: FaultOptions = {}): Fault {
  const { status, title, retryable } = FAULTS[code]
  return {
    code,
    status,
    title,
    detail,
    ...(options.field === undefined ? {} : { field: options.field }),
    ...(options.remedy === undefined ? {} : { remedy: options.remedy }),
    effect: options.effect ?? 'none',
    retryable: options.retryable ?? retryable,
  }
}

/** The one exception type that crosses rooms. */
export class WadahError extends Error {
  readonly fault: Fault
  constructor(f: Fault, cause?: unknown) {
    super(`${f.code}: ${f.detail}`, cause === undefined ? undefined : { cause })
    this.name = 'WadahError'
    this.fault = f
  }
}

/** `throw fail('not_found', …)`. */
export function fail(code: FaultCode, detail: string, options: FaultOptions & { cause?: unknown } = {}): WadahError {
  return new WadahError(fault(code, detail, options), options.cause)
}

/** Turns anything thrown into a Fault. What is not ours becomes `internal`, without its text: that belongs in the log. */
export function toFault(error: unknown): Fault {
  if (error instanceof WadahError) return error.fault
  return fault('internal', 'Something went wrong that Wadah did not foresee. The log of wadahd has the details.', {
    effect: 'unknown',
    remedy: 'journalctl -u wadahd, or the file named by `wadah up`',
  })
}
