import { expect, test, vi } from 'vitest'
import { moveOut } from '../../src/migration/source.ts'
import { Talk } from '../../src/migration/talk.ts'
import { wire } from '../../src/migration/testing.ts'
import { Turns } from '../../src/migration/turns.ts'
import { JOB, World } from './kit.ts'

const never = new AbortController().signal
const talk = () => new Talk(wire().b, () => Date.now())

test('so many at a time, then in the order they came; one that goes keeps no place', async () => {
  const turns = new Turns(2)
  const leave = [await turns.take(talk(), 'a', never), await turns.take(talk(), 'b', never)]
  const impatient = new AbortController()
  const got: string[] = []
  const gaveUp = turns.take(talk(), 'c', impatient.signal).catch(() => got.push('c gave up'))
  const fourth = turns.take(talk(), 'd', never).then((l) => {
    got.push('d')
    return l
  })
  impatient.abort(new Error('gone'))
  await gaveUp
  expect(got).toEqual(['c gave up'])
  leave[0]?.()
  leave[0]?.()
  await fourth
  expect(got).toEqual(['c gave up', 'd'])
})

test('a move waits for its turn over there, says so once, and goes then', async () => {
  const w = new World()
  const turns = new Turns(1)
  const leave = await turns.take(talk(), 'another', never)
  w.arrivals = w.daemon({ turns })
  const [log, waited]: [string[], number[]] = [[], []]
  const stream = wire()
  const ports = w.ports(stream, { log: (line) => log.push(line), waited: (ms) => void waited.push(ms) })
  const move = moveOut(w.order, ports, never)
  await vi.waitFor(() => expect(stream.said.filter((s) => s.message.type === 'wait').length).toBeGreaterThan(1), 10_000)
  expect(w.calls).toEqual(['leave'])
  expect(log.filter((line) => line.includes('waits for its turn'))).toEqual([
    'the other host takes 1 at a time: it waits for its turn',
  ])
  leave()
  await move
  expect(w).toMatchObject({ source: 'gone', target: 'running', placement: { host: 'b' } })
  expect(waited[0]).toBeGreaterThan(1000)
  // The place is free again.
  await w.arrivals.get(JOB)?.over
  ;(await turns.take(talk(), 'next', never))()
})

test('one whose guest ends while it waits is not waited for', async () => {
  const w = new World()
  const turns = new Turns(1)
  const leave = await turns.take(talk(), 'another', never)
  w.arrivals = w.daemon({ turns })
  const stream = wire()
  const move = moveOut(w.order, w.ports(stream), never)
  await vi.waitFor(() => expect(w.arrivals.get(JOB)).toBeDefined())
  w.source = 'gone'
  await expect(move).rejects.toMatchObject({ fault: { code: 'wrong_state', effect: 'partial' } })
  leave()
  ;(await turns.take(talk(), 'next', never))()
})

test('what can not be taken back keeps no place of those that come', async () => {
  const w = new World()
  const turns = new Turns(1)
  w.arrivals = w.daemon({ turns, undone: async () => Promise.reject(new Error('the store is away')) })
  const at = (phase: string) => {
    if (phase === 'copy') throw new Error('the line broke')
  }
  await expect(moveOut(w.order, w.ports(wire(), { at }), never)).rejects.toThrow()
  ;(await turns.take(talk(), 'next', AbortSignal.timeout(5_000)))()
})

test('one that is cancelled while it waits stays where it is', async () => {
  const w = new World()
  const turns = new Turns(1)
  const leave = await turns.take(talk(), 'another', never)
  w.arrivals = w.daemon({ turns })
  const cancel = new AbortController()
  const move = moveOut(w.order, w.ports(wire()), cancel.signal)
  await vi.waitFor(() => expect(w.arrivals.get(JOB)).toBeDefined())
  cancel.abort(new Error('cancelled'))
  await expect(move).rejects.toThrow()
  await vi.waitFor(() => expect(w.arrivals.get(JOB)).toBeUndefined())
  expect(w).toMatchObject({ source: 'running', target: 'none', placement: { host: 'a', sealed: false } })
  leave()
  ;(await turns.take(talk(), 'next', never))()
})
