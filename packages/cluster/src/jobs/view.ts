/** A job as the API shows it. Pure. */
import type { Job } from '@wadah/api/schema/job'
import type { AnyDefinition } from './define.ts'
import { percentOf } from './progress.ts'
import { hasEnded, type JobRecord } from './record.ts'
import type { Live } from './run.ts'

const iso = (ms: number) => new Date(ms).toISOString()

type ShownStep = Job['steps'][number]

/** `definition` names the steps to come, `live` is what the engine knows beyond the record; both may be missing. */
export function viewJob(record: JobRecord, definition?: AnyDefinition<never>, live?: Live): Job {
  const { id, name, project, subject, target, state } = record
  const steps = record.steps.map((s, i): ShownStep => {
    const undoing = live?.doing === 'undo' && live.step === i && state === 'undoing'
    const undone = s.state === 'done' && (hasEnded(record) ? state !== 'done' : live?.doing === 'undo' && live.step < i)
    const shown = undoing ? 'undoing' : undone ? 'undone' : s.state
    return { name: s.name, state: shown, started_at: iso(s.started_ms), ended_at: iso(s.ended_ms) }
  })
  for (const [i, step] of (definition?.steps ?? []).entries()) {
    if (i < record.steps.length) continue
    const here = live?.step === i
    const working = state === 'running' && here
    const shown = record.failed_step === step.name ? 'failed' : working ? 'running' : 'waiting'
    const percent = working && live?.progress ? Math.round(live.progress.fraction * 1000) / 10 : undefined
    steps.push({ name: step.name, state: shown, ...(percent !== undefined && { percent }) })
  }
  const known = definition ? percentOf(definition, record.steps.length, 0) : 0
  return {
    id,
    kind: name,
    project,
    subject,
    state: state === 'running' && record.cancel_requested ? 'cancelling' : state,
    target,
    percent: state === 'done' ? 100 : Math.max(known, live?.percent ?? 0),
    steps,
    created_at: iso(record.created_ms),
    ...(record.ended_ms !== undefined && { ended_at: iso(record.ended_ms) }),
    ...(record.fault && { fault: record.fault }),
    ...(record.result !== undefined && { result: record.result }),
    ...(record.attention && !hasEnded(record) && { attention: shownAttention(record.attention) }),
  }
}

const shownAttention = ({ step, since_ms, attempts, fault }: NonNullable<JobRecord['attention']>) => ({
  step,
  since: iso(since_ms),
  attempts,
  fault,
})
