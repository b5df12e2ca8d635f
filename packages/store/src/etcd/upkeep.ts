/** Keeps an etcd small: history is forgotten after a while, its file is written anew when it is mostly holes, and a full one is emptied. */
import type { Clock } from '../clock.ts'
import type { EtcdAdmin, EtcdStatus } from './admin.ts'

export type UpkeepPolicy = {
  /** History younger than this stays: watches and cursors of that age can go on. */
  keep_ms: number
  /** But no more revisions than so many. */
  keep_revisions: number
  /** A file larger than this, of which less than `in_use` is used, is written anew. */
  defragment_bytes: number
  in_use: number
  /** Beyond this size it takes no writes. */
  quota_bytes: number
}
/** etcd's own most (https://etcd.io/docs/v3.4/op-guide/maintenance/#space-quota). */
export const QUOTA_BYTES = 2 * 1024 ** 3
export const UPKEEP: UpkeepPolicy = {
  keep_ms: 3_600_000,
  keep_revisions: 50_000,
  defragment_bytes: 64 * 1024 * 1024,
  in_use: 0.5,
  quota_bytes: QUOTA_BYTES,
}

export type Seen = { at_ms: number; revision: number }

/** Pure: the revision before which history may go now; undefined when nothing is old enough. `seen` is in order of time. */
export function compactTo(seen: readonly Seen[], now_ms: number, policy: UpkeepPolicy): number | undefined {
  const newest = seen.at(-1)
  if (!newest) return undefined
  const old = seen.findLast((s) => now_ms - s.at_ms >= policy.keep_ms)?.revision ?? 0
  const many = newest.revision - policy.keep_revisions
  const to = Math.max(old, many)
  return to > 0 ? to : undefined
}

/** Pure: members whose file is worth writing anew, in the order in which it is done: followers first. */
export function toDefragment<S extends Pick<EtcdStatus, 'size_bytes' | 'in_use_bytes' | 'leader'>>(
  members: readonly S[],
  policy: UpkeepPolicy,
): S[] {
  return members
    .filter((m) => m.size_bytes > policy.defragment_bytes && m.in_use_bytes < m.size_bytes * policy.in_use)
    .toSorted((a, b) => Number(a.leader) - Number(b.leader))
}

export type UpkeepReport = {
  compacted?: number
  defragmented: string[]
  disarmed: string[]
  corrupt: string[]
  full: string[]
}

/** One round after the other; whoever calls it sees to it that only one host does. */
export class Upkeep {
  readonly #admin: EtcdAdmin
  readonly #clock: Clock
  readonly #policy: UpkeepPolicy
  readonly #endpoints: () => readonly string[]
  #seen: Seen[] = []
  #compacted = 0

  constructor(o: { admin: EtcdAdmin; clock: Clock; endpoints: () => readonly string[]; policy?: UpkeepPolicy }) {
    this.#admin = o.admin
    this.#clock = o.clock
    this.#endpoints = o.endpoints
    this.#policy = o.policy ?? UPKEEP
  }

  async round(): Promise<UpkeepReport> {
    const report: UpkeepReport = { defragmented: [], disarmed: [], corrupt: [], full: [] }
    const members = await this.#statuses()
    const revision = Math.max(0, ...members.map((m) => m.revision))
    const now = this.#clock.monotonic_ms()
    this.#seen.push({ at_ms: now, revision })
    const alarms = await this.#admin.alarms()
    report.corrupt = alarms.filter((a) => a.alarm === 'CORRUPT').map((a) => a.member)
    const full = alarms.filter((a) => a.alarm === 'NOSPACE')
    // Of a full one everything goes that is not of now.
    const to = full.length > 0 ? revision : compactTo(this.#seen, now, this.#policy)
    if (to !== undefined && to > this.#compacted) {
      await this.#admin.compact(to)
      this.#compacted = to
      report.compacted = to
      const first = this.#seen.findLastIndex((s) => s.revision <= to)
      this.#seen = this.#seen.slice(Math.max(0, first))
    }
    const after = to === undefined ? members : await this.#statuses()
    const due =
      full.length > 0
        ? after.toSorted((a, b) => Number(a.leader) - Number(b.leader))
        : toDefragment(after, this.#policy)
    for (const { endpoint } of due) {
      await this.#admin.defragment(endpoint)
      report.defragmented.push(endpoint)
    }
    if (full.length === 0) return report
    const sizes = await this.#statuses()
    for (const { member, alarm } of full) {
      const size = sizes.find((s) => s.member === member)?.size_bytes ?? 0
      // One that is still nearly full would be so again at once.
      if (size > this.#policy.quota_bytes * 0.9) {
        report.full.push(member)
        continue
      }
      await this.#admin.disarm(member, alarm)
      report.disarmed.push(member)
    }
    return report
  }

  async #statuses(): Promise<(EtcdStatus & { endpoint: string })[]> {
    const all = await Promise.all(
      this.#endpoints().map(async (endpoint) => {
        const status = await this.#admin.status(endpoint)
        return status && { ...status, endpoint }
      }),
    )
    return all.filter((s) => s !== undefined)
  }
}
