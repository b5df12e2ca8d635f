import { describe, expect, test } from 'vitest'
import { fits } from '../src/fits.ts'
import type { HostView, Snapshot, VmView } from '../src/snapshot.ts'
import { NOW, host, rule, snapshot, vm } from './kit/world.ts'

const GIB = 2 ** 30
type Case = {
  name: string
  on?: Partial<HostView>
  of?: Partial<VmView>
  with?: Partial<Snapshot>
  others?: VmView[]
  start?: boolean
  why: object[]
}

/** Whether `web`, on `a`, can be on `b`. */
const cases: Case[] = [
  { name: 'nothing in the way', why: [] },
  { name: 'down', on: { state: 'down' }, why: [{ code: 'host_down' }] },
  { name: 'in maintenance', on: { state: 'maintenance' }, why: [{ code: 'host_maintenance' }] },
  { name: 'being emptied', on: { state: 'draining' }, why: [{ code: 'host_draining' }] },
  {
    name: 'full',
    others: [vm('db', 'b', { memory_mib: 7680 })],
    why: [{ code: 'no_room_memory', needed_mib: 1024, free_mib: 512, of: 'free' }],
  },
  { name: 'exactly full afterwards', others: [vm('db', 'b', { memory_mib: 7168 })], why: [] },
  { name: 'full of stopped ones', others: [vm('db', 'b', { memory_mib: 8192, state: 'stopped' })], why: [] },
  { name: 'what may be promised beyond the RAM', on: { memory_mib: 512, memory_overcommit: 2 }, why: [] },
  {
    name: 'too small altogether',
    on: { memory_mib: 1024, reserved_mib: 512 },
    why: [{ code: 'no_room_memory', needed_mib: 1024, free_mib: 512, of: 'all' }],
  },
  {
    name: 'a stopped one needs a host that is big enough, no free memory',
    of: { state: 'stopped', memory_mib: 9000 },
    why: [{ code: 'no_room_memory', needed_mib: 9000, free_mib: 8192, of: 'all' }],
  },
  {
    name: 'more is promised there than the snapshot knows of',
    on: { promised_mib: 8000 },
    why: [{ code: 'no_room_memory', needed_mib: 1024, free_mib: 192, of: 'free' }],
  },
  {
    name: 'reserved for a job',
    with: { reserved: [{ host: 'b', memory_mib: 8000, cpus: 1 }] },
    why: [{ code: 'no_room_memory', needed_mib: 1024, free_mib: 192, of: 'free' }],
  },
  {
    name: 'what arrives counts already, once, also where a job has reserved it',
    others: [vm('db', 'a', { memory_mib: 7000 })],
    with: {
      moving: [{ vm: 'db', from: 'a', to: 'b' }],
      reserved: [{ host: 'b', vm: 'db', memory_mib: 7000, cpus: 1 }],
    },
    why: [],
  },
  {
    name: 'what leaves counts still',
    others: [vm('db', 'b', { memory_mib: 7680 })],
    with: { moving: [{ vm: 'db', from: 'b', to: 'a' }] },
    why: [{ code: 'no_room_memory', needed_mib: 1024, free_mib: 512, of: 'free' }],
  },
  { name: 'a pool out of reach', on: { pools: [] }, why: [{ code: 'pool_not_reached', pools: ['fast'] }] },
  {
    name: 'a pool that it may not use',
    on: { pools: [], pools_refused: { shared: { detail: 'Its locks are not seen.', remedy: 'nfs4' } } },
    why: [{ code: 'pool_not_reached', pools: ['fast'], why: { detail: 'Its locks are not seen.', remedy: 'nfs4' } }],
  },
  {
    name: 'a network that is not there',
    on: { networks: [] },
    why: [{ code: 'network_not_there', networks: ['lan'] }],
  },
  {
    name: 'another accelerator',
    on: { accelerator: 'tcg' },
    of: { accelerator: 'kvm' },
    why: [{ code: 'accelerator_differs', vm_has: 'kvm', host_has: 'tcg' }],
  },
  { name: 'any accelerator for one that has seen none', on: { accelerator: 'tcg' }, why: [] },
  {
    name: 'flags that are missing, each once',
    of: { cpu_flags: ['avx', 'avx512f', 'avx2', 'avx2'] },
    why: [{ code: 'cpu_flags_missing', flags: ['avx2', 'avx512f'] }],
  },
  {
    name: 'a machine type that its QEMU does not know',
    of: { machine: 'pc-q35-8.0' },
    why: [{ code: 'machine_type_missing', machine: 'pc-q35-8.0' }],
  },
  {
    name: 'an older QEMU',
    of: { qemu_version: '10.0.1' },
    why: [{ code: 'qemu_older', vm_has: '10.0.1', host_has: '7.2.22' }],
  },
  { name: 'an older patch of the same QEMU', of: { qemu_version: '7.2.50' }, why: [] },
  { name: 'devices of its host', of: { passthrough: ['gpu'] }, why: [{ code: 'passthrough', devices: ['gpu'] }] },
  { name: 'pinned to where it is', of: { pinned: 'a' }, why: [{ code: 'pinned', to: 'a' }] },
  { name: 'pinned to where it goes', of: { pinned: 'b' }, why: [] },
  { name: 'pinned elsewhere', of: { pinned: 'c' }, why: [{ code: 'pinned', to: 'c' }] },
  {
    name: 'held by something the caller knows',
    of: { held: { detail: 'A backup reads it.', remedy: 'wait' } },
    why: [{ code: 'held', detail: 'A backup reads it.', remedy: 'wait' }],
  },
  { name: 'on its way up', of: { state: 'starting' }, why: [{ code: 'vm_busy', state: 'starting' }] },
  { name: 'unknown is not stopped', of: { state: 'unknown' }, why: [{ code: 'vm_busy', state: 'unknown' }] },
  {
    name: 'moving already',
    with: { moving: [{ vm: 'web', from: 'a', to: 'c' }] },
    why: [{ code: 'vm_moving', to: 'c' }],
  },
  {
    name: 'kept apart',
    others: [vm('db', 'b')],
    with: { rules: [rule('r', 'apart', ['web', 'db'])] },
    why: [{ code: 'affinity', rule: 'r', kind: 'apart', strict: true, others: ['db'] }],
  },
  {
    name: 'kept apart from one that arrives',
    others: [vm('db', 'a')],
    with: { rules: [rule('r', 'apart', ['web', 'db'])], moving: [{ vm: 'db', from: 'a', to: 'b' }] },
    why: [{ code: 'affinity', kind: 'apart', others: ['db'] }],
  },
  {
    name: 'not strictly apart',
    others: [vm('db', 'b')],
    with: { rules: [rule('r', 'apart', ['web', 'db'], false)] },
    why: [],
  },
  {
    name: 'away from one it belongs to',
    others: [vm('db', 'a')],
    with: { rules: [rule('r', 'together', ['web', 'db'])] },
    why: [{ code: 'affinity', kind: 'together', others: ['db'] }],
  },
  {
    name: 'to one it belongs to',
    others: [vm('db', 'b')],
    with: { rules: [rule('r', 'together', ['web', 'db'])] },
    why: [],
  },
  {
    name: 'none of the hosts of a rule, by labels',
    of: { labels: { app: 'shop', tier: 'web' } },
    with: {
      rules: [
        {
          id: 'r',
          name: 'in-room-2',
          kind: 'on',
          strict: true,
          vms: { labels: { app: 'shop' } },
          hosts: { labels: { room: '2' } },
        },
        { id: 's', name: 'not-b', kind: 'not_on', strict: true, vms: { labels: {} }, hosts: { ids: ['b'] } },
        {
          id: 't',
          name: 'other',
          kind: 'on',
          strict: true,
          vms: { labels: { app: 'shop', tier: 'db' } },
          hosts: { ids: [] },
        },
      ],
    },
    why: [
      { code: 'affinity', rule: 'in-room-2', kind: 'on' },
      { code: 'affinity', rule: 'not-b', kind: 'not_on' },
    ],
  },
  {
    name: 'a local disk, and no local pool',
    of: { disks: [{ pool: 'l-a', shared: false, bytes: GIB }] },
    why: [{ code: 'no_room_disk', needed_bytes: GIB, free_bytes: 0 }],
  },
  {
    name: 'local disks that fit only in two pools',
    of: {
      disks: [
        { pool: 'l-a', shared: false, bytes: 2 * GIB },
        { pool: 'l-a', shared: false, bytes: 2 * GIB },
      ],
    },
    on: {
      pools: [
        { id: 'x', name: 'x', shared: false, free_bytes: 3 * GIB },
        { id: 'y', name: 'y', shared: false, free_bytes: 3 * GIB },
      ],
    },
    why: [],
  },
  {
    name: 'a local pool whose room nobody knows',
    of: { disks: [{ pool: 'l-a', shared: false, bytes: GIB }] },
    on: { pools: [{ id: 'x', name: 'x', shared: false }] },
    why: [{ code: 'no_room_disk' }],
  },
  {
    name: 'several at once',
    on: { networks: [], state: 'maintenance' },
    of: { memory_mib: 9000 },
    why: [{ code: 'host_maintenance' }, { code: 'no_room_memory' }, { code: 'network_not_there' }],
  },
]

