import { describe, expect, test } from 'vitest'
import { drain } from '../src/drain.ts'
import type { HostPlan } from '../src/plan.ts'
import { undrain } from '../src/undrain.ts'
import { carriedOut } from './kit/replay.ts'
import { NOW, host, rule, snapshot, vm } from './kit/world.ts'

const moves = (plan: HostPlan) => plan.actions.map((a) => `${a.vm} ${a.from}→${a.to}`)
const big = (id: string, at: string, memory_mib = 4096) => vm(id, at, { memory_mib })

describe('emptying a host', () => {
  test('running VMs move live, stopped ones offline; the big ones first', () => {
    const vms = [vm('off', 'a', { state: 'stopped', memory_mib: 8000 }), vm('small', 'a'), big('big', 'a')]
    const plan = drain(snapshot([host('a'), host('b')], vms), 'a')
    expect(plan.actions.map((a) => [a.vm, a.mode, a.to, a.after])).toEqual([
      ['big', 'live', 'b', []],
      ['small', 'live', 'b', []],
      ['off', 'offline', 'b', []],
    ])
    expect(plan).toMatchObject({ complete: true, blockers: [], waits: [], detail: '3 VMs on a: 3 moves.' })
  })

  test('an empty host: nothing to do, and it says so', () => {
    const plan = drain(snapshot([host('a'), host('b')], [vm('x', 'b')]), 'a')
    expect(plan).toMatchObject({ actions: [], complete: true, detail: 'There is no VM on a: nothing to do.' })
    expect(plan.eta).toMatchObject({ seconds: 0, bytes: 0 })
  })

  test('one that cannot leave says why and holds up no other', () => {
    const vms = [vm('gpu', 'a', { passthrough: ['gpu0'] }), vm('web', 'a'), vm('busy', 'a', { state: 'saving' })]
    const plan = drain(snapshot([host('a'), host('b')], vms), 'a')
    expect(moves(plan)).toEqual(['web a→b'])
    expect(plan.blockers).toMatchObject([
      { vm: 'busy', reasons: [{ code: 'vm_busy', state: 'saving' }] },
      { vm: 'gpu', reasons: [{ code: 'passthrough', devices: ['gpu0'] }] },
    ])
    expect(plan).toMatchObject({ complete: false, detail: '3 VMs on a: 1 move; 2 VMs cannot leave.' })
  })

  test('one that finds no host names those that came nearest', () => {
    const hosts = [
      host('a'),
      host('b', { memory_mib: 512 }),
      host('c', { memory_mib: 768 }),
      host('d', { state: 'down' }),
    ]
    const plan = drain(snapshot(hosts, [vm('web', 'a')]), 'a')
    expect(plan.actions).toEqual([])
    expect(plan.blockers).toMatchObject([
      {
        vm: 'web',
        counts: { no_room_memory: 2, host_down: 1 },
        nearest: [{ host: 'b' }, { host: 'c' }, { host: 'd' }],
        reasons: [{ code: 'no_host', hosts: 3 }],
      },
    ])
    expect(plan.blockers[0]?.reasons[0]?.detail).toBe(
      'None of 3 hosts can take web: 1 × host_down, 2 × no_room_memory. web has 1024 MiB of RAM; b gives out at most 512 MiB in all.',
    )
    expect(plan.detail).toBe('1 VM cannot leave a, and there is no other to move.')
  })

  test('what is under way is waited for, not planned again', () => {
    const s = snapshot([host('a'), host('b')], [vm('x', 'a'), vm('y', 'b')], {
      moving: [
        { vm: 'x', from: 'a', to: 'b' },
        { vm: 'y', from: 'b', to: 'a' },
      ],
      reserved: [
        { host: 'a', vm: 'y', memory_mib: 1024, cpus: 1 },
        { host: 'a', memory_mib: 256, cpus: 1 },
      ],
    })
    const plan = drain(s, 'a')
    expect(plan).toMatchObject({
      actions: [],
      blockers: [],
      waits: [
        { code: 'vm_moving', to: 'b' },
        { code: 'arriving', vm: 'y' },
        { code: 'reserved_there', memory_mib: 256 },
      ],
      complete: false,
      detail: 'What is on a is leaving already: nothing to do but wait.',
    })
  })

  test('a host that is down can be asked for nothing', () => {
    const plan = drain(snapshot([host('a', { state: 'down' }), host('b')], [vm('x', 'a')]), 'a')
    expect(plan).toMatchObject({ actions: [], blockers: [{ reasons: [{ code: 'source_down' }] }] })
  })

  test('a host that is not there', () => {
    expect(drain(snapshot([host('a')], []), 'x')).toMatchObject({
      actions: [],
      complete: false,
      waits: [{ code: 'host_not_known' }],
    })
  })
})

