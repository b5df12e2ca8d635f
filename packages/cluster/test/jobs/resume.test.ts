import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fault, WadahError } from '@wadah/api/fault'
import { type AnyDefinition, defineJob, step } from '@wadah/cluster/jobs/define'
import { Lanes } from '@wadah/cluster/jobs/lanes'
import { JobLog, logPath, newestHalf, readJobLog } from '@wadah/cluster/jobs/log'
import { percentOf, Throttle, toFraction } from '@wadah/cluster/jobs/progress'
import { claimKind, jobKind } from '@wadah/cluster/jobs/record'
import { put, unchanged } from '@wadah/store/store'
import { FakeClock } from '@wadah/store/testing/clock'
import { describe, expect, test } from 'vitest'
import { by, rig } from './rig.ts'

type D = { hang: boolean; did: string[] }
const parse = (v: unknown) => v as { n: number }
const sure = { timeout_ms: 5000 }
const make = (version = 1, onCrash: 'continue' | 'undo' = 'continue') =>
  defineJob<{ n: number }, D>(
    'may.hang',
    version,
    parse,
    [
      step('a', { do: (c) => void c.deps.did.push('a'), undo: (c) => void c.deps.did.push('undo a') }),
      step('b', {
        do: async (c) => {
          c.deps.did.push('b')
          if (c.deps.hang) await new Promise((_, no) => c.signal.addEventListener('abort', () => no(c.signal.reason)))
        },
        undo: (c) => void c.deps.did.push('undo b'),
      }),
    ],
    { onCrash, claims: (_, t) => [`vm/${t.id}`] },
  )

async function hung(definitions: AnyDefinition<D>[]) {
  const deps: D = { hang: true, did: [] }
  const r = await rig<D>(definitions, deps)
  const job = await r.engine.submit(definitions[0] as AnyDefinition<D>, { n: 1 }, by)
  while (!deps.did.includes('b')) await new Promise((resolve) => setTimeout(resolve, 2))
  await r.engine.stop()
  deps.hang = false
  return { ...r, deps, id: job.id }
}

describe('after a stop', () => {
  test('the job is as it was, takes nothing more, and is carried on', async () => {
    const { engine, another, store, deps, id } = await hung([make()])
    expect((await store.get(jobKind, id))?.value).toMatchObject({ state: 'running', steps: [{ name: 'a' }] })
    await expect(engine.submit(make(), { n: 1 }, by)).rejects.toMatchObject({ fault: { code: 'unavailable' } })
    const next = another()
    expect(await next.resume()).toEqual({ resumed: [id], left: [], claimsDropped: [] })
    expect((await next.wait(id, sure)).state).toBe('done')
    expect(deps.did).toEqual(['a', 'b', 'b'])
    expect(await next.resume()).toEqual({ resumed: [], left: [], claimsDropped: [] })
    const { lines } = await next.readLog(id, { from: 0, limit: 10 })
    expect(lines.map((l) => `${l.seq} ${l.text}`)).toEqual(['0 step a', '1 step b', '2 resumed', '3 step b'])
  })

  test('or undone, where its definition says so', async () => {
    const { another, deps, id } = await hung([make(1, 'undo')])
    const next = another()
    await next.resume()
    expect(await next.wait(id, sure)).toMatchObject({ state: 'failed', fault: { code: 'unavailable', effect: 'none' } })
    expect(deps.did).toEqual(['a', 'b', 'undo b', 'undo a'])
  })

  test('a host that does not know the definition, and another host, leave it alone; its claim stays', async () => {
    const { another, id, store } = await hung([make()])
    expect((await another({ definitions: [make(2)] }).resume()).left).toEqual([{ id, why: 'unknown-definition' }])
    expect((await another({ hostId: 'host-b' }).resume()).left).toEqual([{ id, why: 'other-host' }])
    expect(await store.get(claimKind, `vm/${by.target.id}`)).toBeDefined()
    await expect(another({ hostId: 'host-b' }).cancel(id)).rejects.toMatchObject({ fault: { code: 'not_owner' } })
    const unreadable = {
      ...make(),
      parse: () => {
        throw new WadahError(fault('invalid', 'no'))
      },
    }
    expect((await another({ definitions: [unreadable] }).resume()).left).toEqual([{ id, why: 'unreadable-parameters' }])
    await another().resume()
  })
})

test('claims of no job are dropped at start-up', async () => {
  const { engine, store } = await rig([make()], { hang: false, did: [] })
  const claim = { schema: 1 as const, job: 'job-aaaaaaaaaa', name: 'x', since_ms: 0 }
  await store.txn([], [put(claimKind, 'vm/ghost', claim)], 't')
  expect((await engine.resume()).claimsDropped).toEqual(['vm/ghost'])
})

