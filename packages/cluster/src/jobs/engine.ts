/** Takes jobs, carries them out, and after a restart carries on with those that were cut off. See docs/jobs.md. */
import { createHash } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { type Fault, fault, WadahError } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import { type Clock, sleep, systemClock } from '@wadah/store/clock'
import { StoreError } from '@wadah/store/errors'
import {
  absent,
  type Check,
  type Committed,
  type Conflict,
  type Kind,
  put,
  type Rec,
  type Store,
  type Write,
} from '@wadah/store/store'
import type { AnyDefinition, JobDefinition, Target } from './define.ts'
import { storeFault } from './faults.ts'
import { allOf, dropOrphanClaims, pruneJobs, type Remember } from './housekeeping.ts'
import { Lanes } from './lanes.ts'
import { JobLog, type LogLine, logPath, readJobLog } from './log.ts'
import { type Plan, planJob } from './plan.ts'
import {
  type ClaimRecord,
  claimKind,
  hasEnded,
  type IdempotencyRecord,
  idempotencyKind,
  type JobRecord,
  jobKind,
} from './record.ts'
import { JobRun, type Live, type Patience } from './run.ts'

export type EngineOptions<D> = {
  store: Store
  /** This host: the executor of what is submitted here. */
  hostId: string
  definitions: readonly AnyDefinition<D>[]
  /** Services the steps use. */
  deps: D
  /** Folder of the job logs; made if missing. */
  logDir: string
  clock?: Clock
  /** 0 … 1, for the spread of delays. */
  random?: () => number
  randomBytes: (n: number) => Uint8Array
  /** How many jobs of a lane run at once; lanes not named here: `concurrency`. */
  lanes?: Record<string, number>
  concurrency?: number
  /** Bytes of one job's log, default 1 MiB. */
  logBytes?: number
  /** Ended jobs are kept this long (default 30 days) and at most so many (default 5,000). */
  keep_ms?: number
  keepJobs?: number
  patience?: Patience
  /** What is kept of a job that is forgotten. */
  remember?: Remember
  /** Mistakes of ours and trouble the engine gets over: for the daemon's log. */
  onUnforeseen?: (error: unknown, where: string) => void
}

export type SubmitOptions = {
  subject: string
  target: Target
  project?: string
  /** The same key, subject and parameters give the same job again instead of a second one. */
  idempotencyKey?: string | undefined
  /** What the key stands for, when the parameters also hold what was drawn anew for this call (ids). Default: the parameters. */
  idempotencyDigest?: string | undefined
  /** Committed together with the job, or not at all. */
  extraWrites?: readonly Write[]
  extraChecks?: readonly Check[]
  /** Names the fault when one of `extraChecks` fails; default `conflict`. */
  onConflict?: (failed: Conflict['failed']) => Fault
}

/** Volatile unless `state`, which also stands in the store. */
export type JobEvent =
  | { type: 'state'; job: JobRecord }
  | { type: 'progress'; job: string; live: Live }
  | ({ type: 'log'; job: string } & LogLine)

export type ResumeReport = { resumed: string[]; left: { id: string; why: string }[]; claimsDropped: string[] }

const PATIENCE: Patience = {
  retry: { attempts: 0, base_ms: 1000, cap_ms: 60_000 },
  slow: { attempts: 0, base_ms: 30_000, cap_ms: 600_000 },
}
const PRUNE_EVERY = 200
const CLAIMS_MAX = 60
const KEY_USED = 'This idempotency key was used before for another request. Use a new key for a new request.'

export class JobEngine<D> {
  #o: Required<Omit<EngineOptions<D>, 'lanes' | 'concurrency' | 'definitions'>>
  #definitions = new Map<string, AnyDefinition<D>>()
  #lanes: Lanes
  #runs = new Map<string, JobRun<D>>()
  #logs = new Map<string, JobLog>()
  #listeners = new Set<(event: JobEvent) => void>()
  #stopping = false
  #ended = 0
  #pruning: Promise<unknown> = Promise.resolve()

