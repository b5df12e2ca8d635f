import { fault, WadahError } from '@wadah/api/fault'
import { defineJob, pivot, step } from '@wadah/cluster/jobs/define'
import type { JobEvent } from '@wadah/cluster/jobs/engine'
import { claimKind, type JobRecord, jobKind } from '@wadah/cluster/jobs/record'
import { viewJob } from '@wadah/cluster/jobs/view'
import { absent, exists, type Kind, put } from '@wadah/store/store'
import { describe, expect, test } from 'vitest'
import { by, rig, target } from './rig.ts'

type P = { n: number }
type D = { did: string[]; gate?: Promise<void> }
const parse = (v: unknown): P => {
  const p = v as P
  if (typeof p?.n !== 'number') throw new WadahError(fault('invalid', 'n must be a number', { field: '/n' }))
  return p
}
const thing: Kind<{ n: number }> = { name: 'thing' }
const sure = { timeout_ms: 5000 }
const until = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)))
const bad = (effect: 'none' | 'partial' = 'partial', retryable = false) =>
  new WadahError(fault('tool_failed', 'it broke', { effect, retryable }))

const single = defineJob<P, D>('one.step', 1, parse, [
  step('only', { do: (c) => ({ twice: c.params.n * 2 }), undo: (c) => void c.deps.did.push('undo only') }),
])

const three = defineJob<P, D>('three.steps', 1, parse, [
  step('a', { do: (c) => void c.deps.did.push('a'), undo: (c) => void c.deps.did.push('undo a') }),
  step('b', { do: (c) => c.deps.did.push('b'), undo: (c) => void c.deps.did.push('undo b'), when: (p) => p.n > 1 }),
  step('c', {
    do: async (c) => {
      c.deps.did.push('c')
      if (c.params.n === 13) throw bad()
      if (c.params.n === 99) await until(c.signal)
    },
    undo: (c) => void c.deps.did.push('undo c'),
  }),
])

