/** Carries out one job: forward step by step, or back, until it ends or must be left. */
import { type Fault, fault, WadahError } from '@wadah/api/fault'
import { type Clock, sleep } from '@wadah/store/clock'
import { type Check, del, type Store, type Write } from '@wadah/store/store'
import type { AnyDefinition, AnyStep, Retry, StepContext } from './define.ts'
import { anyFault, isUnforeseen } from './faults.ts'
import { Halted, Keeper } from './keeper.ts'
import type { Lanes } from './lanes.ts'
import type { JobLog } from './log.ts'
import { backoff, type Plan } from './plan.ts'
import { percentOf, type StepProgress, Throttle, toFraction } from './progress.ts'
import { claimKind, hasEnded, type JobRecord } from './record.ts'

export type Live = {
  /** Index of the step at work; -1 when none. */
  step: number
  doing: 'do' | 'undo' | 'waiting'
  attempt: number
  percent: number
  progress?: StepProgress
}

/** Delays of tries that don't end: after the pivot, and of undo; and when somebody is told. */
export type Patience = { retry: Retry; slow: Retry }

export type RunOptions<D> = {
  store: Store
  clock: Clock
  random: () => number
  token: () => string
  deps: D
  definition: AnyDefinition<D>
  /** As `definition.parse` gave them. */
  params: unknown
  log: JobLog
  lanes: Lanes
  patience: Patience
  onRecord: (record: JobRecord) => void
  onProgress: (live: Live) => void
  onUnforeseen: (error: unknown, where: string) => void
}

const OUTPUT_BYTES_MAX = 64 * 1024
/** Tries of what goes on for ever, after which it is shown as needing attention. */
const ATTENTION_AFTER = 3

type Extra = { writes: Write[]; checks: Check[] }
type Tried = { ok: true; output: unknown; extra: Extra; warning?: Fault } | { ok: false; fault: Fault }

export class JobRun<D> {
  readonly ended: Promise<JobRecord | undefined>
  readonly live: Live = { step: -1, doing: 'waiting', attempt: 0, percent: 0 }
  #o: RunOptions<D>
  #keeper: Keeper
  #halt = new AbortController()
  #cancel = new AbortController()
  #pivotBegun = false
  #steps: JobRecord['steps']
  #throttle: Throttle
  #leave: (() => void) | undefined

