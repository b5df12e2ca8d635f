import { describe, expect, test } from 'vitest'
import { Books } from '../src/books.ts'
import { Compiled } from '../src/compiled.ts'
import { accept, place, placeIn } from '../src/place.ts'
import type { Snapshot } from '../src/snapshot.ts'
import { NOW, host, rule, snapshot, vm, without } from './kit/world.ts'

const load = (cores: number, age_ms = 0) => ({ load: { cores, at_ms: NOW - age_ms } })
const chosen = (s: Snapshot, o = {}) => place(s, vm('new', undefined, o)).chosen?.host

describe('the host that is chosen', () => {
  test('has the most memory left', () => {
    expect(chosen(snapshot([host('a'), host('b')], [vm('x', 'a')]))).toBe('b')
  })
  test('has the most CPU left where memory is the same', () => {
    expect(chosen(snapshot([host('a', load(6)), host('b', load(2))], []))).toBe('b')
  })
  test('is judged by the fuller of the two', () => {
    const s = snapshot([host('a', load(7)), host('b', load(1))], [vm('x', 'b', { memory_mib: 4096 })])
    expect(chosen(s)).toBe('b')
  })
  test('is the first by id where all is the same', () => {
    expect(chosen(snapshot([host('c'), host('a'), host('b')], []))).toBe('a')
  })
  test('is rather one whose load is known', () => {
    expect(chosen(snapshot([without(host('a'), 'load'), host('b', load(2))], []))).toBe('b')
  })
  test('old measurements count no less than the VMs that are there suggest', () => {
    const busy = [vm('x', 'a', { cpus: 8, memory_mib: 512 }), vm('y', 'b', { cpus: 8, memory_mib: 512 })]
    expect(chosen(snapshot([host('a', load(0, 3_600_000)), host('b', load(1))], busy))).toBe('b')
  })
  test('counts those that are on their way to it', () => {
    const coming = vm('x', 'a', { ...load(6), cpus: 8 })
    const s = snapshot([host('a', load(6)), host('b', load(0)), host('c', load(3))], [coming], {
      moving: [{ vm: 'x', from: 'a', to: 'b' }],
    })
    expect(chosen(s)).toBe('c')
  })
  test('counts stopped VMs a little, so that a row of them spreads', () => {
    expect(chosen(snapshot([host('a'), host('b')], [vm('x', 'a', { state: 'stopped' })]), { state: 'stopped' })).toBe(
      'b',
    )
  })
  test('keeps soft rules before it looks at load, and breaks them before it gives up', () => {
    const hosts = [host('a', load(7)), host('b', load(0))]
    const s = snapshot(hosts, [vm('x', 'b')], { rules: [rule('r', 'apart', ['x', 'new'], false)] })
    expect(chosen(s)).toBe('a')
    const none = place(snapshot([host('b')], [vm('x', 'b')], { rules: s.rules }), vm('new', undefined))
    expect(none.chosen).toMatchObject({ host: 'b', but: [{ code: 'affinity', strict: false, others: ['x'] }] })
  })
  test('is with those it belongs to', () => {
    const s = snapshot([host('a'), host('b', load(6))], [vm('x', 'b')], {
      rules: [rule('r', 'together', ['x', 'new'])],
    })
    expect(chosen(s)).toBe('b')
  })
  test('is rather not one to which its move failed lately', () => {
    const web = vm('web', 'a')
    const failed = { vm: 'web', from: 'a', to: 'b', ended: 'failed' as const }
    const s = snapshot([host('a'), host('b'), host('c', load(4))], [web], {
      history: [{ ...failed, at_ms: NOW - 60_000 }],
    })
    expect(place(s, web).chosen?.host).toBe('c')
    expect(place(s, web).others[0]?.but).toMatchObject([{ code: 'failed_lately', times: 1 }])
    expect(place({ ...s, history: [{ ...failed, at_ms: NOW - 7_200_000 }] }, web).chosen?.host).toBe('b')
  })
})

describe('what is said with it', () => {
  test('the runners-up with their scores, and why not the others', () => {
    const s = snapshot([host('a', load(1)), host('b', load(4)), host('c', { state: 'down' }), host('d', load(0))], [])
    const choice = place(s, vm('new', undefined))
    expect(choice.chosen).toMatchObject({ host: 'd', memory: 0.125, load: 'measured', disks: [], but: [] })
    expect(choice.others.map((c) => c.host)).toEqual(['a', 'b'])
    expect(choice.refused).toMatchObject([{ host: 'c', reasons: [{ code: 'host_down' }] }])
    expect(choice.detail).toBe(
      'new goes to d, the best of 3 that fit: with it, 13 % of its memory promised and 1 % of its CPUs busy.',
    )
  })
  test('when none fits', () => {
    const choice = place(snapshot([host('a', { memory_mib: 512 })], []), vm('new', undefined))
    expect(choice).toMatchObject({ others: [], stuck: [], detail: 'None of 1 host can take new.' })
    expect(choice.chosen).toBeUndefined()
    expect(place(snapshot([], []), vm('new', undefined)).detail).toBe('There is no other host that could take new.')
  })
  test('when it cannot move, with the hosts that would have done', () => {
    const web = vm('web', 'a', { passthrough: ['gpu'] })
    const choice = place(snapshot([host('a'), host('b')], [web]), web)
    expect(choice).toMatchObject({ stuck: [{ code: 'passthrough' }], others: [{ host: 'b' }] })
    expect(choice.refused).toMatchObject([{ host: 'a', reasons: [{ code: 'already_there' }] }])
    expect(choice.chosen).toBeUndefined()
  })
  test('where its local disks go: into the pool of the same name, else the usual one, else the roomiest', () => {
    const pools = (...names: string[]) =>
      names.map((name, i) => ({ id: `${name}-b`, name, shared: false, free_bytes: 2 ** 33 + i }))
    const web = vm('web', 'a', { disks: [{ pool: 'ssd-a', shared: false, bytes: 2 ** 30 }] })
    const a = host('a', { pools: [{ id: 'ssd-a', name: 'ssd', shared: false, free_bytes: 0 }] })
    const to = (...names: string[]) =>
      place(snapshot([a, host('b', { pools: pools(...names) })], [web]), web).chosen?.disks[0]?.to_pool
    expect(to('ssd', 'hdd')).toBe('ssd-b')
    expect(to('x', 'y')).toBe('y-b')
    const usual = pools('x', 'y').map((p) => ({ ...p, usual: p.name === 'x' }))
    expect(place(snapshot([a, host('b', { pools: usual })], [web]), web).chosen?.disks[0]?.to_pool).toBe('x-b')
  })
})

test('many in a row, with books that are kept: each counts for the next', () => {
  const hosts = ['a', 'b', 'c', 'd'].map((id) => host(id))
  const books = new Books(new Compiled(snapshot(hosts, [])))
  const where = Array.from({ length: 32 }, (_, i) => {
    const it = vm(`n${i}`, undefined)
    const { chosen: found } = placeIn(books, it, { start: true })
    if (found) accept(books, it, found, { start: true })
    return found?.host
  })
  for (const { id } of hosts) expect(where.filter((at) => at === id).length).toBe(8)
  expect(placeIn(books, vm('more', undefined), { start: true }).chosen).toBeUndefined()
})
