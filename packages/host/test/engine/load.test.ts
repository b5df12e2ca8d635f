/** Cores at work, from the kernel's counters. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Cgroups } from '../../src/engine/cgroup.ts'
import { busyOf, loadBetween, loadMeter } from '../../src/engine/load.ts'

const S = 1e9
const used = (at_s: number, host: number | undefined, vms: Record<string, number> = {}) => ({
  at_ns: at_s * S,
  host: host === undefined ? undefined : host * S,
  vms: new Map(Object.entries(vms).map(([vm, s]) => [vm, s * S])),
})

test.each([
  ['cpu  100 20 30 4000 500 6 4 70 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n', 1.6 * S],
  ['cpu  0 0 0 0 0 0 0\n', 0],
  ['cpu  1 2 3\n', undefined],
  ['cpu0 1 2 3 4 5 6 7 8 9 10\n', undefined],
  ['', undefined],
])('busy in %j', (stat, ns) => {
  expect(busyOf(stat)).toBe(ns)
})

describe('between two looks', () => {
  test.each([
    ['half a core', used(0, 10, { a: 5 }), used(10, 15, { a: 7 }), { cores: 0.5, vms: { a: 0.2 } }],
    ['one that came says nothing yet', used(0, 0), used(10, 0, { a: 3 }), { cores: 0, vms: {} }],
    ['one that went', used(0, 0, { a: 3 }), used(10, 20), { cores: 2, vms: {} }],
    ['one that was started anew', used(0, 0, { a: 30 }), used(10, 1, { a: 2 }), { cores: 0.1, vms: {} }],
    ['a host that nobody counts', used(0, undefined), used(10, 1), { vms: {} }],
    ['no time between', used(5, 1, { a: 1 }), used(5, 2, { a: 2 }), { vms: {} }],
  ])('%s', (_, before, now, load) => {
    expect(loadBetween(before, now)).toEqual(load)
  })
  test('never less than nothing, whatever the counters do', () => {
    const counter = fc.integer({ min: 0, max: 2 ** 50 })
    fc.assert(
      fc.property(counter, counter, fc.integer({ min: -5, max: 50 }), (was, is, s) => {
        const { cores, vms } = loadBetween(used(0, was, { a: was }), used(s, is, { a: is }))
        for (const n of [cores, vms['a']]) expect(n === undefined || (Number.isFinite(n) && n >= 0)).toBe(true)
      }),
    )
  })
})

test('what has a share of its own counts what is in it; other groups than VMs are none', async () => {
  const at = { own: 0, vm: 0, cpus: 2 as number | undefined }
  const groups = {
    list: async () => ['host', 'vm-a'],
    share: async () => (at.cpus === undefined ? {} : { cpus: at.cpus }),
    cpuTime: async (vm?: string) => (vm === undefined ? at.own : at.vm),
  } as unknown as Cgroups
  const meter = loadMeter(groups)
  expect(await meter()).toEqual({ vms: {} })
  await new Promise((resolve) => setTimeout(resolve, 50))
  Object.assign(at, { own: 50e6, vm: 25e6 })
  const { cores = 0, vms } = await meter()
  expect(Object.keys(vms)).toEqual(['vm-a'])
  // 50 ms at the least, and whatever this machine took on top.
  expect(cores).toBeGreaterThan(0)
  expect(cores).toBeLessThanOrEqual(1)
  expect((vms['vm-a'] ?? 0) / cores).toBeCloseTo(0.5, 5)
})
