/** Addresses of guests on a bridge: what their agents say stands in the status, and a list asks no guest. */
import type { GuestInfo } from '@wadah/api/schema/guest'
import { CachedView } from '@wadah/store/cache'
import { type Write, put } from '@wadah/store/store'
import { FakeClock } from '@wadah/store/testing/clock'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { expect, onTestFinished, test, vi } from 'vitest'
import { type Deps, commit } from '../src/context.ts'
import { networkKind, placementKind, type StatusRecord, statusKind, type VmRecord, vmKind } from '../src/records.ts'
import { insideOf, keepAddresses, nextAsk } from '../src/vms/addresses.ts'
import { statusAfter } from '../src/vms/keeper.ts'
import { viewVm } from '../src/vms/view.ts'
import { HOST, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const VM = 'vm-aaaaaaaaaa'
const LAN = 'net-landlandla'
const [MAC, MAC2] = ['52:54:00:00:00:01', '52:54:00:00:00:02']
const face = (name: string, mac: string | undefined, ...addresses: string[]) => ({
  name,
  ...(mac === undefined ? {} : { mac }),
  addresses,
})

test.each([
  ['by their MAC, whatever its letters', [face('eth0', MAC.toUpperCase(), '192.0.2.7/24')], [['lan', '192.0.2.7']]],
  [
    'IPv4, each of them',
    [face('eth0', MAC, '192.0.2.7/24', 'fe80::1/64', '192.0.2.8/24')],
    [
      ['lan', '192.0.2.7'],
      ['lan', '192.0.2.8'],
    ],
  ],
  [
    'of NICs in their order',
    [face('b', MAC2, '198.51.100.1/24'), face('a', MAC, '192.0.2.7/24')],
    [
      ['lan', '192.0.2.7'],
      ['dmz', '198.51.100.1'],
    ],
  ],
  [
    'not of what is no NIC of it',
    [face('lo', undefined, '127.0.0.1/8'), face('docker0', '02:42:00:00:00:01', '172.17.0.1/16')],
    [],
  ],
])('%s', (_, interfaces, expected) => {
  const nics = [
    { name: 'lan', mac: MAC },
    { name: 'dmz', mac: MAC2 },
  ]
  expect(insideOf(nics, { interfaces }).map((i) => [i.nic, i.address])).toEqual(expected)
})

test('asked again soon as long as there is none, and now and then once there is', () => {
  expect(nextAsk(0, false)).toEqual({ tries: 1, in_ms: 5_000 })
  expect(nextAsk(0, true).in_ms).toBe(300_000)
  expect(nextAsk(11, false).in_ms).toBe(300_000)
})

test('they come into the status by themselves, are asked for no more than that, and go with the guest', async () => {
  const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
  const store = openMemoryStore()
  const status: StatusRecord = { schema: 1, state: 'running', since_ms: 0, pid: 7, agent: 'connected' }
  const vm = {
    ...named,
    id: VM,
    name: 'web',
    description: '',
    labels: {},
    wanted: 'running',
    spec: {
      disks: [],
      nics: [
        { name: 'lan', network: LAN, mac: MAC, publish: [] },
        { name: 'nat', network: 'net-aaaaaaaaaa', mac: MAC2, address: '10.1.0.9', publish: [] },
      ],
    },
  } as unknown as VmRecord
  await store.txn(
    [],
    [
      ...ground(),
      put(networkKind, LAN, { ...named, id: LAN, name: 'lan', kind: 'bridge', bridge: 'lan0', state: 'up' } as never),
      put(vmKind, VM, vm),
      put(placementKind, VM, { schema: 1, host: HOST, epoch: 1 }),
      put(statusKind, VM, status),
    ],
    'made',
  )
  const view = await CachedView.open(store, {})
  onTestFinished(() => view.close())
  const clock = new FakeClock()
  const base = fakeDeps(store, view, new FakeWorld())
  let asked = 0
  let says: string[] = []
  const info = async () => {
    asked += 1
    return { interfaces: [face('eth0', MAC, ...says), face('eth1', MAC2, '10.1.0.9/24')] } as GuestInfo
  }
  const deps: Deps = { ...base, clock, machine: { ...base.machine, guest: () => ({ info }) } as never }
  const write = (...writes: Write[]) => commit(deps, [], writes)
  const looked = async (ms: number) => {
    clock.advance(ms)
    await vi.waitFor(() => expect(clock.waiting).toBe(1))
  }
  const shown = () => {
    const rec = view.get(vmKind, VM)
    if (!rec) throw new Error('gone')
    const parts = { vm: rec, placement: undefined, status: view.get(statusKind, VM)?.value }
    return viewVm(parts).addresses.map((a) => `${a.nic} ${a.address} ${a.source}`)
  }
  onTestFinished(keepAddresses(deps))
  await looked(5_000)
  expect([asked, shown()]).toEqual([1, ['nat 10.1.0.9 reserved']])
  says = ['192.0.2.7/24']
  await looked(5_000)
  expect([asked, shown()]).toEqual([2, ['lan 192.0.2.7 agent', 'nat 10.1.0.9 reserved']])
  // It has one now: the next look is far away, and changes nothing.
  const { revision } = view
  await looked(60_000)
  expect(asked).toBe(2)
  await looked(300_000)
  await looked(5_000)
  expect([asked, view.revision]).toEqual([3, revision])
  // While it is on its way it is left in peace.
  const handover = { to: 'host-bbbbbbbbbb', epoch: 2, job: 'job-aaaaaaaaaa', sealed: false }
  await write(put(placementKind, VM, { schema: 1, host: HOST, epoch: 1, handover }))
  await looked(600_000)
  await looked(5_000)
  expect(asked).toBe(3)
  // The same guest in another QEMU keeps it; one that has ended does not.
  const before = view.get(statusKind, VM)?.value
  const seen = { vm: VM, state: 'running' as const, at_ms: 1, pid: 8 }
  expect(statusAfter(before, seen, true)?.inside).toEqual([{ nic: 'lan', address: '192.0.2.7' }])
  expect(statusAfter(before, seen)).not.toHaveProperty('inside')
  await write(put(statusKind, VM, { ...(before as StatusRecord), state: 'stopped' }))
  expect(shown()).toEqual(['nat 10.1.0.9 reserved'])
})
