/**
 * When to switch. Pure: what was seen of a pre-copy → what QEMU is told next.
 *
 * QEMU stops the guest by itself as soon as what is left could be sent within `downtime-limit` at the speed it has seen
 * (remaining ≤ bandwidth × limit, migration.c: migration_iteration_run). So the limit chooses the moment: it begins small, so that an idle
 * guest stands still as briefly as it can, and is relaxed round by round, never beyond what the ceiling leaves for it. A round whose
 * rest is the least so far, and that would fit, is taken at once.
 */
export type Seen = {
  at_ms: number
  /** Grows whenever QEMU looks anew at what the guest has written. */
  round: number
  remaining_bytes: number
  bandwidth_bytes_per_s: number
}
export type Policy = {
  /** The guest may stand still for this long. */
  max_stall_ms: number
  /** Of it, what devices, messages and the start on the other side take, whatever is left of RAM. */
  fixed_ms: number
  may_postcopy: boolean
  /** A round is short for a small guest: this long at least between two steps. */
  step_ms: number
  /** Rounds at the ceiling without getting nearer before it is given up. */
  patience: number
}
export type Steering = {
  limit_ms: number
  round: number
  /** What each round began with. */
  rests: readonly number[]
  stepped_ms: number
  /** Rounds at the ceiling that were not the best so far. */
  hopeless: number
}
export type Order =
  | { do: 'wait' }
  /** `downtime-limit` from now on. */
  | { do: 'limit'; ms: number }
  | { do: 'postcopy' }
  /** It would need a ceiling of so much. */
  | { do: 'refuse'; needs_ms: number }

const FIRST_MS = 5
const RELAX = 1.5
/** The first pass sends all there is: only from here on a round says how fast the guest writes. */
const FIRST_ROUND = 2

/** What is left of the ceiling for RAM. At least a millisecond: QEMU could else never end. */
export const roomFor = (p: Pick<Policy, 'max_stall_ms' | 'fixed_ms'>): number =>
  Math.max(1, Math.floor(p.max_stall_ms - p.fixed_ms))

export function beginSteering(policy: Policy, at_ms: number): Steering {
  return { limit_ms: Math.min(FIRST_MS, roomFor(policy)), round: 0, rests: [], stepped_ms: at_ms, hopeless: 0 }
}

/** How long the guest would stand still if it were stopped now, ms. */
export function stallOf(remaining_bytes: number, bandwidth_bytes_per_s: number, fixed_ms: number): number {
  return fixed_ms + (bandwidth_bytes_per_s > 0 ? (remaining_bytes / bandwidth_bytes_per_s) * 1000 : 0)
}

export function steer(s: Steering, seen: Seen, policy: Policy): [Steering, Order] {
  if (seen.round <= s.round || seen.round < FIRST_ROUND) return [s, { do: 'wait' }]
  // Small guests begin a round every few milliseconds; what is seen of them now and then stands for all.
  const rests = [...s.rests, seen.remaining_bytes].slice(-32)
  const next = { ...s, round: seen.round, rests }
  if (seen.bandwidth_bytes_per_s <= 0 || seen.at_ms - s.stepped_ms < policy.step_ms) return [next, { do: 'wait' }]
  const cap = roomFor(policy)
  const best = Math.min(...s.rests, Number.POSITIVE_INFINITY)
  const fits_ms = Math.ceil((seen.remaining_bytes / seen.bandwidth_bytes_per_s) * 1000 * 1.1) + 1
  const isBest = seen.remaining_bytes <= best
  if (isBest && s.rests.length > 0 && fits_ms <= cap && fits_ms > s.limit_ms)
    return [
      { ...next, limit_ms: fits_ms, stepped_ms: seen.at_ms },
      { do: 'limit', ms: fits_ms },
    ]
  if (s.limit_ms < cap) {
    const limit_ms = Math.min(cap, Math.max(s.limit_ms + 1, Math.round(s.limit_ms * RELAX)))
    return [
      { ...next, limit_ms, stepped_ms: seen.at_ms },
      { do: 'limit', ms: limit_ms },
    ]
  }
  // At the ceiling: as long as it gets nearer there is hope.
  const nearer = seen.remaining_bytes < best * 0.9
  const hopeless = nearer ? 0 : s.hopeless + 1
  const last = { ...next, hopeless, stepped_ms: seen.at_ms }
  if (hopeless < policy.patience) return [last, { do: 'wait' }]
  if (policy.may_postcopy) return [last, { do: 'postcopy' }]
  const rest = Math.min(best, seen.remaining_bytes)
  const needs = Math.ceil(stallOf(rest, seen.bandwidth_bytes_per_s, policy.fixed_ms) * 1.1)
  return [last, { do: 'refuse', needs_ms: Math.max(needs, policy.max_stall_ms + 1) }]
}
