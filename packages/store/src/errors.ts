/**
 * Why a store could not do what was asked. Callers switch on this, never on the text.
 *
 * - `invalid`: the call itself is wrong (a bad id, a value that is no JSON, one key written twice in a transaction)
 * - `too_large`: a value, a transaction or its number of operations is over the limit
 * - `token_reused`: the idempotency token was used before with other content
 * - `lease_lost`: the lease a write was to be bound to has ended
 * - `no_room`: the disk (or the store's quota) is full; nothing was changed
 * - `corrupt`: what is on disk is no sound store
 * - `locked`: another process has this store open
 * - `newer`: the store was written by a newer release
 * - `io`: the operating system failed to read or write
 * - `timeout`: no answer within the deadline
 * - `closed`: the store was closed
 */
export type StoreErrorKind =
  | 'invalid'
  | 'too_large'
  | 'token_reused'
  | 'lease_lost'
  | 'no_room'
  | 'corrupt'
  | 'locked'
  | 'newer'
  | 'io'
  | 'timeout'
  | 'closed'

export type StoreErrorInit = {
  kind: StoreErrorKind
  /** What was wrong, in plain words. */
  detail: string
  /** What to do about it. */
  remedy?: string
  /** Did the call change anything? `unknown` only where the answer was lost; repeat it with the same token. */
  effect?: 'none' | 'unknown'
  retryable?: boolean
  /** The file it is about. */
  file?: string
  cause?: unknown
}

export class StoreError extends Error {
  readonly kind: StoreErrorKind
  readonly effect: 'none' | 'unknown'
  readonly retryable: boolean
  readonly remedy: string | undefined
  readonly file: string | undefined

  constructor(init: StoreErrorInit) {
    super(init.detail, init.cause === undefined ? undefined : { cause: init.cause })
    this.name = 'StoreError'
    this.kind = init.kind
    this.effect = init.effect ?? 'none'
    this.retryable = init.retryable ?? false
    this.remedy = init.remedy
    this.file = init.file
  }
}

/** The same error as plain data: errors lose their class on the way between threads. */
export function toPlain(error: StoreError): StoreErrorInit {
  const { kind, effect, retryable, remedy, file, message } = error
  return { kind, detail: message, effect, retryable, ...(remedy && { remedy }), ...(file && { file }) }
}