describe('the way forward', () => {
  test('a job of one step costs two commits', async () => {
    const { engine, store } = await rig([single], { did: [] })
    const job = await engine.submit(single, { n: 21 }, by)
    expect(job).toMatchObject({ state: 'running', executor: { host: 'host-a' }, subject: 'root', target })
    const ended = await engine.wait(job.id, sure)
    expect(ended).toMatchObject({ state: 'done', result: { twice: 42 }, claims: [] })
    expect(await store.current()).toBe(2)
    expect((await store.get(jobKind, job.id))?.value).toEqual(ended)
  })

  test('one commit per step, the last with the end; skipped ones cost none', async () => {
    const { engine, store } = await rig([three], { did: [] })
    const job = await engine.submit(three, { n: 1 }, by)
    const ended = await engine.wait(job.id, sure)
    expect(ended.steps.map((s) => s.state)).toEqual(['done', 'skipped', 'done'])
    expect(await store.current()).toBe(3)
  })

  test('a volatile step is not committed by itself', async () => {
    const volatile = defineJob<P, D>('volatile.steps', 1, parse, [
      step('a', { do: () => 1, volatile: true }),
      step('b', { do: () => 2, volatile: true }),
      step('c', { do: (c) => [c.output('a'), c.output('b')] }),
    ])
    const { engine, store } = await rig([volatile], { did: [] })
    const job = await engine.submit(volatile, { n: 1 }, by)
    expect((await engine.wait(job.id, sure)).result).toEqual([1, 2])
    expect(await store.current()).toBe(2)
  })

  test("a step's writes are committed with its end; extra writes with the submit", async () => {
    const writes = defineJob<P, D>('with.writes', 1, parse, [
      step('write', { do: (c) => c.commit([put(thing, 'made', { n: c.params.n })], [absent(thing, 'made')]) }),
    ])
    const { engine, store } = await rig([writes], { did: [] })
    const job = await engine.submit(writes, { n: 5 }, { ...by, extraWrites: [put(thing, 'noted', { n: 1 })] })
    expect((await engine.wait(job.id, sure)).state).toBe('done')
    expect(await store.current()).toBe(2)
    expect((await store.get(thing, 'made'))?.modified).toBe(2)
    expect((await store.get(thing, 'noted'))?.modified).toBe(1)
    const again = await engine.submit(writes, { n: 6 }, by)
    expect(await engine.wait(again.id, sure)).toMatchObject({ state: 'failed', fault: { code: 'conflict' } })
    expect((await store.get(thing, 'made'))?.value.n).toBe(5)
  })

  test('bad parameters, failed extra checks, strangers', async () => {
    const { engine, store } = await rig([single], { did: [] })
    await expect(engine.submit(single, {} as P, by)).rejects.toMatchObject({ fault: { code: 'invalid', field: '/n' } })
    const extraChecks = [exists(thing, 'nothing')]
    await expect(engine.submit(single, { n: 1 }, { ...by, extraChecks })).rejects.toMatchObject({
      fault: { code: 'conflict', effect: 'none' },
    })
    const onConflict = () => fault('name_taken', 'there is one')
    await expect(engine.submit(single, { n: 1 }, { ...by, extraChecks, onConflict })).rejects.toMatchObject({
      fault: { code: 'name_taken' },
    })
    await expect(engine.submit(three, { n: 1 }, by)).rejects.toThrow('not registered')
    for (const id of ['job-aaaaaaaaaa', '../../etc/passwd', '']) {
      await expect(engine.wait(id, sure)).rejects.toMatchObject({ fault: { code: 'not_found' } })
      await expect(engine.cancel(id)).rejects.toMatchObject({ fault: { code: 'not_found' } })
      await expect(engine.readLog(id, { from: 0, limit: 1 })).rejects.toMatchObject({ fault: { code: 'not_found' } })
    }
    expect(await store.current()).toBe(0)
  })

  test('an idempotency key gives the same job, refuses other parameters', async () => {
    const { engine } = await rig([single], { did: [] })
    const first = await engine.submit(single, { n: 1 }, { ...by, idempotencyKey: 'kö:1' })
    const again = await engine.submit(single, { n: 1 }, { ...by, idempotencyKey: 'kö:1' })
    expect(again.id).toBe(first.id)
    await expect(engine.submit(single, { n: 2 }, { ...by, idempotencyKey: 'kö:1' })).rejects.toMatchObject({
      fault: { code: 'idempotency_mismatch' },
    })
    const other = await engine.submit(single, { n: 2 }, { ...by, subject: 'eve', idempotencyKey: 'kö:1' })
    expect(other.id).not.toBe(first.id)
  })

  test('claims keep two jobs apart, and go with the job', async () => {
    const claiming = defineJob<P, D>('vm.delete', 1, parse, [step('wait', { do: (c) => c.deps.gate })], {
      claims: (_, t) => [`vm/${t.id}`],
    })
    const gate = Promise.withResolvers<void>()
    const { engine, store } = await rig([claiming], { did: [], gate: gate.promise })
    const first = await engine.submit(claiming, { n: 1 }, by)
    await expect(engine.submit(claiming, { n: 1 }, by)).rejects.toMatchObject({
      fault: { code: 'busy', detail: expect.stringContaining(first.id), retryable: true },
    })
    const elsewhere = { ...by, target: { kind: 'vm', id: 'vm-bbbbbbbbbb' } }
    const other = await engine.submit(claiming, { n: 1 }, elsewhere)
    gate.resolve()
    await engine.wait(first.id, sure)
    await engine.wait(other.id, sure)
    expect((await store.list(claimKind, { limit: 10 })).type === 'page').toBe(true)
    expect(await store.get(claimKind, `vm/${target.id}`)).toBeUndefined()
    const second = await engine.submit(claiming, { n: 1 }, by)
    expect((await engine.wait(second.id, sure)).state).toBe('done')
  })

  test('lanes limit how many run at once; all get their turn', async () => {
    let now = 0
    let most = 0
    const slow = defineJob<P, D>(
      'slow.one',
      1,
      parse,
      [
        step('work', {
          do: async () => {
            now += 1
            most = Math.max(most, now)
            await new Promise((r) => setTimeout(r, 5))
            now -= 1
          },
        }),
      ],
      { lane: 'narrow' },
    )
    const { engine } = await rig([slow], { did: [] }, { lanes: { narrow: 2 } })
    const jobs = await Promise.all(Array.from({ length: 9 }, () => engine.submit(slow, { n: 1 }, by)))
    const ends = await Promise.all(jobs.map((j) => engine.wait(j.id, sure)))
    expect(ends.every((j) => j.state === 'done')).toBe(true)
    expect(most).toBe(2)
  })
})