test('an executor whose job was taken over stops and touches it no more', async () => {
  const deps: D = { hang: true, did: [] }
  const { engine, store } = await rig([make()], deps)
  const { id } = await engine.submit(
    engine.definitionOf({ name: 'may.hang', version: 1 }) as AnyDefinition<D>,
    { n: 1 },
    by,
  )
  while (!deps.did.includes('b')) await new Promise((resolve) => setTimeout(resolve, 2))
  const rec = await store.get(jobKind, id)
  if (!rec) throw new Error('lost')
  const taken = { ...rec.value, executor: { host: 'host-b', fence: 2 } }
  await store.txn([unchanged(rec)], [put(jobKind, id, taken)], 'take')
  await engine.cancel(id).catch(() => undefined)
  await engine.wait(id, sure)
  expect((await store.get(jobKind, id))?.value).toEqual(taken)
  expect(deps.did).toEqual(['a', 'b'])
})

describe('the log file', () => {
  const fresh = async (bytesMax = 1000) => {
    const dir = await mkdtemp(join(tmpdir(), 'wadah-log-'))
    const path = logPath(dir, 'job-aaaaaaaaaa')
    return { dir, path, log: new JobLog({ path, bytesMax, now_ms: () => 5, onLine: () => undefined }) }
  }
  test('is bounded, drops the oldest half, keeps its line numbers', async () => {
    const { dir, path, log } = await fresh()
    for (let i = 0; i < 200; i += 1) {
      log.add(`line ${i}`)
      if (i % 10 === 9) await log.flush()
      if (i % 10 === 9) expect(statSync(path).size).toBeLessThanOrEqual(1000)
    }
    const { lines, next } = await readJobLog(path, { from: 0, limit: 1000 })
    expect(next).toBe(200)
    expect(lines.length).toBeLessThan(70)
    for (const line of lines) expect(line.text).toBe(`line ${line.seq}`)
    const later = new JobLog({ path, bytesMax: 1000, now_ms: () => 6, onLine: () => undefined })
    later.add('after a restart')
    await later.flush()
    expect((await readJobLog(path, { from: 200, limit: 10 })).lines).toEqual([
      { seq: 200, at_ms: 6, text: 'after a restart' },
    ])
    expect(statSync(path).mode & 0o777).toBe(0o600)
    await rm(dir, { recursive: true })
  })
  test('long lines are cut, nothing follows a link', async () => {
    const { dir, path, log } = await fresh(100_000)
    log.add('x'.repeat(10_000))
    await log.flush()
    expect((await readJobLog(path, { from: 0, limit: 1 })).lines[0]?.text.length).toBe(4098)
    mkdirSync(join(dir, 'two'))
    writeFileSync(join(dir, 'secret'), '0 0 secret\n')
    const linked = logPath(join(dir, 'two'), 'job-aaaaaaaaaa')
    symlinkSync(join(dir, 'secret'), linked)
    const through = new JobLog({ path: linked, bytesMax: 1000, now_ms: () => 5, onLine: () => undefined })
    through.add('overwritten')
    await through.flush()
    expect(readFileSync(join(dir, 'secret'), 'utf8')).toBe('0 0 secret\n')
    await expect(readJobLog(linked, { from: 0, limit: 1 })).rejects.toThrow()
    expect(readdirSync(join(dir, 'two'))).toHaveLength(1)
    expect(() => logPath(dir, '../../etc/passwd')).toThrow(TypeError)
    await rm(dir, { recursive: true })
  })
  test('half of what has no line end is nothing', () => {
    expect(newestHalf(Buffer.from('no end')).toString()).toBe('')
    expect(newestHalf(Buffer.from('one\ntwo\nthree\n')).toString()).toBe('three\n')
  })
})

describe('progress', () => {
  test('fractions stay within bounds', () => {
    expect([0.5, -1, 2, Number.NaN].map((n) => toFraction(n).fraction)).toEqual([0.5, 0, 1, 0])
    expect(toFraction({ done: 5, total: 20 })).toEqual({ fraction: 0.25, done: 5, total: 20, unit: 'bytes' })
    expect(toFraction({ done: 5, total: 0 }).fraction).toBe(0)
  })
  test('percent by weight', () => {
    const d = make() as AnyDefinition<never>
    expect([percentOf(d, 0, 0), percentOf(d, 0, 0.5), percentOf(d, 1, 0.5), percentOf(d, 2, 0)]).toEqual([
      0, 25, 75, 100,
    ])
  })
  test('the first at once, then one per 100 ms, the last never lost', () => {
    const clock = new FakeClock()
    const at: number[] = []
    const throttle = new Throttle(clock, () => at.push(clock.monotonic_ms()))
    for (let i = 0; i < 25; i += 1) {
      throttle.call()
      clock.advance(10)
    }
    clock.advance(1000)
    expect(at).toEqual([0, 100, 200, 300])
    expect(clock.waiting).toBe(0)
  })
})

test('a lane gives places in the order asked, also when one gives up waiting', async () => {
  const lanes = new Lanes({ narrow: 1 }, 5)
  const never = new AbortController().signal
  const order: string[] = []
  const leave = await lanes.enter('narrow', never)
  const impatient = new AbortController()
  const second = lanes.enter('narrow', impatient.signal).catch(() => order.push('gave up'))
  const third = lanes.enter('narrow', never).then((l) => {
    order.push('third')
    return l
  })
  impatient.abort(new Error('enough'))
  await second
  leave()
  leave()
  const leaveThird = await third
  expect(order).toEqual(['gave up', 'third'])
  leaveThird()
  ;(await lanes.enter('narrow', never))()
})
