/**
 * The generic test of a job: everything that can happen to it is made to happen, and afterwards the world must be as if the job
 * had been done once, or never begun. Every defined job goes through this.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fault, WadahError } from '@wadah/api/fault'
import type { Store } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import type { AnyStep, JobDefinition, StepContext, Target } from './define.ts'
import { JobEngine } from './engine.ts'
import { claimKind, hasEnded, type JobRecord } from './record.ts'
import { Cut, mortalStore, watched } from './testing-cut.ts'

export type World<D> = {
  /** Services for one life of the daemon, on this store; called again after a crash. Calls on them can be cut off or made to fail. */
  deps: (store: Store) => D
  /**
   * What the job may change outside the store, as plain data, without what may differ between runs (times, random names).
   * Records of the store are compared by the harness itself.
   */
  snapshot: () => unknown
  close?: () => Promise<void> | void
}

export type CheckOptions<P, D> = {
  definition: JobDefinition<P, D>
  params: P
  target?: Target
  /** A fresh world, with what the job needs to succeed. `store` is empty; put records into it as needed. */
  world: (store: Store) => Promise<World<D>> | World<D>
  /** Also try a failure and a crash at every single call on `deps` (functions of it, and of objects in it); default true. */
  everyCall?: boolean
  /** Leave records of the store out of the comparison, or bring them into a comparable form. */
  records?: (records: Record<string, unknown>) => unknown
  /** For how long one run may take, ms; default 10,000. */
  limit_ms?: number
}

type Ending = 'done' | 'failed' | 'cancelled'
type Steps<P, D> = readonly AnyStep<P, D>[]
type Do<P, D> = (ctx: StepContext<P, D>) => unknown
type Life<P, D> = { engine: JobEngine<D>; definition: JobDefinition<P, D>; cut: Cut }

type Scenario<P, D> = {
  name: string
  /** Steps instead of the definition's. */
  steps?: (steps: Steps<P, D>, life: { engine: () => JobEngine<D>; cut: Cut }) => Steps<P, D>
  /** Sets up when the daemon dies, or a call on `deps` fails. */
  arrange?: (cut: Cut) => void
  /** How it may end; default both done and failed. */
  ends?: Ending[]
}

const broken = () =>
  new WadahError(fault('tool_failed', 'made to fail by the test', { effect: 'partial', retryable: true }))
const noStart = () => new WadahError(fault('tool_failed', 'made to fail before the step', { effect: 'none' }))
const quick = { attempts: 0, base_ms: 1, cap_ms: 3 }

/** @returns names of what was tried @throws AggregateError with one error for each thing that went wrong */
export async function checkJob<P, D>(o: CheckOptions<P, D>): Promise<string[]> {
  const clean = await play<P, D>(o, { name: 'undisturbed' }, undefined)
  const problems: Error[] = []
  if (clean.record?.state !== 'done') {
    const why = `undisturbed: it ended ${clean.record?.state}: ${clean.record?.fault?.detail}`
    throw new AggregateError([new Error(why)], `${o.definition.name}:\n${why}`)
  }
  const scenarios: Scenario<P, D>[] = [...stepScenarios(o.definition), ...crashScenarios<P, D>(clean.commits)]
  if (o.everyCall ?? true) scenarios.push(...callScenarios<P, D>(clean.calls))
  for (const scenario of scenarios) {
    try {
      await play(o, scenario, { before: clean.before, after: clean.after })
    } catch (error) {
      problems.push(new Error(`${scenario.name}: ${error instanceof Error ? error.message : String(error)}`))
    }
  }
  if (problems.length > 0) {
    throw new AggregateError(problems, `${o.definition.name}:\n${problems.map((p) => p.message).join('\n')}`)
  }
  return scenarios.map((s) => s.name)
}

/** Replaces the `do` of one step. */
function withDo<P, D>(steps: Steps<P, D>, at: number, make: (inner: Do<P, D>) => Do<P, D>): Steps<P, D> {
  return steps.map((s, i) => (i === at ? { ...s, do: make(s.do) } : s))
}

