import { describe, expect, it } from 'vitest'
import type { LostEvents, QmpEvent } from '@wadah/qmp/client'
import { collect, connected, failure } from './helpers.ts'

const names = (events: (QmpEvent | LostEvents)[]) => events.map((event) => event.event ?? `lost ${event.lost}`)

describe('waitFor', () => {
  it('does not miss an event that comes before the answer of the command that causes it', async () => {
    const { qmp } = await connected({ handlers: { stop: [{ event: 'STOP' }, { return: {} }] } })
    const stopped = qmp.waitFor('STOP', undefined, { timeout_ms: 5_000 })
    await qmp.execute('stop')
    await expect(stopped).resolves.toMatchObject({ event: 'STOP', data: {} })
  })

  it('takes the first that the predicate accepts, of any of the names', async () => {
    const { qemu, qmp } = await connected()
    const wanted = qmp.waitFor(['BLOCK_JOB_COMPLETED', 'BLOCK_JOB_ERROR'], ({ data }) => data.device === 'b', {
      timeout_ms: 5_000,
    })
    qemu.emit('BLOCK_JOB_COMPLETED', { device: 'a' })
    qemu.emit('STOP')
    qemu.emit('BLOCK_JOB_ERROR', { device: 'b' })
    qemu.emit('BLOCK_JOB_COMPLETED', { device: 'b' })
    await expect(wanted).resolves.toMatchObject({ event: 'BLOCK_JOB_ERROR', data: { device: 'b' } })
  })

  it('ends by deadline, signal, predicate and the end of the connection', async () => {
    const { qemu, qmp } = await connected()
    expect((await failure(qmp.waitFor('STOP', undefined, { timeout_ms: 1 }))).kind).toBe('timeout')
    const signal = AbortSignal.abort()
    expect((await failure(qmp.waitFor('STOP', undefined, { timeout_ms: 1_000, signal }))).kind).toBe('aborted')
    const bug = qmp.waitFor(
      'STOP',
      () => {
        throw new Error('bug')
      },
      { timeout_ms: 5_000 },
    )
    qemu.emit('STOP')
    await expect(bug).rejects.toThrow('bug')
    // Nobody awaits this one: it must not surface as an unhandled rejection.
    void qmp.waitFor('STOP', undefined, { timeout_ms: 60_000 })
    await qmp.close()
    expect((await failure(qmp.waitFor('STOP', undefined, { timeout_ms: 1_000 }))).kind).toBe('closed')
  })
})

describe('subscribe and on', () => {
  it('calls in order until unsubscribed, even from within', async () => {
    const { qemu, qmp } = await connected()
    const seen: string[] = []
    const off = qmp.subscribe(({ event }) => {
      seen.push(event)
      if (event === 'RESUME') off()
    })
    qmp.on('STOP', ({ event }) => seen.push(`on ${event}`))
    for (const event of ['STOP', 'RESUME', 'STOP']) qemu.emit(event)
    await qmp.execute('query-status')
    expect(seen).toEqual(['STOP', 'on STOP', 'RESUME', 'on STOP'])
    off()
  })

  it('does not call one that an earlier one has just unsubscribed', async () => {
    const { qemu, qmp } = await connected()
    const seen: string[] = []
    qmp.subscribe(() => off())
    const off = qmp.subscribe(({ event }) => seen.push(event))
    qemu.emit('STOP')
    await qmp.execute('query-status')
    expect(seen).toEqual([])
  })
})

describe('events', () => {
  it('holds events from the call on, and ends with the connection', async () => {
    const { qemu, qmp } = await connected()
    const stream = qmp.events(new AbortController().signal)
    qemu.emit('STOP')
    qemu.emit('RESUME')
    await qmp.execute('query-status')
    await qmp.close()
    expect(names(await collect(stream))).toEqual(['STOP', 'RESUME'])
    expect(await collect(qmp.events(new AbortController().signal))).toEqual([])
  })

  it('marks where a slow reader lost some, and goes on after it', async () => {
    const { qemu, qmp } = await connected()
    const abort = new AbortController()
    const stream = qmp.events(abort.signal, 2)
    for (const event of ['STOP', 'RESUME', 'STOP', 'STOP', 'STOP']) qemu.emit(event)
    await qmp.execute('query-status')
    const first = [await stream.next(), await stream.next()]
    qemu.emit('WAKEUP')
    await qmp.execute('query-status')
    abort.abort()
    const rest = await collect(stream)
    expect(names([...first.map(({ value }) => value), ...rest])).toEqual(['STOP', 'RESUME', 'lost 3', 'WAKEUP'])
  })

  it('keeps no more than its limit in a flood', async () => {
    const { qemu, qmp } = await connected()
    const stream = qmp.events(new AbortController().signal, 10)
    for (let n = 0; n < 20_000; n += 1) qemu.emit('RTC_CHANGE', { offset: n, 'qom-path': '/' })
    await qmp.execute('query-status')
    await qmp.close()
    const events = await collect(stream)
    expect(events.length).toBe(11)
    expect(events.at(-1)).toEqual({ event: null, lost: 19_990 })
  })

  it('ends a waiting reader when the signal fires, and when the loop is left', async () => {
    const { qemu, qmp } = await connected()
    const abort = new AbortController()
    const next = qmp.events(abort.signal).next()
    abort.abort()
    await expect(next).resolves.toMatchObject({ done: true })
    const stream = qmp.events(new AbortController().signal)
    qemu.emit('STOP')
    qemu.emit('STOP')
    for await (const _ of stream) break
    expect((await stream.next()).done).toBe(true)
    expect((await qmp.events(AbortSignal.abort()).next()).done).toBe(true)
  })
})
