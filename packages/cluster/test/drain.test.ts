import { fail } from '@wadah/api/fault'
/** Emptying a host: what the plan says of local disks and of what ties a VM to its host; that moves go where it said, and back. */
import type { MoveWishes } from '@wadah/api/schema/cluster'
import { CachedView } from '@wadah/store/cache'
import type { Store } from '@wadah/store/store'
import { type Write, del, put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type Deps, commit } from '../src/context.ts'
import { atOnceOf, type DrainParams, type MoveAsked, drainJob, drainPlan, undrainJob } from '../src/host/drain.ts'
import { aliveKind, type FactsRecord, factsKind } from '../src/members/records.ts'
import { jobKind } from '../src/jobs/record.ts'
import {
  type PoolRecord,
  hostKind,
  networkKind,
  placementKind,
  poolKind,
  snapshotKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { answerUsed, USED_PATH } from '../src/storage/rooms.ts'
import { tiedBy } from '../src/vms/tied.ts'
import { HOST, POOL, factsOf, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const [B, C, LAN] = ['host-bbbbbbbbbb', 'host-cccccccccc', 'net-landlandla']
const GIB = 2 ** 30
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const pool = (id: string, name: string, host: string): PoolRecord => ({
  ...named,
  id,
  name,
  kind: 'dir',
  path: `/${id}`,
  overcommit: 1,
  direct_io: true,
  host,
})
const facts = (over: Partial<FactsRecord>) => factsOf({ networks: [LAN, 'net-bbbbbbbbbb'], ...over })

type Vm = { host?: string; disk?: { pool: string; gib: number }; state?: string; memory_mib?: number; spec?: object }
const vmId = (name: string) => `vm-${name.padEnd(10, 'a')}`
const diskId = (name: string) => `vol-${name.padEnd(10, 'a')}`
function vm(name: string, o: Vm = {}): Write[] {
  const id = vmId(name)
  const disks = o.disk ? [{ name: 'root', volume: diskId(name), limits: {} }] : []
  const spec = { uid: 5000, cpus: 1, memory_mib: o.memory_mib ?? 512, disks, nics: [{ name: 'nic0', network: LAN }] }
  const state = o.state ?? 'running'
  return [
    put(vmKind, id, { ...named, id, name, labels: {}, wanted: 'running', spec: { ...spec, ...o.spec } } as never),
    put(placementKind, id, { schema: 1, host: o.host ?? HOST, epoch: 1 }),
    put(statusKind, id, { schema: 1, state, accelerator: 'tcg', qemu_version: '7.2' } as never),
    ...(o.disk
      ? [
          put(volumeKind, diskId(name), {
            ...named,
            id: diskId(name),
            name: `${name}-root`,
            pool: o.disk.pool,
            format: 'qcow2',
            size_bytes: o.disk.gib * GIB,
            vm: id,
            read_only: false,
          }),
        ]
      : []),
  ]
}

let store: Store
let view: CachedView
let deps: Deps
/** Bytes of the pools of other hosts, by id; one that is not here does not answer. */
let sizes: Record<string, number>
let asked: [host: string, MoveAsked][]
let own: [vm: string, to: string, MoveWishes][]
/** So many moves that other hosts are asked for fail. */
let fails: number
let failsWith: string
/** So many answers do not come. */
let lost: number

const write = (...writes: Write[]) => commit(deps, [], writes)
const place = (id: string, host: string) => write(put(placementKind, id, { schema: 1, host, epoch: 2 }))

beforeEach(async () => {
  store = openMemoryStore()
  await store.txn(
    [],
    [
      ...ground(),
      put(networkKind, LAN, { ...named, id: LAN, name: 'lan', kind: 'bridge', bridge: 'lan0', state: 'up' } as never),
      ...[B, C].map((id) => put(hostKind, id, { schema: 1, id, name: id === B ? 'b' : 'c', created_at: '' })),
      ...[HOST, B, C].map((id) => put(aliveKind, id, { schema: 1, host: id, since_ms: 0 })),
      put(poolKind, 'pool-bbbbbbbbbb', pool('pool-bbbbbbbbbb', 'default', B)),
      put(factsKind, HOST, facts({ pools: [POOL] })),
      put(factsKind, B, facts({ pools: ['pool-bbbbbbbbbb'] })),
      put(factsKind, C, facts({ memory_mib: 512 })),
    ],
    'made',
  )
  view = await CachedView.open(store, {})
  const world = new FakeWorld()
  const base = fakeDeps(store, view, world)
  sizes = { 'pool-bbbbbbbbbb': 100 * GIB }
  asked = []
  own = []
  fails = 0
  failsWith = 'timeout'
  lost = 0
  let jobs = 0
  const askHost = async <T>(host: string, path: string, body: unknown): Promise<T> => {
    if (path === USED_PATH) return {} as T
    const { id, key } = body as { id?: string; key?: string }
    if (key === undefined) {
      const capacity_bytes = sizes[id ?? '']
      if (capacity_bytes === undefined) throw new Error('no answer')
      return { capacity_bytes, free_bytes: capacity_bytes, direct_io: true, file_system: 'ext4' } as T
    }
    const move = body as MoveAsked
    asked.push([host, move])
    if (lost-- > 0) throw fail('unreachable', 'no answer')
    const job = `job-other${jobs++}`
    if (fails-- > 0) {
      const fault = { code: failsWith, detail: 'The guest had stood still for 312 ms.', retryable: true }
      await write(put(jobKind, job, { id: job, state: 'failed', fault } as never))
      return { job } as T
    }
    await place(move.vm, move.to)
    await write(put(jobKind, job, { id: job, state: 'done', result: { stall_ms: 7 } } as never))
    return { job } as T
  }
  deps = {
    ...base,
    machine: {
      ...base.machine,
      volumes: { ...base.machine.volumes, allocatedBytes: async () => GIB } as never,
    },
    askHost: askHost as NonNullable<Deps['askHost']>,
    children: {
      migrate: async (id: string, to: string, _key: string, wishes: MoveWishes) => {
        own.push([id, to, wishes])
        await place(id, to)
        return { before: false, result: { stall_ms: 9 } }
      },
    } as unknown as NonNullable<Deps['children']>,
  }
})
afterEach(async () => {
  await view.close()
})

const carryOut = async (job: typeof drainJob, params: DrainParams) => {
  let result: unknown
  for (const step of job.steps) {
    const ctx = {
      deps,
      params,
      jobId: 'job-drain',
      signal: new AbortController().signal,
      log: () => {},
      progress: () => {},
      commit: () => {},
    }
    result = await step.do(ctx as never)
  }
  return result
}
const params = (host = HOST, over: Partial<DrainParams> = {}): DrainParams => ({ host, name: 'x', at_once: 2, ...over })

describe('the plan', () => {
  test('a VM with local disks goes where a pool has room, with the bytes it holds and the pool it goes to', async () => {
    await write(...vm('web', { disk: { pool: POOL, gib: 10 } }))
    const plan = await drainPlan(deps, HOST, 2)
    expect(plan.blockers).toEqual([])
    expect(plan.moves).toMatchObject([
      { vm: 'web', to: 'b', mode: 'live', disks: [{ from: 'default', to: 'default', bytes: 10 * GIB }] },
    ])
    // A tenth of its RAM is written meanwhile; of its 10 GiB one is taken.
    expect(plan.moves[0]?.bytes).toBeGreaterThan(1.5 * GIB)
    expect(plan.moves[0]?.bytes).toBeLessThan(1.7 * GIB)
    expect(plan.eta_how).not.toContain('taken as full')
  })

  test.each<[string, Partial<FactsRecord>, object, string | undefined]>([
    ['flags of its guest that no other host has', { cpu_flags: ['popcnt'] }, {}, 'lacks: sse4_2'],
    ['flags that one has', { cpu_flags: ['popcnt', 'sse4_2'] }, {}, undefined],
    ['flags of a guest that does not run', { cpu_flags: [] }, { state: 'stopped' }, undefined],
    ['a machine type', { cpu_flags: ['sse4_2'], machine_types: ['pc-q35-9.0'] }, {}, 'machine type pc-q35-7.2'],
    ['a machine type that one has', { cpu_flags: ['sse4_2'], machine_types: ['pc-q35-7.2'] }, {}, undefined],
  ])('%s', async (_, there, over, why) => {
    const status = { schema: 1, state: 'running', cpu_flags: ['sse4_2'], machine: 'pc-q35-7.2', ...over }
    await write(...vm('web'))
    await write(
      put(statusKind, vmId('web'), status as never),
      put(factsKind, B, facts({ pools: ['pool-bbbbbbbbbb'], ...there })),
    )
    const plan = await drainPlan(deps, HOST, 2)
    expect(plan.moves).toHaveLength(why === undefined ? 1 : 0)
    if (why !== undefined) expect(plan.blockers[0]?.why.join(' ')).toContain(why)
  })

  test.each([
    ['too little room', () => (sizes['pool-bbbbbbbbbb'] = 9 * GIB), 'left to promise'],
    ['room that nobody tells', () => delete sizes['pool-bbbbbbbbbb'], 'left to promise'],
    ['a host that is down', () => write(del(aliveKind, B)), 'is down'],
  ])('%s: it stays, and says why', async (_, change, why) => {
    await change()
    await write(...vm('web', { disk: { pool: POOL, gib: 10 } }))
    const plan = await drainPlan(deps, HOST, 2)
    expect(plan.moves).toEqual([])
    expect(plan.blockers[0]?.why.join(' ')).toContain(why)
  })

  test('more at a time than the host carries out is refused with the number; unsaid it is no more than that', async () => {
    expect(atOnceOf(deps, HOST)).toBe(2)
    expect(atOnceOf(deps, HOST, 4)).toBe(4)
    expect(() => atOnceOf(deps, HOST, 8)).toThrow('no more than 4 at a time')
    const one = { ...deps, config: { ...deps.config, moves_at_once: 1 } }
    expect(atOnceOf(one, HOST)).toBe(1)
    // Of another host it is what that host says of itself.
    expect(atOnceOf(one, B, 4)).toBe(4)
    await write(put(factsKind, B, facts({ moves_at_once: 8 })))
    expect(atOnceOf(one, B, 8)).toBe(8)
  })

  test('what is promised to others there is not promised again', async () => {
    await write(...vm('web', { disk: { pool: POOL, gib: 10 } }))
    await write(...vm('other', { host: B, disk: { pool: 'pool-bbbbbbbbbb', gib: 95 } }))
    expect((await drainPlan(deps, HOST, 2)).blockers.map((b) => b.vm)).toEqual(['web'])
  })

  test('what each volume holds, with what it stands on; of what lies elsewhere nothing', async () => {
    await write(
      ...vm('web', { disk: { pool: POOL, gib: 10 } }),
      ...vm('far', { disk: { pool: 'pool-bbbbbbbbbb', gib: 1 } }),
    )
    expect(await answerUsed(deps, [diskId('web'), diskId('far'), 'nothing', 7])).toEqual({ [diskId('web')]: GIB })
    expect(await answerUsed(deps, 'nonsense')).toEqual({})
  })
})

describe('what ties a VM to its host is a blocker of the plan, and a refusal of vm migrate, in the same words', () => {
  const disk = { pool: POOL, gib: 1 }
  const cases: [string, Vm, string | undefined][] = [
    ['it runs', {}, undefined],
    ['it runs with a local disk', { disk }, undefined],
    ['it is stopped', { state: 'stopped' }, undefined],
    ['stopped, with a local disk', { disk, state: 'stopped' }, undefined],
    ['stopped, with a TPM', { state: 'stopped', spec: { tpm: true } }, undefined],
    ['running, with a TPM', { spec: { tpm: true } }, undefined],
    ['paused by QEMU', { state: 'paused' }, 'is paused'],
    [
      'a NIC of its host',
      { spec: { nics: [{ name: 'nic0', network: 'net-bbbbbbbbbb' }] } },
      'each host has for itself',
    ],
  ]
  test.each(cases)('%s', async (_, o, why) => {
    await write(...vm('web', o))
    const record = view.get(vmKind, vmId('web'))?.value as never
    const { blockers, moves } = await drainPlan(deps, HOST, 2)
    expect(tiedBy(view, record)?.detail ?? '').toContain(why ?? '')
    if (why === undefined) return expect([blockers, moves.map((m) => m.vm)]).toEqual([[], ['web']])
    expect(moves).toEqual([])
    expect(blockers).toMatchObject([{ vm: 'web', why: [expect.stringContaining(why)] }])
    expect(blockers[0]?.remedy).toBe(tiedBy(view, record)?.remedy)
  })
  test.each(['running', 'stopped'] as const)('%s, a TPM and UEFI, with a snapshot: it goes', async (state) => {
    await write(
      ...vm('web', { state, spec: { tpm: true, firmware: { kind: 'uefi' } } }),
      put(snapshotKind, 'snap-a', { ...named, name: 'before', vm: vmId('web') } as never),
    )
    expect((await drainPlan(deps, HOST, 2)).blockers).toEqual([])
  })
  test.each(['running', 'stopped'] as const)('%s, a local disk with layers of snapshots', async (state) => {
    const layer = {
      ...named,
      id: 'vol-layerlayer',
      name: 'web-root-before',
      pool: POOL,
      format: 'qcow2',
      size_bytes: 2 ** 30,
    }
    const held = { ...layer, vm: vmId('web'), read_only: true, role: 'layer' as const, held_bytes: 2 ** 20 }
    await write(...vm('web', { disk, state }), put(volumeKind, held.id, held as never))
    expect((await drainPlan(deps, HOST, 2)).blockers).toEqual([])
    // One that is to go, and could not: over there nobody would find its file.
    await write(put(volumeKind, held.id, { ...held, dropped: true } as never))
    const { blockers } = await drainPlan(deps, HOST, 2)
    expect(blockers).toMatchObject([{ vm: 'web', why: [expect.stringContaining('web-root-before')] }])
  })
  test('more layers than one commit can move', async () => {
    await write(...vm('web', { disk }))
    const layers = Array.from({ length: 101 }, (_, i) => `vol-layer${i}`)
    const held = {
      ...named,
      pool: POOL,
      format: 'qcow2',
      size_bytes: 2 ** 30,
      vm: vmId('web'),
      read_only: true,
      role: 'layer',
    }
    for (const half of [layers.slice(0, 50), layers.slice(50)])
      await write(...half.map((id) => put(volumeKind, id, { ...held, id, name: id } as never)))
    const { blockers } = await drainPlan(deps, HOST, 2)
    expect(blockers).toMatchObject([{ vm: 'web', why: [expect.stringContaining('at most 100')] }])
  })
})

describe('the job', () => {
  test('each move gets the ceiling and the mode of the drain; the way back ends in the pool it came from', async () => {
    const fast = 'pool-fastfastfa'
    await write(put(poolKind, fast, pool(fast, 'fast', HOST)), put(factsKind, HOST, facts({ pools: [POOL, fast] })))
    await write(...vm('web', { disk: { pool: fast, gib: 1 } }), ...vm('plain'))
    const wishes = { max_stall_ms: 50, mode: 'precopy' as const }
    expect(await carryOut(drainJob, params(HOST, wishes))).toMatchObject({
      moved: [{ vm: 'plain', stall_ms: 9 }, { vm: 'web' }],
      stayed: [],
    })
    expect(own.map(([id, to, w]) => [id, to, w])).toEqual([
      [vmId('plain'), B, wishes],
      [vmId('web'), B, wishes],
    ])
    await carryOut(undrainJob, params(HOST, { max_stall_ms: 80 }))
    expect(asked).toMatchObject([
      [B, { vm: vmId('plain'), to: HOST, max_stall_ms: 80 }],
      [B, { vm: vmId('web'), to: HOST, pool: fast, max_stall_ms: 80 }],
    ])
    expect(asked[0]?.[1]).not.toHaveProperty('pool')
    expect(view.get(hostKind, HOST)?.value.drained).toBeUndefined()
  })

  test.each([
    [1, [{ vm: 'web' }], []],
    [2, [], [{ vm: 'web', why: 'The guest had stood still for 312 ms.' }]],
  ])('%i failures on the way back: it is tried twice, each under its own key', async (times, moved, stayed) => {
    await write(...vm('web', { host: B }))
    const host = view.get(hostKind, HOST)?.value
    await write(put(hostKind, HOST, { ...host, drained: [{ vm: vmId('web'), to: B }] } as never))
    fails = times
    expect(await carryOut(undrainJob, params())).toMatchObject({ moved, stayed })
    expect(asked.map(([, a]) => a.key)).toEqual([0, 1].map((n) => `job-drain/${vmId('web')}/${n}`))
    // What stayed is brought back by the next undrain.
    expect(view.get(hostKind, HOST)?.value.drained ?? []).toHaveLength(stayed.length)
  })

  test('what somebody has cancelled is not begun again; what came back, or went elsewhere, is forgotten or told', async () => {
    await write(...vm('web', { host: B }), ...vm('back'), ...vm('away', { host: C }))
    const host = view.get(hostKind, HOST)?.value
    const drained = ['web', 'back', 'away'].map((name) => ({ vm: vmId(name), to: B }))
    await write(put(hostKind, HOST, { ...host, drained } as never))
    ;[fails, failsWith] = [1, 'cancelled']
    expect(await carryOut(undrainJob, params())).toMatchObject({
      moved: [],
      stayed: [{ vm: 'web' }, { vm: 'away', why: 'it is on c by now' }],
    })
    expect(asked).toHaveLength(1)
    expect(view.get(hostKind, HOST)?.value.drained?.map((d) => d.vm)).toEqual([vmId('web'), vmId('away')])
  })

  test('an answer that was lost: the same job is asked for again', async () => {
    await write(...vm('web', { host: B }))
    const host = view.get(hostKind, HOST)?.value
    await write(put(hostKind, HOST, { ...host, drained: [{ vm: vmId('web'), to: B }] } as never))
    lost = 1
    expect(await carryOut(undrainJob, params())).toMatchObject({ moved: [{ vm: 'web' }], stayed: [] })
    expect(new Set(asked.map(([, a]) => a.key)).size).toBe(1)
    expect(asked).toHaveLength(2)
  })

  test('one that makes room on another host is moved by that host, and stays where it is then', async () => {
    // B has room for the big one only when its small one has gone to C.
    await write(...vm('big', { memory_mib: 3072 }), ...vm('small', { host: B, memory_mib: 1024 }))
    await write(put(factsKind, C, facts({ memory_mib: 2048 })))
    expect(await carryOut(drainJob, params())).toMatchObject({ stayed: [] })
    expect(asked).toMatchObject([[B, { vm: vmId('small'), to: C }]])
    expect(own).toEqual([[vmId('big'), B, {}]])
    expect(view.get(hostKind, HOST)?.value.drained).toEqual([{ vm: vmId('big'), to: B }])
  })
})