function stepScenarios<P, D>(definition: JobDefinition<P, D>): Scenario<P, D>[] {
  const found: Scenario<P, D>[] = []
  const { steps, pivotAt, onCrash } = definition
  for (const [at, { name }] of steps.entries()) {
    const beforePivot = at < pivotAt
    const twice = (inner: Do<P, D>) => async (ctx: StepContext<P, D>) => {
      await inner(ctx)
      return inner(ctx)
    }
    found.push({ name: `${name} twice`, ends: ['done'], steps: (s) => withDo(s, at, twice) })
    const once = (make: (inner: Do<P, D>, first: boolean) => Do<P, D>) => (s: Steps<P, D>) => {
      let first = true
      return withDo(s, at, (inner) => (ctx) => {
        const run = make(inner, first)
        first = false
        return run(ctx)
      })
    }
    const failAfter = once((inner, first) => async (ctx) => {
      const output = await inner(ctx)
      if (first) throw broken()
      return output
    })
    // Steps with tries of their own get over one failure, and that is right too.
    const afterFailure: Ending[] = beforePivot ? ['failed', 'done'] : ['done']
    found.push({ name: `${name} fails when it has done its work`, ends: afterFailure, steps: failAfter })
    const failBefore = once((inner, first) => (ctx) => {
      if (first) throw at <= pivotAt ? noStart() : broken()
      return inner(ctx)
    })
    found.push({ name: `${name} fails at once`, ends: at <= pivotAt ? ['failed'] : ['done'], steps: failBefore })
    found.push({
      name: `the daemon dies when ${name} has done its work`,
      ends: onCrash === 'undo' && beforePivot ? ['failed'] : ['done'],
      steps: (s, { cut }) =>
        withDo(s, at, (inner) => async (ctx) => {
          const output = await inner(ctx)
          if (!cut.used) await cut.die()
          return output
        }),
    })
    if (!beforePivot) continue
    for (const [when, early] of [
      ['when it begins', true],
      ['while it works', false],
    ] as const) {
      found.push({
        name: `cancelled in ${name}, ${when}`,
        ends: ['cancelled'],
        steps: (s, { engine }) =>
          withDo(s, at, (inner) => async (ctx) => {
            if (early) {
              await engine().cancel(ctx.jobId)
              return inner(ctx)
            }
            const work = Promise.resolve(inner(ctx))
            work.catch(() => undefined)
            await engine().cancel(ctx.jobId)
            return work
          }),
      })
    }
    const undoTwice = (s: Steps<P, D>) =>
      withDo(s, at, (inner) => async (ctx) => {
        await inner(ctx)
        throw new WadahError(fault('tool_failed', 'made to fail by the test', { effect: 'partial' }))
      }).map((step, i) => {
        const { undo } = step
        if (!undo) return step
        let failed = i % 2 === 0
        const both = async (ctx: StepContext<P, D>) => {
          await undo(ctx)
          await undo(ctx)
          if (failed) return
          failed = true
          throw broken()
        }
        return { ...step, undo: both }
      })
    found.push({ name: `${name} fails, every undo runs twice or fails once`, ends: ['failed'], steps: undoTwice })
    found.push({
      name: `${name} fails, the daemon dies in the undo of each step`,
      ends: ['failed'],
      steps: (s, { cut }) =>
        withDo(s, at, (inner) => async (ctx) => {
          await inner(ctx)
          throw new WadahError(fault('tool_failed', 'made to fail by the test', { effect: 'partial' }))
        }).map((step, i) => {
          const { undo } = step
          if (!undo || i !== Math.floor(at / 2)) return step
          return {
            ...step,
            undo: async (ctx: StepContext<P, D>) => {
              await undo(ctx)
              if (!cut.used) await cut.die()
            },
          }
        }),
    })
  }
  return found
}

function crashScenarios<P, D>(commits: number): Scenario<P, D>[] {
  return Array.from({ length: commits }, (_, i) => ({
    name: `the daemon dies after commit ${i + 1}`,
    arrange: (cut: Cut) => {
      cut.dieAfterCommit = i + 1
    },
  }))
}

function callScenarios<P, D>(calls: string[]): Scenario<P, D>[] {
  return calls.flatMap((call, i): Scenario<P, D>[] => [
    {
      name: `the daemon dies after call ${i + 1} (${call})`,
      arrange: (cut) => {
        cut.dieAfterCall = i + 1
      },
    },
    {
      name: `call ${i + 1} (${call}) fails`,
      arrange: (cut) => {
        cut.failAtCall = i + 1
      },
    },
  ])
}

type Played = { record: JobRecord | undefined; before: unknown; after: unknown; commits: number; calls: string[] }

