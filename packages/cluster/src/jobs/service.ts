/** Jobs as the API shows them: from the view, with what only the engine knows of those that run here. */
import { fail, fault } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { CachedView } from '@wadah/store/cache'
import { readCursor } from '../context.ts'
import type { Caller, JobProgress, JobService, ListQuery, PageOf } from '../services.ts'
import type { JobEngine } from './engine.ts'
import { type JobRecord, hasEnded, jobKind } from './record.ts'
import type { Live } from './run.ts'
import { viewJob } from './view.ts'
import { hostKind } from '../records.ts'
import { aliveKind } from '../members/records.ts'

const hostSilent = (name: string) =>
  fault('unreachable', `${name}, which carries it out, gives no sign of life: the job goes on when it is back.`, {
    effect: 'unknown',
    remedy: `switch ${name} on; if it is off and lost for ever: wadah cluster remove ${name} --lost`,
  })

export class Jobs<D> implements JobService {
  readonly #view: CachedView
  readonly #engine: JobEngine<D>

  readonly #hostId: string

  constructor(view: CachedView, engine: JobEngine<D>, hostId: string) {
    this.#view = view
    this.#engine = engine
    this.#hostId = hostId
  }

  #show(record: JobRecord): Job {
    const job = viewJob(record, this.#engine.definitionOf(record) as never, this.#engine.live(record.id))
    const silent = this.#silentHost(record)
    if (silent === undefined || job.attention) return job
    const step = job.steps.find((s) => s.state !== 'done')?.name ?? ''
    return { ...job, attention: { step, since: job.created_at, attempts: 0, fault: hostSilent(silent) } }
  }

  /** The name of the host that carries it out, where that gives no sign of life: nobody else may go on with it. */
  #silentHost(record: JobRecord): string | undefined {
    const { host } = record.executor
    if (hasEnded(record) || host === this.#hostId || this.#view.get(aliveKind, host)) return undefined
    return this.#view.get(hostKind, host)?.value.name
  }

  list(caller: Caller, q: ListQuery & { state?: Job['state']; target?: string }): PageOf<Job> {
    const matching = this.#view
      .list(jobKind)
      .map((rec) => rec.value)
      .filter(
        (job) =>
          job.project === caller.project &&
          (q.target === undefined || job.target.id === q.target || job.target.name === q.target),
      )
      .sort((a, b) => b.created_ms - a.created_ms || (a.id < b.id ? -1 : 1))
    const shown = matching
      .map((job) => [job, this.#show(job)] as const)
      .filter(([, job]) => q.state === undefined || job.state === q.state)
    let from = 0
    if (q.cursor !== undefined) {
      const at = readCursor(q.cursor)
      from = shown.findIndex(([job]) => cursorOf(job) > at)
      if (from < 0) from = shown.length
    }
    const part = shown.slice(from, from + (q.limit ?? 100))
    const last = part.at(-1)?.[0]
    const items = part.map(([, job]) => job)
    return from + part.length < shown.length && last
      ? { items, next: Buffer.from(cursorOf(last)).toString('base64url') }
      : { items }
  }

  #record(caller: Caller, id: string): JobRecord {
    const record = this.#view.get(jobKind, id)?.value
    if (!record || record.project !== caller.project)
      throw fail('not_found', `There is no job "${id}".`, { remedy: 'wadah job list' })
    return record
  }

  get(caller: Caller, id: string): Job {
    return this.#show(this.#record(caller, id))
  }

  async wait(caller: Caller, id: string, wait_s: number, signal: AbortSignal): Promise<Job> {
    // A job that was just made may not have reached the view; the engine knows it.
    const record = (await this.#engine.get(id)) ?? this.#record(caller, id)
    if (record.project !== caller.project)
      throw fail('not_found', `There is no job "${id}".`, { remedy: 'wadah job list' })
    if (hasEnded(record) || wait_s === 0) return this.#show(record)
    return this.#show(await this.#engine.wait(id, { timeout_ms: wait_s * 1000, signal }))
  }

  async log(caller: Caller, id: string, from: number): Promise<{ lines: string[]; next: number; ended: boolean }> {
    const record = (await this.#engine.get(id)) ?? this.#record(caller, id)
    const { lines, next } = await this.#engine.readLog(id, { from, limit: 1000 })
    return { lines: lines.map((l) => `${new Date(l.at_ms).toISOString()} ${l.text}`), next, ended: hasEnded(record) }
  }

  async cancel(caller: Caller, id: string): Promise<Job> {
    if (!(await this.#engine.get(id))) this.#record(caller, id)
    await this.#engine.cancel(id)
    const record = await this.#engine.get(id)
    return record ? this.#show(record) : this.get(caller, id)
  }

  async replay(caller: Caller): Promise<Job | undefined> {
    const { idempotency } = caller
    if (!idempotency) return undefined
    const record = await this.#engine.replay(subjectOf(caller), idempotency.key, idempotency.digest)
    return record && this.#show(record)
  }

  subscribe(listener: (progress: JobProgress) => void): () => void {
    return this.#engine.subscribe((event) => {
      if (event.type === 'progress') listener(this.#progressOf(event.job, event.live))
    })
  }

  underWay(): JobProgress[] {
    return this.#engine.running().map(({ id, live }) => this.#progressOf(id, live))
  }

  #progressOf(job: string, live: Live): JobProgress {
    const record = this.#view.get(jobKind, job)?.value
    const step = record && this.#engine.definitionOf(record)?.steps[live.step]?.name
    return { job, step: step ?? '', percent: live.percent }
  }
}

/** How a job names who asked for it. */
export function subjectOf({ subject }: Caller): string {
  return `${subject.kind}:${subject.name}`
}

/** Newest first: the cursor grows as time goes back. */
function cursorOf(job: JobRecord): string {
  return `${String(10 ** 15 - job.created_ms).padStart(16, '0')}/${job.id}`
}