describe('the way back', () => {
  test('a failure undoes in reverse, the half-done step too, and says that nothing is left', async () => {
    const deps: D = { did: [] }
    const { engine } = await rig([three], deps)
    const job = await engine.submit(three, { n: 13 }, by)
    const ended = await engine.wait(job.id, sure)
    expect(ended).toMatchObject({
      state: 'failed',
      failed_step: 'c',
      fault: { code: 'tool_failed', effect: 'none' },
      claims: [],
    })
    expect(deps.did).toEqual(['a', 'b', 'c', 'undo c', 'undo b', 'undo a'])
    expect(viewJob(ended, three as never).steps.map((s) => s.state)).toEqual(['undone', 'undone', 'failed'])
  })

  test('a skipped step is not undone', async () => {
    const deps: D = { did: [] }
    const job = defineJob<P, D>('skips.one', 1, parse, [
      step('a', { do: () => 1, undo: (c) => void c.deps.did.push('a') }),
      step('b', { do: () => 1, undo: (c) => void c.deps.did.push('b'), when: () => false }),
      step('c', { do: () => Promise.reject(bad()), undo: (c) => void c.deps.did.push('c') }),
      step('d', { do: () => 1, undo: (c) => void c.deps.did.push('d') }),
    ])
    const { engine } = await rig([job], deps)
    await engine.wait((await engine.submit(job, { n: 1 }, by)).id, sure)
    expect(deps.did).toEqual(['c', 'a'])
  })

  test('a mistake of ours is `internal`, without its text, and reaches the log of the daemon', async () => {
    const job = defineJob<P, D>('buggy.one', 1, parse, [step('a', { do: () => JSON.parse('{secret') })])
    const { engine, trouble } = await rig([job], { did: [] })
    const ended = await engine.wait((await engine.submit(job, { n: 1 }, by)).id, sure)
    expect(ended.fault?.code).toBe('internal')
    expect(JSON.stringify(ended)).not.toContain('secret')
    expect(String(trouble[0])).toContain('SyntaxError')
  })

  test('retries only what can be retried, and only as often as said', async () => {
    let tries = 0
    const make = (name: string, retryable: boolean) =>
      defineJob<P, D>(name, 1, parse, [
        step('a', {
          retry: { attempts: 3, base_ms: 1, cap_ms: 2 },
          do: (c) => {
            tries += 1
            expect(c.attempt).toBe(tries)
            throw bad('none', retryable)
          },
        }),
      ])
    const jobs = [make('can.retry', true), make('cannot.retry', false)]
    const { engine } = await rig(jobs, { did: [] })
    for (const [i, job] of jobs.entries()) {
      tries = 0
      await engine.wait((await engine.submit(job, { n: 1 }, by)).id, sure)
      expect(tries).toBe(i === 0 ? 3 : 1)
    }
  })

  test('cancel: the step is told, everything is undone', async () => {
    const deps: D = { did: [] }
    const { engine } = await rig([three], deps)
    const job = await engine.submit(three, { n: 99 }, by)
    await new Promise<void>((resolve) => {
      const off = engine.subscribe((e) => {
        if (e.type === 'progress' && e.live.step === 2 && e.live.doing === 'do') {
          off()
          resolve()
        }
      })
    })
    await engine.cancel(job.id)
    await engine.cancel(job.id)
    const ended = await engine.wait(job.id, sure)
    expect(ended).toMatchObject({ state: 'cancelled', fault: { code: 'cancelled', effect: 'none' } })
    expect(deps.did.slice(-3)).toEqual(['undo c', 'undo b', 'undo a'])
    await engine.cancel(job.id)
    const done = await engine.submit(three, { n: 1 }, by)
    await engine.wait(done.id, sure)
    await expect(engine.cancel(done.id)).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
  })

  test('an undo that fails is tried until it works, and shown meanwhile', async () => {
    let tries = 0
    const job = defineJob<P, D>('stuck.undo', 1, parse, [
      step('a', {
        do: () => Promise.reject(bad()),
        undo: () => {
          tries += 1
          if (tries < 6) throw bad()
        },
      }),
    ])
    const { engine } = await rig([job], { did: [] })
    const seen: JobRecord[] = []
    engine.subscribe((e) => {
      if (e.type === 'state') seen.push(e.job)
    })
    const ended = await engine.wait((await engine.submit(job, { n: 1 }, by)).id, sure)
    expect(ended.state).toBe('failed')
    expect(ended.attention).toBeUndefined()
    expect(seen.find((j) => j.attention)).toMatchObject({
      state: 'undoing',
      attention: { step: 'a', fault: { code: 'tool_failed' } },
    })
  })
})