async function play<P, D>(
  o: CheckOptions<P, D>,
  scenario: Scenario<P, D>,
  expected: { before: unknown; after: unknown } | undefined,
): Promise<Played> {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-job-'))
  const store = openMemoryStore()
  const random = sequence()
  const world = await o.world(store)
  const engines: JobEngine<D>[] = []
  try {
    const look = async () => comparable({ world: await world.snapshot(), records: await recordsOf(store, o.records) })
    const before = await look()
    const cut = new Cut()
    scenario.arrange?.(cut)
    const live = (): Life<P, D> => {
      const life = new Cut(cut)
      const alive = mortalStore(store, life)
      const slots = { engine: () => engines.at(-1) as JobEngine<D>, cut: life }
      const steps = scenario.steps?.(o.definition.steps, slots) ?? o.definition.steps
      const definition = { ...o.definition, steps: steps.map(impatient) }
      const engine = new JobEngine<D>({
        store: alive,
        hostId: 'host-test',
        definitions: [definition],
        deps: watched(world.deps(alive), life),
        logDir: join(dir, 'logs'),
        randomBytes: random,
        patience: { retry: quick, slow: quick },
      })
      engines.push(engine)
      return { engine, definition, cut: life }
    }
    const limit_ms = o.limit_ms ?? 10_000
    const first = live()
    const target = o.target ?? { kind: 'test', id: 'test-1' }
    const submitted = first.engine.submit(first.definition, o.params, { subject: 'test', target })
    const id = await first.cut.orDeath(submitted.then((job) => job.id))
    if (id !== undefined) await first.cut.orDeath(first.engine.wait(id, { timeout_ms: limit_ms }))
    let record = await lastJob(store)
    const second = first.cut.dead ? live() : undefined
    if (second) {
      const { left, resumed } = await second.engine.resume()
      assert.deepEqual(left, [], 'the job was left alone at resume')
      for (const job of resumed) await second.engine.wait(job, { timeout_ms: limit_ms })
      record = await lastJob(store)
    }
    const after = await look()
    if (expected) judge(scenario, record, after, expected)
    const claims = await store.list(claimKind, { limit: 10 })
    assert.deepEqual(claims.type === 'page' && claims.items, [], 'a claim was left behind')
    return { record, before, after, commits: first.cut.commits, calls: first.cut.calls }
  } finally {
    for (const engine of engines) await engine.stop(1)
    await world.close?.()
    await store.close()
    rmSync(dir, { recursive: true, force: true })
  }
}

function judge<P, D>(
  scenario: Scenario<P, D>,
  record: JobRecord | undefined,
  after: unknown,
  expected: { before: unknown; after: unknown },
): void {
  // The daemon died before the job was committed, and nothing may have happened.
  if (!record) return assert.deepEqual(after, expected.before, 'something was done before the job was committed')
  if (!hasEnded(record)) {
    const why = record.attention?.fault.detail ?? 'no reason given'
    assert.fail(`the job did not end: ${record.state} after ${record.steps.length} steps (${why})`)
  }
  const ends = scenario.ends ?? ['done', 'failed']
  assert.ok(ends.includes(record.state as Ending), `it ended ${record.state}, expected ${ends.join(' or ')}`)
  if (record.state === 'done') assert.deepEqual(after, expected.after, 'done, but not as when undisturbed')
  else assert.deepEqual(after, expected.before, `${record.state}, but not everything was undone`)
}

function impatient<P, D>(step: AnyStep<P, D>): AnyStep<P, D> {
  return step.retry ? { ...step, retry: { ...step.retry, base_ms: 1, cap_ms: 3 } } : step
}

async function lastJob(store: Store): Promise<JobRecord | undefined> {
  const page = await store.range('job:', { limit: 10 })
  return page.type === 'page' ? (page.items[0]?.value as JobRecord | undefined) : undefined
}

async function recordsOf(store: Store, shape: CheckOptions<never, never>['records']): Promise<unknown> {
  const found: Record<string, unknown> = {}
  let cursor: string | undefined
  do {
    const page = await store.range('', { limit: 1000, ...(cursor && { cursor }) })
    if (page.type === 'compacted') throw new Error('the store was compacted')
    for (const { kind, id, value } of page.items) {
      if (kind !== 'job' && !kind.startsWith('job/')) found[`${kind}:${id}`] = value
    }
    cursor = page.cursor
  } while (cursor)
  return shape ? shape(found) : found
}

const comparable = (value: unknown): unknown => JSON.parse(JSON.stringify(value ?? null))

/** The same ids in every run; no token twice. */
function sequence(): (n: number) => Uint8Array {
  let next = 0
  return (n) => {
    next += 1
    return Uint8Array.from({ length: n }, (_, i) => (next * 31 + i * 7) & 0xff)
  }
}
