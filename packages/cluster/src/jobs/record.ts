/** What the store keeps of a job. */
import type { Fault } from '@wadah/api/fault'
import type { Kind } from '@wadah/store/store'
import type { Target } from './define.ts'

/** `undoing` and `running` go on by themselves; the others are ends. */
export type JobRecordState = 'running' | 'undoing' | 'done' | 'failed' | 'cancelled'

export type StepRecord = {
  name: string
  state: 'done' | 'skipped'
  output?: unknown
  started_ms: number
  ended_ms: number
  /** After the pivot: the fault that was passed over by `resolve`. */
  warning?: Fault
}

export type JobRecord = {
  schema: 1
  id: string
  /** Name of the definition: `vm.create`. */
  name: string
  version: number
  project: string
  subject: string
  target: Target
  params: unknown
  state: JobRecordState
  /** Which host carries it out. `fence` grows with every take-over; an executor with an older one can commit nothing. */
  executor: { host: string; fence: number }
  /** Steps that have ended, in order. What was in flight at a crash is not here. */
  steps: StepRecord[]
  /** Set together with `undoing`: how it will end once undone. */
  outcome?: 'failed' | 'cancelled'
  cancel_requested?: boolean
  /** The step that failed, while undoing and afterwards. */
  failed_step?: string
  fault?: Fault
  result?: unknown
  /** It goes on by itself, but somebody should know: an undo or a step past the pivot keeps failing. */
  attention?: { step: string; since_ms: number; attempts: number; fault: Fault }
  claims: string[]
  idempotency?: { key: string; hash: string }
  created_ms: number
  ended_ms?: number
}

export const jobKind: Kind<JobRecord> = { name: 'job' }

/** One per claimed key, while its job runs. */
export type ClaimRecord = { schema: 1; job: string; name: string; since_ms: number }
export const claimKind: Kind<ClaimRecord> = { name: 'job/claim' }

/** `<subject>:<key>` → the job it made; pruned with the job. */
export type IdempotencyRecord = { schema: 1; job: string; hash: string }
export const idempotencyKind: Kind<IdempotencyRecord> = { name: 'job/idempotency' }

export function hasEnded(record: { state: JobRecordState }): boolean {
  return record.state === 'done' || record.state === 'failed' || record.state === 'cancelled'
}
