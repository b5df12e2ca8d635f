import { del, put } from '@wadah/store/store'
import { FakeClock } from '@wadah/store/testing/clock'
import { type ServerEvent, parseEvents } from '@wadah/api/client'
import { expect, it, onTestFinished } from 'vitest'
import { type EventOptions, EventStreams } from '../../src/http/events.ts'
import { mapEvent, testServer } from './harness.ts'

const vm = { name: 'vm' }
const other = { name: 'other' }
let token = 0
const nextToken = () => `t-${++token}`

async function setUp(more: Partial<EventOptions> = {}) {
  const server = await testServer()
  const clock = new FakeClock()
  let progress: (p: { job: string; step: string; percent: number }) => void = () => undefined
  const trouble: unknown[] = []
  const streams = new EventStreams({
    store: server.store,
    view: server.view,
    mapEvent,
    jobs: {
      subscribe: (listener) => {
        progress = listener
        return () => undefined
      },
    },
    clock,
    stillHolds: () => true,
    onTrouble: (error) => trouble.push(error),
    ...more,
  })
  onTestFinished(() => {
    streams.close()
    expect(trouble).toEqual([])
  })
  const commit = async (...writes: Parameters<typeof server.store.txn>[1]) => {
    const { revision } = await server.store.txn([], writes, nextToken())
    await server.view.waitFor(revision)
    return revision
  }
  const open = (o: { lastEventId?: string; resource?: string; identity?: never } = {}) => {
    const gone = new AbortController()
    const body = streams.open({
      identity: o.identity,
      resource: o.resource,
      lastEventId: o.lastEventId,
      signal: gone.signal,
    })
    const raw: string[] = []
    const tapped = (async function* () {
      for await (const piece of body) {
        raw.push(Buffer.from(piece).toString())
        yield piece
      }
    })()
    return { events: parseEvents(tapped), raw, gone, body }
  }
  return {
    server,
    streams,
    clock,
    commit,
    open,
    progress: () => progress,
    id: (r: number) => `${server.store.id}.${r}`,
  }
}

async function take(events: AsyncIterator<ServerEvent>, n: number): Promise<ServerEvent[]> {
  const all: ServerEvent[] = []
  while (all.length < n) {
    const next = await events.next()
    if (next.done) break
    all.push(next.value)
  }
  return all
}
const data = (e: ServerEvent | undefined) => JSON.parse(e?.data ?? 'null')

