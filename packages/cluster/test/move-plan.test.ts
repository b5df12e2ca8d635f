/** What a move would do: told before, with nothing done. */
import type { MoveForecast } from '@wadah/ports/migration'
import { CachedView } from '@wadah/store/cache'
import { put, type Store } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { fail } from '@wadah/api/fault'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { commit, type Deps } from '../src/context.ts'
import { aliveKind, factsKind } from '../src/members/records.ts'
import { hostKind, networkKind, placementKind, poolKind, statusKind, vmKind, volumeKind } from '../src/records.ts'
import { foresee, foreseenLine } from '../src/vms/foresee.ts'
import { planMove } from '../src/vms/move-plan.ts'
import { HOST, POOL, factsOf, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const [B, POOL_B, LAN, VM, DISK] = [
  'host-bbbbbbbbbb',
  'pool-bbbbbbbbbb',
  'net-landlandla',
  'vm-webwebweba',
  'vol-webwebweba',
]
const [MIB, GIB] = [2 ** 20, 2 ** 30]
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const facts = (pools: string[]) => factsOf({ pools, networks: [LAN], postcopy: true })

let store: Store
let view: CachedView
let deps: Deps
let dirty: number
const never = new AbortController().signal
const allowed = () => {}

async function vm(state: 'running' | 'stopped', disk: boolean): Promise<void> {
  const disks = disk ? [{ name: 'root', volume: DISK, limits: {} }] : []
  const spec = { uid: 5000, cpus: 1, memory_mib: 512, disks, nics: [{ name: 'nic0', network: LAN }] }
  const volume = { ...named, id: DISK, name: 'web-root', pool: POOL, format: 'qcow2', size_bytes: 10 * GIB, vm: VM }
  await commit(
    deps,
    [],
    [
      put(vmKind, VM, { ...named, id: VM, name: 'web', labels: {}, wanted: state, spec } as never),
      put(placementKind, VM, { schema: 1, host: HOST, epoch: 1 }),
      put(statusKind, VM, { schema: 1, state, accelerator: 'tcg', qemu_version: '7.2' } as never),
      ...(disk ? [put(volumeKind, DISK, { ...volume, read_only: false } as never)] : []),
    ],
  )
}

beforeEach(async () => {
  dirty = 0
  store = openMemoryStore()
  const pool = { ...named, kind: 'dir', overcommit: 1, direct_io: true } as const
  await store.txn(
    [],
    [
      ...ground(),
      put(networkKind, LAN, { ...named, id: LAN, name: 'lan', kind: 'bridge', bridge: 'lan0', state: 'up' } as never),
      put(hostKind, B, { schema: 1, id: B, name: 'b', created_at: '' }),
      ...[HOST, B].map((id) => put(aliveKind, id, { schema: 1, host: id, since_ms: 0 })),
      put(poolKind, POOL_B, { ...pool, id: POOL_B, name: 'default', path: '/b', host: B }),
      put(factsKind, HOST, facts([POOL])),
      put(factsKind, B, facts([POOL_B])),
    ],
    'made',
  )
  view = await CachedView.open(store, {})
  const base = fakeDeps(store, view, new FakeWorld())
  deps = {
    ...base,
    moves: {} as NonNullable<Deps['moves']>,
    machine: {
      ...base.machine,
      volumes: { ...base.machine.volumes, allocatedBytes: async () => GIB },
      migration: {
        postcopy: async () => ({ ok: true }),
        dirtyRate: async () => dirty,
        usedRam: async () => 200 * MIB,
      },
    } as never,
    askHost: (async (_host: string, _path: string, body: { pad?: string }) => ({
      now_ms: base.clock.now_ms(),
      pad: body.pad,
      capacity_bytes: 100 * GIB,
      free_bytes: 100 * GIB,
      direct_io: true,
      file_system: 'ext4',
    })) as NonNullable<Deps['askHost']>,
  }
})
afterEach(async () => await view.close())

const plan = (body = {}, mayI = allowed) => {
  const rec = view.get(vmKind, VM)
  if (!rec) throw new Error('no VM')
  return planMove(deps, rec, body, mayI, never)
}

describe('the plan of a move', () => {
  test('one that runs: where to, how, and what it is foreseen to cost', async () => {
    await vm('running', false)
    const before = await store.current()
    expect(await plan()).toEqual({
      vm: 'web',
      from: 'here',
      to: 'b',
      live: true,
      mode: 'auto',
      // 200 MiB over a link of 100 MiB/s.
      forecast: { how: 'precopy', converges: true, total_ms: 2000 + 900 + 45, stall_ms: 45, bytes: 200 * MIB },
      blockers: [],
    })
    expect(await store.current()).toBe(before)
  })

  test('local disks count, by what they hold, and it is said where they would go', async () => {
    await vm('running', true)
    const { forecast, disks } = await plan({ to: 'b' })
    expect(disks).toEqual([{ name: 'root', from: 'default', to: 'default', bytes: GIB }])
    expect(forecast).toMatchObject({ bytes: 200 * MIB, disk_bytes: GIB, total_ms: 2000 + 10_240 + 900 + 45 })
  })

  test('one that is stopped: its disks only', async () => {
    await vm('stopped', true)
    expect(await plan()).toMatchObject({ live: false, mode: 'offline', blockers: [] })
    expect((await plan()).forecast).toEqual({
      converges: true,
      total_ms: 10_240 + 900,
      stall_ms: 0,
      bytes: 0,
      disk_bytes: GIB,
    })
    await commit(
      deps,
      [],
      [put(vmKind, VM, { ...view.get(vmKind, VM)?.value, spec: { disks: [], nics: [] } } as never)],
    )
    expect(await plan()).not.toHaveProperty('forecast')
  })

  test('one that writes faster than the link carries it: said, with the reason', async () => {
    await vm('running', false)
    dirty = 500 * MIB
    expect((await plan({ mode: 'precopy' })).forecast).toMatchObject({ converges: false, why: expect.any(String) })
    expect((await plan({ mode: 'auto' })).forecast).toMatchObject({ converges: true, how: 'postcopy' })
  })

  test.each([
    ['no such host', { to: 'nowhere' }, 'not_found', 'nowhere'],
    ['its own host', { to: 'here' }, 'invalid', 'already'],
    ['a pool for no disks', { to: 'b', pool: 'fast' }, 'invalid', 'no disks'],
  ])('what would be refused is told with the words of the refusal: %s', async (_, body, code, why) => {
    await vm('running', false)
    const found = await plan(body)
    expect(found.blockers).toEqual([expect.objectContaining({ code, why: expect.stringContaining(why) })])
    expect(found).not.toHaveProperty('forecast')
  })

  test('and so is what its state or another job forbids', async () => {
    await vm('running', false)
    const found = await plan({}, () => {
      throw fail('busy', 'A job is at work on it.', { remedy: 'wadah job list' })
    })
    expect(found.blockers).toEqual([{ code: 'busy', why: 'A job is at work on it.', remedy: 'wadah job list' }])
  })
})

describe('what is foreseen', () => {
  const order = {
    vm: VM,
    from: HOST,
    to: B,
    live: true,
    mode: 'auto' as const,
    limits: { max_stall_ms: 300, may_postcopy: true },
    disks: [{ name: 'root', volume: DISK, from: POOL, to: POOL_B, format: 'qcow2' as const, size_bytes: 10 * GIB }],
  }
  test('with local disks too it is known whether post-copy will be needed', async () => {
    await vm('running', true)
    dirty = 500 * MIB
    expect(await foresee(deps, order, never)).toMatchObject({ how: 'postcopy', disk_bytes: GIB })
    dirty = 0
    expect(await foresee(deps, order, never)).toMatchObject({ how: 'precopy', disk_bytes: GIB })
  })
  test('a disk of which nobody says what it holds is taken as full', async () => {
    await vm('running', true)
    const volumes = { ...deps.machine.volumes, allocatedBytes: async () => Promise.reject(new Error('gone')) }
    const machine = { ...deps.machine, volumes } as never
    expect(await foresee({ ...deps, machine }, order, never)).toMatchObject({ disk_bytes: 10 * GIB })
  })
  test('in a line for the log of the job', () => {
    const f: MoveForecast = {
      how: 'precopy',
      converges: true,
      rounds: 1,
      total_ms: 2945,
      stall_ms: 45,
      bytes: 200 * MIB,
    }
    expect(foreseenLine(f)).toBe('foreseen: 2.9 s in all, a stall of 45 ms, 200 MiB of RAM (precopy)')
    expect(foreseenLine({ ...f, disk_bytes: GIB, converges: false, why: 'it writes too fast' })).toBe(
      'foreseen: 2.9 s in all, a stall of 45 ms, 200 MiB of RAM and 1024 MiB of disks (precopy); it writes too fast',
    )
  })
})