describe('the point of no return', () => {
  const make = (name: string, fail: { pivot?: Error[]; after?: Error[] }, resolve = false) =>
    defineJob<P, D>(name, 1, parse, [
      step('before', { do: (c) => void c.deps.did.push('before'), undo: (c) => void c.deps.did.push('undo before') }),
      pivot('go', {
        do: async (c) => {
          c.deps.did.push('go')
          const error = fail.pivot?.shift()
          if (error) throw error
          await c.deps.gate
        },
      }),
      step('after', {
        do: (c) => {
          c.deps.did.push('after')
          const error = fail.after?.shift()
          if (error) throw error
        },
        ...(resolve && { resolve: (c) => void c.deps.did.push('resolve') }),
      }),
    ])

  test('a pivot that did nothing undoes; one that may be half done goes on', async () => {
    const none = make('pivot.none', { pivot: [bad('none')] })
    const half = make('pivot.half', { pivot: [bad('partial'), bad('partial', true)] })
    const deps: D = { did: [] }
    const { engine } = await rig([none, half], deps)
    expect((await engine.wait((await engine.submit(none, { n: 1 }, by)).id, sure)).state).toBe('failed')
    expect(deps.did.splice(0)).toEqual(['before', 'go', 'undo before'])
    expect((await engine.wait((await engine.submit(half, { n: 1 }, by)).id, sure)).state).toBe('done')
    expect(deps.did).toEqual(['before', 'go', 'go', 'go', 'after'])
  })

  test('after it a step is tried until it works, or resolved', async () => {
    const stubborn = make('after.retry', { after: [bad('partial', true), bad('none'), bad()] })
    const resolved = make('after.resolve', { after: [bad()] }, true)
    const deps: D = { did: [] }
    const { engine } = await rig([stubborn, resolved], deps)
    expect((await engine.wait((await engine.submit(stubborn, { n: 1 }, by)).id, sure)).state).toBe('done')
    expect(deps.did.splice(0)).toEqual(['before', 'go', 'after', 'after', 'after', 'after'])
    const ended = await engine.wait((await engine.submit(resolved, { n: 1 }, by)).id, sure)
    expect(ended.steps[2]).toMatchObject({ state: 'done', warning: { code: 'tool_failed' } })
    expect(deps.did).toEqual(['before', 'go', 'after', 'resolve'])
  })

  test('cancel is refused from there on', async () => {
    const gate = Promise.withResolvers<void>()
    const job = make('pivot.cancel', {})
    const { engine } = await rig([job], { did: [], gate: gate.promise })
    const reached = new Promise<void>((resolve) => {
      engine.subscribe((e) => {
        if (e.type === 'progress' && e.live.step === 1) resolve()
      })
    })
    const { id } = await engine.submit(job, { n: 1 }, by)
    await reached
    await expect(engine.cancel(id)).rejects.toMatchObject({ fault: { code: 'too_late' } })
    gate.resolve()
    expect((await engine.wait(id, sure)).state).toBe('done')
  })
})

describe('what is seen of it', () => {
  test('progress: percent by weight, at most every 100 ms, and the log', async () => {
    const job = defineJob<P, D>('talks.much', 1, parse, [
      step('copy', {
        weight: 3,
        do: async (c) => {
          for (let i = 0; i <= 1000; i += 1) c.progress({ done: i, total: 1000 })
          c.log('copied\nall of it \u0007')
        },
      }),
      step('rest', { do: (c) => c.progress(0.5) }),
    ])
    const { engine } = await rig([job], { did: [] })
    const events: JobEvent[] = []
    engine.subscribe((e) => events.push(e))
    const { id } = await engine.submit(job, { n: 1 }, by)
    const ended = await engine.wait(id, sure)
    const percents = events.flatMap((e) => (e.type === 'progress' ? [e.live.percent] : []))
    expect(percents.length).toBeLessThan(10)
    expect(percents).toContain(75)
    const { lines, next } = await engine.readLog(id, { from: 0, limit: 100 })
    expect(lines.map((l) => l.text)).toEqual(['step copy', 'copied', 'all of it \ufffd', 'step rest'])
    expect(await engine.readLog(id, { from: 2, limit: 1 })).toMatchObject({ lines: [{ seq: 2 }], next: 3, ended: true })
    expect(await engine.readLog(id, { from: next, limit: 10 })).toEqual({ lines: [], next, ended: true })
    expect(events.filter((e) => e.type === 'log')).toHaveLength(4)
    const shown = viewJob(ended, job as never)
    expect(shown).toMatchObject({ state: 'done', percent: 100, kind: 'talks.much' })
  })

  test('wait gives the job as it is when the time is over', async () => {
    const { engine } = await rig([three], { did: [] })
    const { id } = await engine.submit(three, { n: 99 }, by)
    expect((await engine.wait(id, { timeout_ms: 20 })).state).toBe('running')
    await expect(engine.wait(id, { timeout_ms: 5000, signal: AbortSignal.timeout(10) })).rejects.toThrow()
    await engine.cancel(id)
    await engine.wait(id, sure)
  })

  test('old jobs are pruned with their logs and idempotency notes', async () => {
    const { engine, store } = await rig([three], { did: [] }, { keepJobs: 2 })
    const ids: string[] = []
    for (let i = 0; i < 4; i += 1) {
      const { id } = await engine.submit(three, { n: 1 }, { ...by, idempotencyKey: `${i}` })
      await engine.wait(id, sure)
      ids.push(id)
    }
    expect((await engine.prune()).sort()).toEqual(ids.slice(0, 2).sort())
    const left = await store.range('job', { limit: 100 })
    expect(left.type === 'page' && left.items.map((r) => r.kind).sort()).toEqual([
      'job',
      'job',
      'job/idempotency',
      'job/idempotency',
    ])
  })
})
