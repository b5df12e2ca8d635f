/** What a move is bounded by, out of what was wished for and what its target says of itself. Pure. */
import { fail } from '@wadah/api/fault'
import type { VmMigrate } from '@wadah/api/schema/migration'
import type { MoveLimits, MoveMode } from '@wadah/ports/migration'
import type { FactsRecord } from '../members/records.ts'

const STALL_MS = 300
const CHANNELS_MOST = 16
type Target = Pick<FactsRecord, 'postcopy'> | undefined

/**
 * Only the target's QEMU needs something of its kernel for post-copy, so only the target is asked: it says in its answer to the move
 * when it can't. One whose facts say nothing of it is of the release before, and would refuse the move.
 * @throws WadahError `invalid`: several connections, and not by pre-copy
 */
export function moveLimits(
  body: Pick<VmMigrate, 'max_stall_ms' | 'bandwidth_mib_per_s' | 'channels'>,
  mode: MoveMode,
  target: Target,
): MoveLimits {
  const { channels = 1 } = body
  if (channels > 1 && mode !== 'precopy')
    throw fail('invalid', `RAM goes over several connections by pre-copy only, not by ${mode}.`, {
      field: '/channels',
      remedy: '--mode precopy, or leave --channels away',
    })
  return {
    max_stall_ms: body.max_stall_ms ?? STALL_MS,
    may_postcopy: mode !== 'precopy' && target?.postcopy === true,
    ...(body.bandwidth_mib_per_s === undefined ? {} : { bandwidth_bytes_per_s: body.bandwidth_mib_per_s * 2 ** 20 }),
    ...(channels > 1 ? { channels } : {}),
  }
}

/** As many connections as a source asks for, for its target; another mode than pre-copy has one, and so has what can't be (undefined). */
export function channelsOf(mode: MoveMode, { channels = 1 }: Pick<MoveLimits, 'channels'>): number | undefined {
  const fits = mode === 'precopy' && Number.isInteger(channels) && channels > 1 && channels <= CHANNELS_MOST
  return fits ? channels : undefined
}

/** The same, as far as it is known before the target has answered. */
export const foreseenLimits = (limits: MoveLimits, target: Target): MoveLimits => ({
  ...limits,
  may_postcopy: limits.may_postcopy === true && target?.postcopy === true,
})