describe('local disks', () => {
  const GIB = 2 ** 30
  const disk = (bytes: number, used_bytes?: number) => ({
    pool: 'disk-a',
    shared: false,
    bytes,
    ...(used_bytes === undefined ? {} : { used_bytes }),
  })
  const local = (id: string, ...disks: ReturnType<typeof disk>[]) => vm(id, 'a', { disks })
  const pool = (id: string, name: string, free_bytes?: number) => ({
    id,
    name,
    shared: false,
    ...(free_bytes === undefined ? {} : { free_bytes }),
  })
  const a = host('a', { pools: [pool('disk-a', 'disk', 0)] })

  test('each goes where there is room for it, and what they hold is counted', () => {
    const b = host('b', { pools: [pool('disk-b', 'disk', 4 * GIB), pool('big-b', 'big', 9 * GIB)] })
    const plan = drain(snapshot([a, b], [local('web', disk(3 * GIB, GIB), disk(3 * GIB, 0))]), 'a')
    expect(plan.blockers).toEqual([])
    expect(plan.actions[0]?.disks.map((d) => d.to_pool)).toEqual(['disk-b', 'big-b'])
    expect(plan.eta.bytes).toBe(2 * GIB)
    expect(plan.eta.assumed).not.toContain('disk_use')
  })

  test('the room of one is not promised to the next, and the one that finds none says how much it lacks', () => {
    const b = host('b', { pools: [pool('disk-b', 'disk', 5 * GIB)] })
    const plan = drain(snapshot([a, b], [local('v1', disk(3 * GIB)), local('v2', disk(3 * GIB))]), 'a')
    expect(moves(plan)).toEqual(['v1 a→b'])
    expect(plan.blockers).toMatchObject([
      { vm: 'v2', nearest: [{ reasons: [{ code: 'no_room_disk', needed_bytes: 3 * GIB, free_bytes: 2 * GIB }] }] },
    ])
    expect(plan.eta.how).toContain('taken as full')
  })

  test('a host of which nothing is known takes none; another does', () => {
    const hosts = [a, host('b', { pools: [pool('disk-b', 'disk')] }), host('c', { pools: [pool('c', 'x', 9 * GIB)] })]
    expect(moves(drain(snapshot(hosts, [local('web', disk(GIB))]), 'a'))).toEqual(['web a→c'])
  })
})

describe('finding room', () => {
  test('those that strict rules keep apart go to different hosts; one too many stays', () => {
    const vms = ['x', 'y', 'z'].map((id) => vm(id, 'a'))
    const plan = drain(
      snapshot([host('a'), host('b'), host('c')], vms, { rules: [rule('r', 'apart', ['x', 'y', 'z'])] }),
      'a',
    )
    expect(moves(plan)).toEqual(['x a→b', 'y a→c'])
    expect(plan.blockers).toMatchObject([{ vm: 'z', counts: { affinity: 2 } }])
  })

  test('those that a strict rule keeps together go to one host, the only one that has room for all', () => {
    const vms = [vm('x', 'a', { memory_mib: 3000 }), vm('y', 'a', { memory_mib: 3000 })]
    const hosts = [host('a'), host('b', { memory_mib: 4000 }), host('c', { memory_mib: 6000 })]
    expect(moves(drain(snapshot(hosts, vms, { rules: [rule('r', 'together', ['x', 'y'])] }), 'a'))).toEqual([
      'x a→c',
      'y a→c',
    ])
  })

  test('and stay with one of them that cannot move', () => {
    const vms = [vm('x', 'a'), vm('y', 'a', { passthrough: ['gpu'] }), vm('z', 'a')]
    const plan = drain(snapshot([host('a'), host('b')], vms, { rules: [rule('r', 'together', ['x', 'y'])] }), 'a')
    expect(moves(plan)).toEqual(['z a→b'])
    expect(plan.blockers).toMatchObject([
      { vm: 'x', reasons: [{ code: 'held_by_group', by: 'y', rule: 'r' }] },
      { vm: 'y', reasons: [{ code: 'passthrough' }] },
    ])
  })

  test('the one with a single host to go to is not kept out by one that has many', () => {
    // By size and load `any` would go first, to the emptier b.
    const vms = [big('any', 'a', 4096), vm('choosy', 'a', { memory_mib: 3072, networks: ['dmz'] })]
    const hosts = [
      host('a'),
      host('b', { memory_mib: 4096, networks: ['lan', 'dmz'] }),
      host('c', { memory_mib: 4096, load: { cores: 6, at_ms: NOW } }),
    ]
    const plan = drain(snapshot(hosts, vms), 'a')
    expect(plan.blockers).toEqual([])
    expect(moves(plan).sort()).toEqual(['any a→c', 'choosy a→b'])
  })

  test('small ones are packed where spreading would leave no room for all', () => {
    // 3+3+2+2+2 into 6+6: the least loaded host first gives 3+2+… on each, and a 2 is left.
    const vms = [3, 3, 2, 2, 2].map((gib, i) => vm(`v${i}`, 'a', { memory_mib: gib * 1024 }))
    const hosts = [host('a', { memory_mib: 16_384 }), host('b', { memory_mib: 6144 }), host('c', { memory_mib: 6144 })]
    expect(drain(snapshot(hosts, vms), 'a').blockers).toEqual([])
  })
})

