/** Submitting a job the way every service does it, and giving back what was held for it once the view shows it. */
import type { Job } from '@wadah/api/schema/job'
import type { Check, Write } from '@wadah/store/store'
import { type Deps, indexConflict } from './context.ts'
import type { JobDefinition, Target } from './jobs/define.ts'
import type { JobEngine } from './jobs/engine.ts'
import { subjectOf } from './jobs/service.ts'
import { jobKind } from './jobs/record.ts'
import { viewJob } from './jobs/view.ts'
import type { Caller } from './services.ts'

export async function submit<P>(
  deps: Deps,
  engine: JobEngine<Deps>,
  caller: Caller,
  definition: JobDefinition<P, Deps>,
  params: P,
  target: Target,
  extra: { checks?: readonly Check[]; writes?: readonly Write[]; release?: () => void } = {},
): Promise<Job> {
  const release = extra.release ?? (() => undefined)
  try {
    const record = await engine.submit(definition, params, {
      subject: subjectOf(caller),
      target,
      project: caller.project,
      idempotencyKey: caller.idempotency?.key,
      idempotencyDigest: caller.idempotency?.digest,
      extraChecks: extra.checks ?? [],
      extraWrites: extra.writes ?? [],
      onConflict: (failed) => indexConflict((failed[0] as { check: Check }).check).fault,
    })
    void seen(deps, record.id).finally(release)
    return viewJob(record, engine.definitionOf(record) as never, engine.live(record.id))
  } catch (error) {
    release()
    throw error
  }
}

/** Resolves when the view shows the job (and so all that was committed with it), or after a while in any case. */
async function seen(deps: Deps, job: string): Promise<void> {
  if (deps.view.get(jobKind, job)) return
  await new Promise<void>((resolve) => {
    const end = () => {
      off()
      clearTimeout(timer)
      resolve()
    }
    const timer = setTimeout(end, 10_000).unref()
    const off = deps.view.subscribe(() => {
      if (deps.view.get(jobKind, job)) end()
    })
  })
}