  constructor(o: EngineOptions<D>) {
    const { lanes = {}, concurrency = 64, definitions, ...rest } = o
    this.#o = {
      clock: systemClock,
      random: Math.random,
      logBytes: 1024 * 1024,
      keep_ms: 30 * 86_400_000,
      keepJobs: 5000,
      patience: PATIENCE,
      onUnforeseen: () => undefined,
      remember: async () => ({ checks: [], writes: [] }),
      ...rest,
    }
    this.#lanes = new Lanes(lanes, concurrency)
    for (const d of definitions) {
      const key = `${d.name}@${d.version}`
      if (this.#definitions.has(key)) throw new TypeError(`job ${key} is defined twice`)
      this.#definitions.set(key, d)
    }
    mkdirSync(o.logDir, { recursive: true, mode: 0o700 })
  }

  definitionOf(job: { name: string; version: number }): AnyDefinition<D> | undefined {
    return this.#definitions.get(`${job.name}@${job.version}`)
  }

  /**
   * Commits the job, its claims and `extraWrites` in one transaction, then begins it.
   * @returns the job; the earlier one when the idempotency key was used before
   * @throws WadahError `busy` (another job holds a claim), `idempotency_mismatch`, `conflict` or what `onConflict` says,
   *   `unavailable` (stopping), what `definition.parse` throws, failures of the store
   */
  async submit<P>(definition: JobDefinition<P, D>, params: P, options: SubmitOptions): Promise<JobRecord> {
    if (this.#stopping) throw new WadahError(fault('unavailable', 'Wadah is stopping and takes no new jobs.'))
    if (this.definitionOf(definition) !== definition) throw new TypeError(`job ${definition.name} is not registered`)
    const { clock, hostId, randomBytes } = this.#o
    const { subject, target, project = 'default', idempotencyKey, extraWrites = [], extraChecks = [] } = options
    const parsed = definition.parse(params)
    const claims = [...new Set(definition.claims?.(parsed, target) ?? [])]
    if (claims.length > CLAIMS_MAX) throw new TypeError(`job ${definition.name} claims more than ${CLAIMS_MAX} keys`)
    const now = clock.now_ms()
    const asked = options.idempotencyDigest ?? { name: definition.name, params: parsed }
    const idempotency = idempotencyKey === undefined ? undefined : keyAndHash(subject, idempotencyKey, asked)
    const record: JobRecord = {
      schema: 1,
      id: newId('job', randomBytes),
      name: definition.name,
      version: definition.version,
      project,
      subject,
      target,
      params: parsed,
      state: 'running',
      executor: { host: hostId, fence: 1 },
      steps: [],
      claims,
      ...(idempotency && { idempotency }),
      created_ms: now,
    }
    const claim: ClaimRecord = { schema: 1, job: record.id, name: record.name, since_ms: now }
    const checks: Check[] = [absent(jobKind, record.id), ...claims.map((key) => absent(claimKind, key))]
    const writes: Write[] = [put(jobKind, record.id, record), ...claims.map((key) => put(claimKind, key, claim))]
    if (idempotency) {
      checks.push(absent(idempotencyKind, idempotency.key))
      const note: IdempotencyRecord = { schema: 1, job: record.id, hash: idempotency.hash }
      writes.push(put(idempotencyKind, idempotency.key, note))
    }
    const outcome = await this.#txn([...checks, ...extraChecks], [...writes, ...extraWrites])
    if (!outcome.ok) return this.#refused(outcome, idempotency, options)
    this.#emit({ type: 'state', job: record })
    this.#begin(record, outcome.revision, { kind: 'continue', at: 0 }, definition, parsed)
    return record
  }

  /**
   * The job that this key made before; undefined when it made none. Asked before a request is judged anew: what the first one did is
   * in its way. @throws WadahError `idempotency_mismatch`
   */
  async replay(subject: string, key: string, digest: string): Promise<JobRecord | undefined> {
    const wanted = keyAndHash(subject, key, digest)
    const note = (await this.#o.store.get(idempotencyKind, wanted.key))?.value
    if (!note) return undefined
    if (note.hash !== wanted.hash) throw new WadahError(fault('idempotency_mismatch', KEY_USED))
    return await this.get(note.job)
  }

  async #refused(
    { failed }: Conflict,
    idempotency: { key: string; hash: string } | undefined,
    options: SubmitOptions,
  ): Promise<JobRecord> {
    const used = failed.find((f) => f.check.kind === idempotencyKind.name && f.check.id === idempotency?.key)
    if (used) {
      const note = (used.current as Rec<IdempotencyRecord>).value
      const before = note.hash === idempotency?.hash ? await this.get(note.job) : undefined
      if (before) return before
      throw new WadahError(fault('idempotency_mismatch', KEY_USED))
    }
    const held = failed.find((f) => f.check.kind === claimKind.name)
    if (held) {
      const { job, name } = (held.current as Rec<ClaimRecord>).value
      const who = options.target.name ?? options.target.id
      throw new WadahError(
        fault(
          'busy',
          `${options.target.kind} ${who} cannot be used now: the job ${job} (${name}) is at work on ${held.check.id}.`,
          {
            remedy: `wadah job wait ${job}`,
          },
        ),
      )
    }
    const what = failed.map((f) => `${f.check.kind} ${f.check.id}`).join(', ')
    throw new WadahError(
      options.onConflict?.(failed) ??
        fault('conflict', `Changed by somebody else meanwhile: ${what}. Look at it and try again.`),
    )
  }

  /** A transaction repeated with its token while its outcome is unknown. */
  async #txn(checks: readonly Check[], writes: readonly Write[]): Promise<Committed | Conflict> {
    const token = this.#token()
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#o.store.txn(checks, writes, token)
      } catch (error) {
        if (!(error instanceof StoreError)) throw error
        if (error.effect !== 'unknown' || attempt === 3) throw new WadahError(storeFault(error), error)
        await sleep(this.#o.clock, 100 * attempt)
      }
    }
  }

  #token(): string {
    return Buffer.from(this.#o.randomBytes(18)).toString('base64url')
  }

  #begin(
    record: JobRecord,
    modified: number,
    plan: Exclude<Plan, { kind: 'leave' }>,
    definition: AnyDefinition<D>,
    params: unknown,
  ): void {
    const { store, clock, random, deps, patience, onUnforeseen } = this.#o
    const { id } = record
    const run = new JobRun<D>(
      {
        store,
        clock,
        random,
        token: () => this.#token(),
        deps,
        definition,
        params,
        log: this.#log(id),
        lanes: this.#lanes,
        patience,
        onRecord: (job) => this.#emit({ type: 'state', job }),
        onProgress: (live) => this.#emit({ type: 'progress', job: id, live: { ...live } }),
        onUnforeseen,
      },
      record,
      modified,
      plan,
    )
    this.#runs.set(id, run)
    void run.ended.then((last) => {
      this.#runs.delete(id)
      this.#logs.delete(id)
      if (last && !this.#stopping) this.#pruneNowAndThen()
    })
  }

  #log(id: string): JobLog {
    let log = this.#logs.get(id)
    if (!log) {
      const { logDir, logBytes, clock } = this.#o
      log = new JobLog({
        path: logPath(logDir, id),
        bytesMax: logBytes,
        now_ms: () => clock.now_ms(),
        onLine: (line) => this.#emit({ type: 'log', job: id, ...line }),
      })
      this.#logs.set(id, log)
    }
    return log
  }

  #emit(event: JobEvent): void {
    for (const listener of this.#listeners) {
      try {
        listener(event)
      } catch (error) {
        this.#o.onUnforeseen(error, 'listener of jobs')
      }
    }
  }

  /** Every event of the jobs this engine carries out. Returns the way to end it. */
  subscribe(listener: (event: JobEvent) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async get(id: string): Promise<JobRecord | undefined> {
    const run = this.#runs.get(id)
    if (run) return run.record
    return (await this.#read(jobKind, id))?.value
  }

  async #read<T>(kind: Kind<T>, id: string): Promise<Rec<T> | undefined> {
    try {
      return await this.#o.store.get(kind, id)
    } catch (error) {
      if (error instanceof StoreError && error.kind === 'invalid') return undefined
      throw error instanceof StoreError ? new WadahError(storeFault(error), error) : error
    }
  }

  /** What a job is doing right now; undefined when it is not carried out here. */
  live(id: string): Live | undefined {
    return this.#runs.get(id)?.live
  }

  /** All that are carried out here, with what each is doing. */
  running(): { id: string; live: Live }[] {
    return [...this.#runs].map(([id, run]) => ({ id, live: run.live }))
  }

  async #found(id: string): Promise<JobRecord> {
    const record = await this.get(id)
    if (record) return record
    throw new WadahError(fault('not_found', `There is no job ${id}.`, { remedy: 'wadah job list' }))
  }

  /**
   * Asks a job to stop and undo; resolves once that is committed, not once it is undone (`wait`). Asking again is no error.
   * @throws WadahError `too_late` past the pivot, `wrong_state` when it has ended otherwise, `not_owner`, `not_found`
   */
  async cancel(id: string): Promise<void> {
    const run = this.#runs.get(id)
    if (run) return run.cancel()
    const { state } = await this.#found(id)
    if (state === 'cancelled') return
    if (state === 'done' || state === 'failed') {
      throw new WadahError(fault('wrong_state', `The job ${id} has ended already: ${state}.`))
    }
    throw new WadahError(fault('not_owner', `The job ${id} is not carried out by this daemon.`))
  }

  /** The job once it has ended, or as it is after `timeout_ms`. @throws WadahError `not_found`; the signal's reason */
  async wait(id: string, o: { timeout_ms: number; signal?: AbortSignal }): Promise<JobRecord> {
    const run = this.#runs.get(id)
    if (!run) return this.#found(id)
    const over = new AbortController()
    const signal = o.signal ? AbortSignal.any([over.signal, o.signal]) : over.signal
    const late = sleep(this.#o.clock, o.timeout_ms, signal)
    try {
      await Promise.race([run.ended, late])
      return run.record
    } finally {
      late.catch(() => undefined)
      over.abort()
    }
  }

  /** Call once at start-up: jobs of this host that have not ended are carried on or undone; claims of no job are dropped. */
  async resume(): Promise<ResumeReport> {
    const report: ResumeReport = { resumed: [], left: [], claimsDropped: [] }
    for await (const { id, value, modified } of allOf(this.#o.store, jobKind)) {
      if (this.#runs.has(id)) continue
      const definition = this.definitionOf(value)
      const plan = planJob(value, definition as AnyDefinition<never> | undefined, this.#o.hostId)
      if (plan.kind === 'leave') {
        if (plan.why !== 'ended') report.left.push({ id, why: plan.why })
        continue
      }
      if (!definition) continue
      try {
        const params = definition.parse(value.params)
        this.#log(id).add(plan.kind === 'undo' ? 'resumed: undoing' : 'resumed')
        this.#begin(value, modified, plan, definition, params)
        report.resumed.push(id)
      } catch (error) {
        this.#o.onUnforeseen(error, `parameters of job ${id}`)
        report.left.push({ id, why: 'unreadable-parameters' })
      }
    }
    report.claimsDropped = await dropOrphanClaims(this.#o.store, () => this.#token())
    return report
  }

  /** Lines of a job's log; the jobs of other hosts have theirs there. */
  async readLog(
    id: string,
    q: { from: number; limit: number },
  ): Promise<{ lines: LogLine[]; next: number; ended: boolean }> {
    const record = await this.#found(id)
    await this.#logs.get(id)?.flush()
    return { ...(await readJobLog(logPath(this.#o.logDir, id), q)), ended: hasEnded(record) }
  }

  #pruneNowAndThen(): void {
    this.#ended += 1
    if (this.#ended % PRUNE_EVERY !== 0) return
    this.#pruning = this.prune().catch((error: unknown) => this.#o.onUnforeseen(error, 'pruning of jobs'))
  }

  /** Drops ended jobs that are too old or too many, with their logs. @returns their ids */
  prune(): Promise<string[]> {
    const { store, clock, keep_ms, keepJobs, logDir, hostId, remember } = this.#o
    return pruneJobs({
      store,
      token: () => this.#token(),
      hostId,
      logDir,
      now_ms: clock.now_ms(),
      keep_ms,
      keepJobs,
      remember,
    })
  }

  /** Stops without ending jobs; they are carried on by `resume`. Waits up to `timeout_ms` for steps to come to rest. */
  async stop(timeout_ms = 10_000): Promise<void> {
    this.#stopping = true
    const runs = [...this.#runs.values()]
    for (const run of runs) run.halt('the daemon stops')
    const over = new AbortController()
    const late = sleep(this.#o.clock, timeout_ms, over.signal).catch(() => undefined)
    await Promise.race([Promise.all([...runs.map((run) => run.ended), this.#pruning]), late])
    over.abort()
  }
}

function keyAndHash(subject: string, key: string, asked: unknown): { key: string; hash: string } {
  const digest = (text: string) => createHash('sha256').update(text).digest('hex')
  return { key: digest(JSON.stringify([subject, key])), hash: digest(JSON.stringify(asked)) }
}