test.each(cases)('$name', ({ on, of, with: more, others, start, why }) => {
  const pool = { id: 'shared', name: 'fast', shared: true }
  const web = vm('web', 'a', of)
  const hosts = [host('a', { pools: [pool] }), host('b', { pools: [pool], ...on }), host('c', { pools: [pool] })]
  const s = snapshot(hosts, [web, ...(others ?? [])], more)
  const found = fits(s, web, 'b', start === undefined ? {} : { start })
  expect(found).toMatchObject(why)
  expect(found.length).toBe(why.length)
  for (const reason of found) {
    expect(reason.detail).toMatch(/^[A-Z].*\.$|^web |^b /)
    expect(reason.remedy).not.toBe('')
  }
})

test('a host that does not say which machine types it knows is refused for none', () => {
  const { machine_types: _, ...b } = host('b')
  const web = vm('web', 'a', { machine: 'pc-q35-8.0' })
  expect(fits(snapshot([host('a'), b], [web]), web, 'b')).toEqual([])
})

describe('on its own host', () => {
  const full = [vm('web', 'a', { state: 'stopped', memory_mib: 2048 }), vm('db', 'a', { memory_mib: 7168 })]
  test('a stopped one may start where there is room for it, itself not counted', () => {
    const s = snapshot([host('a')], full)
    expect(fits(s, full[0] as VmView, 'a', { start: true })).toMatchObject([{ code: 'no_room_memory', free_mib: 1024 }])
    expect(fits(s, full[0] as VmView, 'a')).toEqual([])
    expect(fits(s, full[1] as VmView, 'a')).toEqual([])
  })
  test('devices and local disks of that host are no hindrance', () => {
    const web = vm('web', 'a', { passthrough: ['gpu'], disks: [{ pool: 'l', shared: false, bytes: 2 ** 40 }] })
    expect(fits(snapshot([host('a')], [web]), web, 'a')).toEqual([])
  })
})

test('a host that is not there, and a VM whose host is down', () => {
  const web = vm('web', 'a')
  const s = snapshot([host('a', { state: 'down' }), host('b')], [web])
  expect(fits(s, web, 'x')).toMatchObject([{ code: 'host_not_known' }])
  expect(fits(s, web, 'b')).toMatchObject([{ code: 'source_down', on: 'a' }])
})

test('texts name names, not ids', () => {
  const web = vm('vm-1', 'host-1', { name: 'web', networks: ['net-9'], disks: [] })
  const s = snapshot([host('host-1'), host('host-2', { name: 'beta', networks: [] })], [web], {
    names: { 'net-9': 'dmz' },
  })
  expect(fits(s, web, 'host-2')).toEqual([
    {
      code: 'network_not_there',
      networks: ['dmz'],
      host: 'beta',
      detail: 'beta does not have the network dmz.',
      remedy: 'make it available on beta',
    },
  ])
  expect(NOW).toBe(s.now_ms)
})
