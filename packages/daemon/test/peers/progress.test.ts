/** Progress of another host's jobs: as it comes, over mutual TLS; again after a break; never more than is read. */
import { once } from 'node:events'
import { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { type JobRecord, jobKind } from '@wadah/cluster/jobs/record'
import type { JobProgress } from '@wadah/cluster/services'
import { CachedView } from '@wadah/store/cache'
import { put } from '@wadah/store/store'
import { FakeClock } from '@wadah/store/testing/clock'
import { openMemoryStore } from '@wadah/store/testing/memory'
import fc from 'fast-check'
import { expect, onTestFinished, test, vi } from 'vitest'
import { PeerClient } from '../../src/peers/client.ts'
import { PeerServer } from '../../src/peers/listen.ts'
import { AllProgress, PROGRESS_PATH, progressHere, progressOf } from '../../src/peers/progress.ts'
import { A, authorities, B, certificatesOf, freePort } from '../cluster/kit.ts'

/** Jobs that tell what they are told to tell. */
function fakeJobs(under_way: JobProgress[] = []) {
  const listeners = new Set<(p: JobProgress) => void>()
  return {
    tell: (p: JobProgress) => listeners.forEach((listener) => listener(p)),
    watchers: () => listeners.size,
    underWay: () => under_way,
    subscribe: (listener: (p: JobProgress) => void) => {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
  }
}

/** The host A, which is watched, and B, where somebody watches. */
async function setUp(under_way: JobProgress[] = []) {
  const by = await authorities()
  const [a, b] = await Promise.all([certificatesOf(by, A), certificatesOf(by, B)])
  const store = openMemoryStore()
  const view = await CachedView.open(store, {})
  onTestFinished(() => view.close())
  let n = 0
  const job = async (id: string, host: string, state: JobRecord['state'] = 'running') => {
    const write = put(jobKind, id, { id, state, executor: { host, fence: 1 } } as JobRecord)
    const { revision } = await store.txn([], [write], `t${n++}`)
    await view.waitFor(revision)
  }
  const clocks = { a: new FakeClock(), b: new FakeClock() }
  const there = fakeJobs(under_way)
  const here = fakeJobs()
  const opened: Duplex[] = []
  const serve = progressHere(there, clocks.a)
  const server = new PeerServer(a, {
    checkSecret: () => undefined,
    join: async () => ({}),
    asked: {},
    opened: {
      [PROGRESS_PATH]: async (query, host, socket) => {
        opened.push(socket)
        await serve(query, host, socket)
      },
    },
    api: () => undefined,
    isHost: (id) => id === A || id === B,
    log: () => undefined,
  })
  const port = await freePort()
  await server.listen('127.0.0.1', port)
  onTestFinished(() => server.close())
  const ports = { peer: port, etcd_client: 1, etcd_peer: 1 }
  const client = new PeerClient({
    certificates: () => b,
    host: () => ({ schema: 1, id: A, name: 'a', created_at: '', address: '127.0.0.1', ports }),
  })
  onTestFinished(() => client.close())
  const all = new AllProgress({
    jobs: here,
    own: B,
    view,
    clock: clocks.b,
    open: (host, path, signal) => client.open(host, path, signal),
  })
  onTestFinished(() => all.close())
  const seen: JobProgress[] = []
  const watch = () => all.subscribe((p) => seen.push(p))
  return { job, there, here, opened, clocks, watch, seen }
}
const at = (job: string, percent: number): JobProgress => ({ job, step: 'move', percent })
const soon = (what: () => unknown) => vi.waitFor(() => expect(what()).toBeTruthy(), { timeout: 5_000, interval: 10 })

test('first how far they are, then every change, beside the own; nobody watches: nothing is open', async () => {
  const { job, there, here, opened, watch, seen } = await setUp([at('job-1', 10)])
  await job('job-1', A)
  await job('job-own', B)
  expect(opened).toEqual([])
  const off = watch()
  await soon(() => seen.length === 1)
  there.tell(at('job-1', 20))
  here.tell(at('job-own', 5))
  await soon(() => seen.length === 3)
  expect(seen.toSorted((x, y) => x.percent - y.percent)).toEqual([at('job-own', 5), at('job-1', 10), at('job-1', 20)])
  expect(opened).toHaveLength(1)
  off()
  await soon(() => there.watchers() === 0)
  expect(here.watchers()).toBe(0)
})

test('a job that begins later opens the stream; the end of the last one closes it', async () => {
  const { job, there, opened, watch, seen } = await setUp()
  watch()
  await job('job-1', A)
  await soon(() => there.watchers() === 1)
  there.tell(at('job-1', 50))
  await soon(() => seen.length === 1)
  await job('job-2', A)
  await job('job-1', A, 'done')
  there.tell(at('job-2', 60))
  await soon(() => seen.length === 2)
  await job('job-2', A, 'failed')
  await soon(() => there.watchers() === 0)
  expect(opened).toHaveLength(1)
})

test('a stream that breaks, or on which nothing is heard, is opened again', async () => {
  const { job, there, opened, clocks, watch, seen } = await setUp()
  await job('job-1', A)
  watch()
  await soon(() => there.watchers() === 1)
  opened[0]?.destroy()
  await soon(() => there.watchers() === 0)
  await soon(() => clocks.b.waiting === 1)
  clocks.b.advance(500)
  await soon(() => there.watchers() === 1)
  there.tell(at('job-1', 30))
  await soon(() => seen.length === 1)
  // A line that was cut: no beat comes.
  clocks.b.advance(41_000)
  await soon(() => there.watchers() === 0)
  await soon(() => clocks.b.waiting === 1)
  clocks.b.advance(1_000)
  await soon(() => there.watchers() === 1)
  expect(opened).toHaveLength(3)
})

test('of jobs that it does not carry out a host is not believed', async () => {
  const { job, there, watch, seen } = await setUp()
  await job('job-1', A)
  await job('job-own', B)
  watch()
  await soon(() => there.watchers() === 1)
  for (const id of ['job-own', 'job-nowhere', 'job-1']) there.tell(at(id, 40))
  await soon(() => seen.length === 1)
  expect(seen).toEqual([at('job-1', 40)])
})

test('for a host that does not read a little waits, and then it is let go', async () => {
  const clock = new FakeClock()
  const jobs = fakeJobs()
  const socket = new Duplex({ read: () => undefined, write: () => undefined })
  const served = progressHere(jobs, clock)(new URLSearchParams(), B, socket)
  for (let i = 0; i < 10_000; i++) jobs.tell(at('job-1', i % 100))
  expect(socket.writableLength).toBeLessThan(70 * 1024)
  clock.advance(15_000)
  if (!socket.closed) await once(socket, 'close')
  await served
  expect(jobs.watchers()).toBe(0)
  await delay(0)
  expect(clock.waiting).toBe(0)
})

test('whatever is on a line, it is progress or nothing', () => {
  expect(progressOf(JSON.stringify({ ...at('job-1', 3), more: 1 }))).toEqual(at('job-1', 3))
  for (const line of ['', '{}', '[]', 'null', '7', '{"job":1}', JSON.stringify(at('j', 101)), `"${'x'.repeat(2000)}"`])
    expect(progressOf(line)).toBeUndefined()
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (line) => {
      const p = progressOf(line)
      expect(p === undefined || (p.percent >= 0 && p.percent <= 100)).toBe(true)
    }),
  )
})
