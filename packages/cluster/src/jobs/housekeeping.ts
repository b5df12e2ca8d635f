/** What is tidied at start-up and now and then. */
import {
  type Check,
  del,
  type Kind,
  LIST_LIMIT_MAX,
  type Rec,
  type Store,
  unchanged,
  type Write,
} from '@wadah/store/store'
import { logPath, removeJobLog } from './log.ts'
import { claimKind, hasEnded, idempotencyKind, type JobRecord, jobKind } from './record.ts'

/** Every record of a kind, each once; begins again where the store forgot the revision it was reading at. */
export async function* allOf<T>(store: Store, kind: Kind<T>): AsyncGenerator<Rec<T>> {
  const seen = new Set<string>()
  let cursor: string | undefined
  for (;;) {
    const page = await store.list(kind, { limit: LIST_LIMIT_MAX, ...(cursor && { cursor }) })
    if (page.type === 'page') {
      for (const rec of page.items) {
        if (seen.has(rec.id)) continue
        seen.add(rec.id)
        yield rec
      }
      if (!page.cursor) return
    }
    cursor = page.type === 'page' ? page.cursor : undefined
  }
}

/** Claims whose job has ended or does not exist: none should be, and none may stay. @returns their keys */
export async function dropOrphanClaims(store: Store, token: () => string): Promise<string[]> {
  const dropped: string[] = []
  for await (const claim of allOf(store, claimKind)) {
    const job = await store.get(jobKind, claim.value.job)
    if (job && !hasEnded(job.value)) continue
    const outcome = await store.txn([unchanged(claim)], [del(claimKind, claim.id)], token())
    if (outcome.ok) dropped.push(claim.id)
  }
  return dropped
}

export type PruneOptions = {
  store: Store
  token: () => string
  /** Only jobs this host carried out: their logs lie here. */
  hostId: string
  logDir: string
  now_ms: number
  keep_ms: number
  keepJobs: number
  /** What is kept of a job that goes: committed with it, or not at all. */
  remember?: Remember
}
export type Remember = (job: JobRecord) => Promise<{ checks: Check[]; writes: Write[] }>

/** Pure: which ended jobs go. */
export function toPrune(ended: readonly Rec<JobRecord>[], o: Pick<PruneOptions, 'now_ms' | 'keep_ms' | 'keepJobs'>) {
  const newestFirst = [...ended].sort((a, b) => (b.value.ended_ms ?? 0) - (a.value.ended_ms ?? 0))
  return newestFirst.filter((rec, i) => i >= o.keepJobs || (rec.value.ended_ms ?? 0) < o.now_ms - o.keep_ms)
}

/** @returns the ids of the jobs that were dropped, with their logs */
export async function pruneJobs(o: PruneOptions): Promise<string[]> {
  const ended: Rec<JobRecord>[] = []
  for await (const rec of allOf(o.store, jobKind)) {
    if (hasEnded(rec.value) && rec.value.executor.host === o.hostId) ended.push(rec)
  }
  const dropped: string[] = []
  for (const rec of toPrune(ended, o)) {
    const { idempotency } = rec.value
    const more = (await o.remember?.(rec.value)) ?? { checks: [], writes: [] }
    const gone = [del(jobKind, rec.id), ...(idempotency ? [del(idempotencyKind, idempotency.key)] : [])]
    if (!(await o.store.txn([unchanged(rec), ...more.checks], [...gone, ...more.writes], o.token())).ok) continue
    await removeJobLog(logPath(o.logDir, rec.id))
    dropped.push(rec.id)
  }
  return dropped
}
