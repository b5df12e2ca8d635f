/** What a move is bounded by, out of what was wished for and what its target says of itself. Pure. */
import type { VmMigrate } from '@wadah/api/schema/migration'
import type { MoveLimits, MoveMode } from '@wadah/ports/migration'
import type { FactsRecord } from '../members/records.ts'

const STALL_MS = 300
type Target = Pick<FactsRecord, 'postcopy'> | undefined

/**
 * Only the target's QEMU needs something of its kernel for post-copy, so only the target is asked: it says in its answer to the move
 * when it can't. One whose facts say nothing of it is of the release before, and would refuse the move.
 */
export function moveLimits(
  body: Pick<VmMigrate, 'max_stall_ms' | 'bandwidth_mib_per_s'>,
  mode: MoveMode,
  target: Target,
): MoveLimits {
  return {
    max_stall_ms: body.max_stall_ms ?? STALL_MS,
    may_postcopy: mode !== 'precopy' && target?.postcopy === true,
    ...(body.bandwidth_mib_per_s === undefined ? {} : { bandwidth_bytes_per_s: body.bandwidth_mib_per_s * 2 ** 20 }),
  }
}

/** The same, as far as it is known before the target has answered. */
export const foreseenLimits = (limits: MoveLimits, target: Target): MoveLimits => ({
  ...limits,
  may_postcopy: limits.may_postcopy === true && target?.postcopy === true,
})