describe('making room', () => {
  const hosts = [
    host('a', { networks: ['lan', 'dmz'] }),
    host('b', { networks: ['lan', 'dmz'] }),
    host('c', { memory_mib: 3072 }),
  ]
  const vms = [
    vm('web', 'a', { memory_mib: 4096, networks: ['dmz'] }),
    vm('db', 'b', { memory_mib: 3072 }),
    vm('other', 'b', { memory_mib: 2048 }),
  ]
  test('one other VM moves away first, and the move waits for it', () => {
    const plan = drain(snapshot(hosts, vms), 'a')
    expect(plan.actions).toMatchObject([
      { vm: 'other', from: 'b', to: 'c', after: [], why: [{ code: 'frees_room', on: 'b', for: 'web' }] },
      { vm: 'web', from: 'a', to: 'b', after: [0] },
    ])
    expect(plan.complete).toBe(true)
  })
  test('not where that is not wanted', () => {
    expect(drain(snapshot(hosts, vms), 'a', { two_step: false })).toMatchObject({
      actions: [],
      blockers: [{ vm: 'web' }],
    })
  })
  test('not one that has just been moved, nor one that must stay with others', () => {
    const moved = { vm: 'other', from: 'c', to: 'b', at_ms: NOW - 1000, ended: 'done' as const }
    expect(moves(drain(snapshot(hosts, vms, { history: [moved] }), 'a'))).toEqual(['db b→c', 'web a→b'])
    const together = [rule('r', 'together', ['db', 'other'])]
    expect(drain(snapshot(hosts, vms, { rules: together }), 'a').actions).toEqual([])
  })
  test('undone, the one that made room comes back last', () => {
    const s = snapshot(hosts, vms)
    const plan = drain(s, 'a')
    expect(undrain(carriedOut(s, plan.actions), 'a', plan.actions).actions).toMatchObject([
      { vm: 'web', from: 'b', to: 'a', after: [] },
      { vm: 'other', from: 'c', to: 'b', after: [0] },
    ])
  })
})

describe('pausing and undoing', () => {
  const s = snapshot([host('a'), host('b'), host('c')], [vm('x', 'a'), vm('y', 'a'), vm('z', 'a')])
  const plan = drain(s, 'a')
  test('after a pause the rest is planned, and nothing that is done', () => {
    const rest = drain(carriedOut(s, plan.actions.slice(0, 2)), 'a')
    expect(rest.actions.map((a) => a.vm)).toEqual(plan.actions.slice(2).map((a) => a.vm))
  })
  test('undone, all are where they were, though the host is still in maintenance', () => {
    const after = carriedOut(s, plan.actions)
    const closed = {
      ...after,
      hosts: after.hosts.map((h) => (h.id === 'a' ? { ...h, state: 'maintenance' as const } : h)),
    }
    const back = undrain(closed, 'a', plan.actions)
    expect(back).toMatchObject({ complete: true, detail: '3 moves back to how a was.' })
    expect(carriedOut(closed, back.actions).vms).toEqual(s.vms)
  })
  test('one comes back only when the one it is kept apart from has left', () => {
    const apart = { rules: [rule('r', 'apart', ['x', 'y'])] }
    const now = snapshot([host('a'), host('b'), host('c')], [vm('x', 'c'), vm('y', 'b')], apart)
    const moved = [
      { vm: 'x', from: 'b', to: 'c' },
      { vm: 'y', from: 'a', to: 'b' },
    ]
    expect(undrain(now, 'a', moved).actions).toMatchObject([
      { vm: 'y', to: 'a', after: [] },
      { vm: 'x', to: 'b', after: [0] },
    ])
  })
  test('what has changed since stays as it is, and says why', () => {
    const after = carriedOut(s, plan.actions)
    const vms = [
      { ...(after.vms[0] as (typeof after.vms)[0]), host: plan.actions[0]?.to === 'b' ? 'c' : 'b' },
      { ...(after.vms[1] as (typeof after.vms)[0]), memory_mib: 9000 },
    ]
    const back = undrain({ ...after, vms }, 'a', plan.actions)
    expect(back.actions).toEqual([])
    expect(back.blockers).toMatchObject([
      { vm: 'x', reasons: [{ code: 'moved_since' }] },
      { vm: 'y', reasons: [{ code: 'no_room_memory' }] },
      { vm: 'z', reasons: [{ code: 'vm_gone' }] },
    ])
    expect(back.detail).toBe('Nothing to move back to a; 3 stay where they are.')
  })
  test('there may be nothing to undo', () => {
    expect(undrain(s, 'a', [])).toMatchObject({
      actions: [],
      blockers: [],
      complete: true,
      detail: 'Nothing to move back to a.',
    })
    expect(undrain(s, 'a', plan.actions)).toMatchObject({ actions: [], blockers: [], complete: true })
    expect(undrain(s, 'a', [{ vm: 'x', from: 'gone', to: 'a' }])).toMatchObject({
      blockers: [{ reasons: [{ code: 'host_not_known' }] }],
    })
  })
})