  /** Begins at once. `ended` resolves with the last record, or with undefined when the job was left as it is. */
  constructor(o: RunOptions<D>, record: JobRecord, modified: number, plan: Exclude<Plan, { kind: 'leave' }>) {
    this.#o = o
    this.#keeper = new Keeper(
      {
        store: o.store,
        clock: o.clock,
        token: o.token,
        halt: this.#halt.signal,
        onFenced: () => this.halt('another executor has taken the job over'),
        onCommit: o.onRecord,
      },
      record,
      modified,
    )
    this.#steps = [...record.steps]
    this.#throttle = new Throttle(o.clock, () => o.onProgress(this.live))
    this.#pivotBegun = record.steps.length >= o.definition.pivotAt && !record.cancel_requested && plan.kind !== 'undo'
    this.ended = this.#run(plan)
  }

  get record(): JobRecord {
    return this.#keeper.record
  }

  /** Stops without ending the job; it is carried on later, by this host or another. */
  halt(why: string): void {
    this.#halt.abort(new Halted(why))
  }

  /** @throws WadahError `too_late`, `wrong_state`, `unavailable` */
  async cancel(): Promise<void> {
    const refuse = () => {
      const { record } = this
      if (this.#pivotBegun && !hasEnded(record)) {
        throw new WadahError(
          fault('too_late', `${record.name} has passed its point of no return and can only be finished.`, {
            remedy: `wadah job show ${record.id}`,
          }),
        )
      }
      if (record.state === 'done' || record.state === 'failed') {
        throw new WadahError(fault('wrong_state', `The job has ended already: ${record.state}.`))
      }
    }
    refuse()
    if (this.record.state !== 'running' || this.record.cancel_requested) return
    this.#cancel.abort(new WadahError(fault('cancelled', 'The job was cancelled.')))
    const noted = this.#keeper.commit((draft) => {
      refuse()
      draft.cancel_requested = true
    })
    await noted.catch((error: unknown) => {
      if (!(error instanceof Halted)) throw error
      throw new WadahError(fault('unavailable', 'Wadah is stopping, or another host carries this job out now.'), error)
    })
  }

  async #run(plan: Exclude<Plan, { kind: 'leave' }>): Promise<JobRecord | undefined> {
    try {
      await this.#enter()
      if (plan.kind === 'undo') await this.#back(plan.from, plan.begun ? undefined : { outcome: plan.outcome })
      else await this.#forward(plan.at)
      return this.record
    } catch (error) {
      if (!(error instanceof Halted)) this.#o.onUnforeseen(error, `job ${this.record.id}`)
      return undefined
    } finally {
      this.#leave?.()
      this.#throttle.end()
      await this.#o.log.flush()
    }
  }

  async #enter(): Promise<void> {
    const { lanes, definition } = this.#o
    this.live.doing = 'waiting'
    this.#leave = await lanes.enter(definition.lane ?? 'default', this.#halt.signal)
  }

  async #forward(from: number): Promise<void> {
    const { definition } = this.#o
    const n = definition.steps.length
    let at = this.#skip(from)
    if (at === n) return this.#end(at, { writes: [], checks: [] })
    while (at < n) {
      if (at <= definition.pivotAt && this.#cancel.signal.aborted) return this.#back(at, { outcome: 'cancelled' })
      if (at === definition.pivotAt && !(await this.#beginPivot())) return this.#back(at, { outcome: 'cancelled' })
      const started_ms = this.#o.clock.now_ms()
      const tried = await this.#persist(at)
      if (!tried.ok) return this.#back(at, this.#why(at, tried.fault))
      const step = definition.steps[at] as AnyStep<unknown, D>
      this.#steps.push({
        name: step.name,
        state: 'done',
        ...(tried.output !== undefined && { output: tried.output }),
        started_ms,
        ended_ms: this.#o.clock.now_ms(),
        ...(tried.warning && { warning: tried.warning }),
      })
      const done = at
      at = this.#skip(at + 1)
      try {
        if (at === n && !this.#cancelledBefore(done)) return await this.#end(at, tried.extra)
        if (!step.volatile || tried.extra.writes.length > 0 || done >= definition.pivotAt) await this.#keep(tried.extra)
      } catch (error) {
        if (error instanceof Halted || !(error instanceof WadahError)) throw error
        if (done >= definition.pivotAt) {
          // What belongs to a step past the pivot was refused: the step is done again, with a fresh look.
          this.#steps.length = done
          const { retry, slow } = this.#o.patience
          await this.#pause(1, error.fault.retryable ? retry : slow, done, error.fault)
          at = done
          continue
        }
        this.#steps.length = done
        return this.#back(done, this.#why(done, error.fault))
      }
      if (this.#cancelledBefore(done)) return this.#back(Math.min(at, n - 1), { outcome: 'cancelled' })
    }
  }

  #cancelledBefore(at: number): boolean {
    return at < this.#o.definition.pivotAt && this.#cancel.signal.aborted
  }

  #why(at: number, why: Fault): { outcome: 'failed' | 'cancelled'; fault?: Fault; step: number } {
    if (this.#cancel.signal.aborted) return { outcome: 'cancelled', step: at }
    return { outcome: 'failed', fault: why, step: at }
  }

  /** Passes over steps that are not wanted; tells where to go on. */
  #skip(from: number): number {
    let at = from
    for (; at < this.#o.definition.steps.length; at += 1) {
      const step = this.#o.definition.steps[at] as AnyStep<unknown, D>
      if (this.#wanted(step)) break
      const now = this.#o.clock.now_ms()
      this.#steps.push({ name: step.name, state: 'skipped', started_ms: now, ended_ms: now })
    }
    return at
  }

  #wanted(step: AnyStep<unknown, D>): boolean {
    try {
      return step.when?.(this.#o.params, (name) => this.#output(name)) ?? true
    } catch (error) {
      this.#o.onUnforeseen(error, `${this.#o.definition.name} ${step.name}: when`)
      return true
    }
  }

  #output(name: string): unknown {
    return this.#steps.find((s) => s.name === name)?.output
  }

  #keep(extra: Extra): Promise<void> {
    const steps = [...this.#steps]
    return this.#keeper.commit(
      (draft) => {
        draft.steps = steps
        delete draft.attention
      },
      extra.writes,
      extra.checks,
    )
  }

  /** Notes that the pivot may have begun, before it does. False: a cancel came first. */
  async #beginPivot(): Promise<boolean> {
    if (this.#pivotBegun) return true
    if (this.record.steps.length < this.#o.definition.pivotAt) await this.#keep({ writes: [], checks: [] })
    if (this.#cancel.signal.aborted) return false
    this.#pivotBegun = true
    return true
  }

  /** Tries a step as long as its place in the job allows. */
  async #persist(at: number): Promise<Tried> {
    const { definition, patience } = this.#o
    const step = definition.steps[at] as AnyStep<unknown, D>
    for (let attempt = 1; ; attempt += 1) {
      const tried = await this.#try(step, at, attempt, 'do')
      if (tried.ok) return tried
      const { fault: why } = tried
      if (at < definition.pivotAt) {
        const again = step.retry && attempt < step.retry.attempts && why.retryable && !this.#cancel.signal.aborted
        if (!again) return tried
        await this.#pause(attempt, step.retry as Retry, at)
        if (this.#cancel.signal.aborted) return tried
        continue
      }
      if (at === definition.pivotAt && why.effect === 'none') {
        this.#pivotBegun = false
        return tried
      }
      if (!why.retryable && step.resolve) {
        const resolved = await this.#try(step, at, attempt, 'resolve', why)
        if (resolved.ok) return { ...resolved, warning: why }
      }
      const slow = !why.retryable
      const told = slow || attempt >= ATTENTION_AFTER ? why : undefined
      await this.#pause(attempt, slow ? patience.slow : (step.retry ?? patience.retry), at, told)
    }
  }

  /** Waits before another try, giving its place to other jobs meanwhile; tells, when `told`, that something is wrong. */
  async #pause(attempt: number, retry: Retry, at: number, told?: Fault): Promise<void> {
    const step = this.#o.definition.steps[at]?.name ?? ''
    const known = this.record.attention
    if (told && (known?.step !== step || known.fault.code !== told.code)) {
      await this.#keeper.commit((draft) => {
        const since_ms = draft.attention?.step === step ? draft.attention.since_ms : this.#o.clock.now_ms()
        draft.attention = { step, since_ms, attempts: attempt, fault: told }
      })
    }
    const ms = backoff(attempt, retry.base_ms, retry.cap_ms, this.#o.random())
    this.#o.log.add(`${step}: trying again in ${Math.ceil(ms / 1000)} s`)
    this.#leave?.()
    this.#leave = undefined
    const stop = this.#pivotBegun || this.record.state === 'undoing' ? this.#halt.signal : this.#either()
    await sleep(this.#o.clock, ms, stop).catch(() => undefined)
    if (this.#halt.signal.aborted) throw this.#halt.signal.reason
    await this.#enter()
  }

  #either(): AbortSignal {
    return AbortSignal.any([this.#halt.signal, this.#cancel.signal])
  }

  /** One call of a step. Never throws but when the job must be left. */
  async #try(
    step: AnyStep<unknown, D>,
    at: number,
    attempt: number,
    what: 'do' | 'undo' | 'resolve',
    why?: Fault,
  ): Promise<Tried> {
    if (this.#halt.signal.aborted) throw this.#halt.signal.reason
    const { log, definition } = this.#o
    Object.assign(this.live, { step: at, doing: what === 'undo' ? 'undo' : 'do', attempt })
    delete this.live.progress
    if (what !== 'undo') this.live.percent = percentOf(definition as never, at, 0)
    this.#throttle.now()
    if (definition.steps.length > 1) log.add(what === 'do' ? `step ${step.name}` : `step ${step.name}: ${what}`)
    const extra: Extra = { writes: [], checks: [] }
    const signal = what === 'do' && at < definition.pivotAt ? this.#either() : this.#halt.signal
    const context = this.#context(step, at, attempt, what, signal, extra)
    try {
      let output: unknown
      if (what === 'undo') await step.undo?.(context)
      else if (what === 'resolve') output = await step.resolve?.(context, why as Fault)
      else output = await step.do(context)
      if (JSON.stringify(output ?? null).length > OUTPUT_BYTES_MAX) {
        throw new TypeError(`step ${step.name} of ${definition.name} returned more than ${OUTPUT_BYTES_MAX} bytes`)
      }
      return { ok: true, output, extra }
    } catch (error) {
      if (this.#halt.signal.aborted) throw this.#halt.signal.reason
      const found = anyFault(error)
      log.add(`${step.name}: ${what === 'do' ? '' : `${what}: `}${found.code}: ${found.detail}`)
      const expected = what === 'do' && signal.aborted
      if (isUnforeseen(error) && !expected)
        this.#o.onUnforeseen(error, `${definition.name} ${step.name} (${this.record.id})`)
      return { ok: false, fault: found }
    }
  }

  #context(
    step: AnyStep<unknown, D>,
    at: number,
    attempt: number,
    what: 'do' | 'undo' | 'resolve',
    signal: AbortSignal,
    extra: Extra,
  ): StepContext<unknown, D> {
    const { clock, deps, log, definition, params } = this.#o
    const { id, subject, target } = this.record
    return {
      params,
      deps,
      jobId: id,
      subject,
      target,
      signal,
      clock,
      attempt,
      output: ((s: string | { name: string }) => this.#output(typeof s === 'string' ? s : s.name)) as never,
      log: (line) => log.add(line),
      progress: (p) => {
        if (this.live.step !== at || this.live.doing === 'waiting') return
        this.live.progress = toFraction(p)
        if (what !== 'undo') this.live.percent = percentOf(definition as never, at, this.live.progress.fraction)
        this.#throttle.call()
      },
      commit: (writes, checks = []) => {
        // A step that says it again means the same: the last word on a record counts.
        const key = (w: { kind: string; id: string }) => `${w.kind}:${w.id}`
        const again = new Set(writes.map(key))
        extra.writes = [...extra.writes.filter((w) => !again.has(key(w))), ...writes]
        extra.checks.push(...checks)
      },
    }
  }

  /** Undoes steps `from` … 0 and ends. `why` is absent when a former executor has noted it. */
  async #back(from: number, why?: { outcome: 'failed' | 'cancelled'; fault?: Fault; step?: number }): Promise<void> {
    const { definition, patience } = this.#o
    if (why) await this.#noteBack(why)
    for (let at = Math.min(from, definition.steps.length - 1); at >= 0; at -= 1) {
      const step = definition.steps[at] as AnyStep<unknown, D>
      const skipped = this.#steps[at] ? this.#steps[at]?.state === 'skipped' : !this.#wanted(step)
      if (!step.undo || skipped) continue
      for (let attempt = 1; ; attempt += 1) {
        const tried = await this.#try(step, at, attempt, 'undo')
        let failed = tried.ok ? undefined : tried.fault
        if (tried.ok && tried.extra.writes.length > 0) {
          try {
            await this.#keeper.commit(() => undefined, tried.extra.writes, tried.extra.checks)
          } catch (error) {
            if (!(error instanceof WadahError)) throw error
            failed = error.fault
          }
        }
        if (!failed) break
        const told = attempt >= ATTENTION_AFTER ? failed : undefined
        await this.#pause(attempt, attempt >= ATTENTION_AFTER ? patience.slow : patience.retry, at, told)
      }
    }
    const now = this.#o.clock.now_ms()
    this.live.step = -1
    await this.#keeper.commit((draft) => {
      draft.state = draft.outcome ?? 'failed'
      draft.ended_ms = now
      // Everything was taken back.
      if (draft.fault) draft.fault.effect = 'none'
      draft.claims = []
      delete draft.attention
    }, this.#releases())
  }

  /** Before anything is undone: a job found half undone must never be carried on forward. */
  async #noteBack(why: { outcome: 'failed' | 'cancelled'; fault?: Fault; step?: number }): Promise<void> {
    const failed = why.step === undefined ? undefined : this.#o.definition.steps[why.step]?.name
    const known = [...this.#steps]
    const cut = 'The daemon was stopped in the middle of it; what was done has been undone. Try again.'
    const reason =
      why.fault ??
      (why.outcome === 'cancelled' ? fault('cancelled', 'The job was cancelled.') : fault('unavailable', cut))
    await this.#keeper.commit((draft) => {
      draft.state = 'undoing'
      draft.outcome = why.outcome
      draft.steps = known
      draft.fault = { ...reason }
      if (failed) draft.failed_step = failed
    })
  }

  #releases(): Write[] {
    return this.record.claims.map((key) => del(claimKind, key))
  }

  async #end(at: number, extra: Extra): Promise<void> {
    const { definition, clock } = this.#o
    const steps = this.#steps.slice(0, at)
    let result = steps.findLast((s) => s.state === 'done')?.output
    try {
      if (definition.result) result = definition.result((name) => this.#output(name), this.#o.params)
    } catch (error) {
      this.#o.onUnforeseen(error, `${definition.name}: result`)
    }
    const record = this.record
    await this.#keeper.commit(
      (draft) => {
        if (draft.cancel_requested) throw new WadahError(fault('cancelled', 'The job was cancelled.'))
        draft.state = 'done'
        draft.steps = steps
        draft.ended_ms = clock.now_ms()
        if (result !== undefined) draft.result = result
        draft.claims = []
        delete draft.attention
      },
      [...extra.writes, ...record.claims.map((key) => del(claimKind, key))],
      extra.checks,
    )
    Object.assign(this.live, { step: -1, percent: 100 })
  }
}
