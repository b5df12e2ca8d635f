import { type Fault, fault, toFault, WadahError } from '@wadah/api/fault'
import { StoreError } from '@wadah/store/errors'

/** A failure of the store in the words of the product. */
export function storeFault(error: StoreError): Fault {
  const options = { remedy: error.remedy, effect: error.effect, retryable: error.retryable }
  switch (error.kind) {
    case 'no_room':
      return fault('no_room', error.message, options)
    case 'too_large':
      return fault('too_large', error.message, options)
    case 'closed':
      return fault('unavailable', 'Wadah is stopping.', { retryable: true })
    case 'timeout':
      return fault('timeout', error.message, options)
    case 'invalid':
    case 'token_reused':
      return toFault(error)
    default:
      return fault('store_failed', error.message, options)
  }
}

/** Anything thrown as a Fault. */
export function anyFault(error: unknown): Fault {
  return error instanceof StoreError ? storeFault(error) : toFault(error)
}

/** Is it a mistake of ours, whose text belongs in the daemon's log? */
export function isUnforeseen(error: unknown): boolean {
  return !(error instanceof WadahError) && !(error instanceof StoreError)
}