it('tells every change of a known kind, in order, with an id', async () => {
  const t = await setUp()
  const { events } = t.open()
  const first = take(events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  const r1 = await t.commit(put(vm, 'vm-1', { a: 1 }))
  await t.commit(put(other, 'x', 1))
  const r3 = await t.commit(del(vm, 'vm-1'))
  const all = [...(await first), ...(await take(events, 1))]
  expect(all.map((e) => [e.id, e.event])).toEqual([
    [t.id(r1), 'change'],
    [t.id(r3), 'change'],
  ])
  expect(all.map(data)).toEqual([
    { id: t.id(r1), resource: 'vm', resource_id: 'vm-1', change: 'put' },
    { id: t.id(r3), resource: 'vm', resource_id: 'vm-1', change: 'delete' },
  ])
})

it('resumes after the last event seen and misses none', async () => {
  const t = await setUp()
  const r1 = await t.commit(put(vm, 'vm-1', 1))
  await t.commit(put(vm, 'vm-2', 1))
  await t.commit(put(vm, 'vm-3', 1))
  const { events } = t.open({ lastEventId: t.id(r1) })
  expect((await take(events, 2)).map((e) => data(e).resource_id)).toEqual(['vm-2', 'vm-3'])
})

it('gives changes of one revision an id that resumes safely between them', async () => {
  const t = await setUp()
  const r0 = await t.commit(put(vm, 'vm-0', 1))
  const r = await t.commit(put(vm, 'vm-1', 1), put(vm, 'vm-2', 1), put(other, 'x', 1))
  const { events, raw } = t.open({ lastEventId: t.id(r0) })
  const both = await take(events, 2)
  expect(both.map((e) => data(e).id)).toEqual([t.id(r - 1), t.id(r)])
  expect(raw.join('').match(/^id: /gm)).toHaveLength(1)
  expect(both[1]?.id).toBe(t.id(r))
})

it('filters by resource, and refuses one that there is not', async () => {
  const t = await setUp()
  const r0 = await t.commit(put(vm, 'vm-0', 1))
  await t.commit(put(vm, 'vm-1', 1))
  await t.commit(put({ name: 'job' }, 'job-1', 1))
  const { events } = t.open({ lastEventId: t.id(r0), resource: 'job, image' })
  expect((await take(events, 1)).map((e) => data(e).resource_id)).toEqual(['job-1'])
  expect(() => t.open({ resource: 'vms' })).toThrow(/did you mean "vm"/)
})

it.each(['elsewhere.5', 'nonsense', '.', 'x.-1'])(
  'an id that is not ours (%s) is answered with a reset',
  async (lastEventId) => {
    const t = await setUp()
    const r = await t.commit(put(vm, 'vm-1', 1))
    const { events } = t.open({ lastEventId })
    const [reset] = await take(events, 1)
    expect(reset).toMatchObject({ event: 'reset', id: t.id(r) })
  },
)

it('an id of the future or of long ago is answered with a reset, and the stream goes on', async () => {
  const t = await setUp()
  const r = await t.commit(put(vm, 'vm-1', 1))
  const { events } = t.open({ lastEventId: t.id(r + 1000) })
  const [reset] = await take(events, 1)
  expect(reset).toMatchObject({ event: 'reset', id: t.id(r) })
  await t.commit(put(vm, 'vm-2', 1))
  expect((await take(events, 1)).map((e) => data(e).resource_id)).toEqual(['vm-2'])
})

it('shows that it lives, and carries its place along', async () => {
  const t = await setUp()
  const { body } = t.open({ resource: 'image' })
  const pieces = body[Symbol.asyncIterator]()
  const greeting = Buffer.from((await pieces.next()).value).toString()
  expect(greeting).toMatch(/^retry: 2000\nid: .*\n\n$/)
  const next = pieces.next()
  const r = await t.commit(put(vm, 'vm-1', 1))
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.clock.advance(15_000)
  expect(Buffer.from((await next).value).toString()).toBe(`: still here\nid: ${t.id(r)}\n\n`)
})

it('passes progress on, without an id', async () => {
  const t = await setUp()
  const { events, raw } = t.open()
  const first = take(events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  t.progress()({ job: 'job-1', step: 'volumes', percent: 40 })
  const [event] = await first
  expect(event?.event).toBe('progress')
  expect(data(event)).toEqual({ job: 'job-1', step: 'volumes', percent: 40 })
  expect(raw.at(-1)).not.toContain('id:')
})

it('lets a client go that takes nothing', async () => {
  const t = await setUp({ bufferBytes: 4096 })
  const { body } = t.open()
  const pieces = body[Symbol.asyncIterator]()
  await pieces.next()
  for (let n = 0; n < 100; n++) await t.commit(put(vm, `vm-${n}`, 1))
  const last = Buffer.from((await pieces.next()).value).toString()
  expect(last).toContain('event: reset')
  expect((await pieces.next()).done).toBe(true)
})

it('ends when the login does, when the client goes and when the daemon stops', async () => {
  let holds = true
  const t = await setUp({ stillHolds: () => holds })
  const identity = { subject: { kind: 'token', id: 'tok-1', name: 'x', scope: 'read' } } as never
  const login = t.open({ identity })
  const first = take(login.events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  holds = false
  await t.commit(put(vm, 'vm-1', 1))
  expect(await first).toEqual([])
  const gone = t.open()
  const second = take(gone.events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  gone.gone.abort()
  expect(await second).toEqual([])
  const third = take(t.open().events, 1)
  await new Promise((resolve) => setImmediate(resolve))
  t.streams.close()
  expect(await third).toEqual([])
})

it('limits how many there are', async () => {
  const t = await setUp({ most: 3, mostEach: 2 })
  t.open()
  t.open()
  expect(() => t.open()).toThrow(/too many event streams/)
})
