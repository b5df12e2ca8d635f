/** What to do with a job that is found in the store. Pure. */
import type { AnyDefinition } from './define.ts'
import { hasEnded, type JobRecord } from './record.ts'

export type Plan =
  /** Carry on with step `at`; the number of steps: only the end is missing. */
  | { kind: 'continue'; at: number }
  /** Undo steps `from` … 0, then end so. The one at `from` may be half done. */
  | { kind: 'undo'; from: number; outcome: 'failed' | 'cancelled'; begun: boolean }
  | { kind: 'leave'; why: 'ended' | 'other-host' | 'unknown-definition' }

/**
 * Steps before `at` have ended. Step `at` may have begun, and may even be done: its end was not committed.
 * So a pivot that is next counts as passed, and the job goes forward.
 */
export function planJob(record: JobRecord, definition: AnyDefinition<never> | undefined, host: string): Plan {
  if (hasEnded(record)) return { kind: 'leave', why: 'ended' }
  if (record.executor.host !== host) return { kind: 'leave', why: 'other-host' }
  if (!definition || !fits(record, definition)) return { kind: 'leave', why: 'unknown-definition' }
  const at = record.steps.length
  const from = Math.min(at, definition.steps.length - 1)
  if (record.state === 'undoing') return { kind: 'undo', from, outcome: record.outcome ?? 'failed', begun: true }
  // A cancel is only accepted while the pivot has not begun, and then it never begins.
  if (record.cancel_requested) return { kind: 'undo', from, outcome: 'cancelled', begun: false }
  if (definition.onCrash === 'undo' && at < definition.pivotAt) {
    return { kind: 'undo', from, outcome: 'failed', begun: false }
  }
  return { kind: 'continue', at }
}

function fits(record: JobRecord, d: AnyDefinition<never>): boolean {
  return (
    record.name === d.name &&
    record.version === d.version &&
    record.steps.length <= d.steps.length &&
    record.steps.every((s, i) => s.name === d.steps[i]?.name)
  )
}

/** Delay before try number `attempt` + 1, ms: doubles from `base_ms` to `cap_ms`, spread over ± 20 % by `random` (0 … 1). */
export function backoff(attempt: number, base_ms: number, cap_ms: number, random: number): number {
  const full = Math.min(cap_ms, base_ms * 2 ** Math.min(attempt - 1, 30))
  return Math.round(full * (0.8 + 0.4 * random))
}
