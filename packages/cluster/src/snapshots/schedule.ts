/** When the next snapshot is due, and which of the schedule's own may go. Pure; and the loop that goes by it. */
import { WadahError } from '@wadah/api/fault'
import type { SnapshotSchedule } from '@wadah/api/schema/snapshot'
import type { Deps } from '../context.ts'
import { systemCaller } from '../host/children.ts'
import { claimKind } from '../jobs/record.ts'
import { placementKind, statusKind, vmKind } from '../records.ts'
import type { SnapshotStore } from './service.ts'

const MINUTE_MS = 60_000
const DAY_MS = 24 * 60 * MINUTE_MS
const LOOK_MS = 30_000
const TIDY_MS = 60 * MINUTE_MS

export type Taken = { id: string; at_ms: number }

/** The clock may have been set back: what lies in the future counts by how far it lies away. */
export function isDue(schedule: SnapshotSchedule, taken: readonly Taken[], now_ms: number): boolean {
  const since = taken.map((t) => Math.abs(now_ms - t.at_ms))
  return Math.min(...since) >= schedule.every_minutes * MINUTE_MS
}

/** Those that no rule keeps. The newest is always kept. */
export function expired(schedule: SnapshotSchedule, taken: readonly Taken[]): string[] {
  const newest = [...taken].sort((a, b) => b.at_ms - a.at_ms)
  const kept = new Set(newest.slice(0, schedule.keep_last).map((t) => t.id))
  const keep = (most: number, span: (ms: number) => number) => {
    const spans = new Set<number>()
    for (const t of newest) {
      if (spans.size >= most) return
      if (spans.has(span(t.at_ms))) continue
      spans.add(span(t.at_ms))
      kept.add(t.id)
    }
  }
  keep(schedule.keep_daily ?? 0, (ms) => Math.floor(ms / DAY_MS))
  // The first day of 1970 was a Thursday.
  keep(schedule.keep_weekly ?? 0, (ms) => Math.floor((ms / DAY_MS + 3) / 7))
  return newest.filter((t) => !kept.has(t.id)).map((t) => t.id)
}

/** `auto-20261126-0300`, UTC. */
export function scheduledName(now_ms: number): string {
  return `auto-${new Date(now_ms).toISOString().slice(0, 16).replaceAll(/[-:]/g, '').replace('T', '-')}`
}

/** Looks now and then, until it is told to stop. One thing at a time for each VM; what can't be done now is tried at the next look. */
export function keepSchedules(deps: Deps, snapshots: SnapshotStore): () => void {
  let cancel: (() => void) | undefined
  let stopped = false
  let tidied_ms = Number.NEGATIVE_INFINITY
  const again = () => {
    if (!stopped) cancel = deps.clock.timer(() => void look().finally(again), LOOK_MS)
  }
  const look = async () => {
    // What an earlier job could not merge, for want of room say.
    if (deps.clock.monotonic_ms() - tidied_ms >= TIDY_MS) {
      tidied_ms = deps.clock.monotonic_ms()
      for (const { id, value } of deps.view.list(vmKind))
        if (deps.view.get(placementKind, id)?.value.host === deps.hostId)
          await snapshots
            .tidy(systemCaller(), id)
            .catch((error: unknown) => deps.log(`layers of ${value.name}: ${(error as Error).message}`))
    }
    for (const { id, value } of deps.view.list(vmKind)) {
      if (!value.snapshot_schedule || deps.view.get(placementKind, id)?.value.host !== deps.hostId) continue
      await onSchedule(deps, snapshots, id, value.snapshot_schedule).catch((error: unknown) =>
        deps.log(`snapshots of ${value.name}: ${(error as Error).message}`),
      )
    }
  }
  again()
  return () => {
    stopped = true
    cancel?.()
  }
}

export async function onSchedule(
  deps: Deps,
  snapshots: SnapshotStore,
  vm: string,
  schedule: SnapshotSchedule,
): Promise<void> {
  // A job at work: at the next look.
  if (deps.view.get(claimKind, `vm/${vm}`)) return
  const status = deps.view.get(statusKind, vm)?.value
  if (!status || !['running', 'paused', 'stopped'].includes(status.state)) return
  const all = snapshots.of(vm).map((s) => s.value)
  const own = all.filter((s) => s.scheduled && s.state === 'ready')
  const taken = own.map((s) => ({ id: s.id, at_ms: Date.parse(s.created_at) }))
  const now = deps.clock.now_ms()
  // One that is off does not change: once is enough.
  const changed = status.state !== 'stopped' || !taken.some((t) => t.at_ms >= status.since_ms)
  try {
    if (changed && isDue(schedule, taken, now)) {
      const ram = (schedule.ram ?? false) && status.state !== 'stopped'
      await snapshots.create(systemCaller(), vm, { name: scheduledName(now), ram }, true)
      return
    }
    const [oldest] = expired(schedule, taken).reverse()
    if (oldest !== undefined) await snapshots.delete(systemCaller(), vm, oldest)
  } catch (error) {
    if (!(error instanceof WadahError) || !['busy', 'conflict', 'name_taken'].includes(error.fault.code)) throw error
  }
}
