/** Disks of one host that go to another: where to, what the records say meanwhile, and what is swept. */
import { fail } from '@wadah/api/fault'
import type { Machine } from '@wadah/ports/machine'
import { CachedView } from '@wadah/store/cache'
import { put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type Deps, commit } from '../src/context.ts'
import {
  type PoolRecord,
  type VmRecord,
  hostKind,
  placementKind,
  poolKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { promisedBytes } from '../src/vms/create.ts'
import { arrivals } from '../src/vms/arrive.ts'
import { filesReady } from '../src/vms/jobs.ts'
import {
  type DiskMove,
  answerHas,
  arrivedDisks,
  dropArrival,
  dropMoved,
  HAS_PATH,
  isWhereItBelongs,
  layersOf,
  makeRooms,
  markMoving,
  placeDisks,
  type Room,
  roomsFor,
  sweepMoves,
  unmarkMoving,
} from '../src/vms/local-disks.ts'
import { Turns } from '../src/migration/turns.ts'
import { migrateVm } from '../src/vms/migrate.ts'
import { BASE, HOST, POOL, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const [B, POOL_B, VM, DISK, JOB] = [
  'host-bbbbbbbbbb',
  'pool-bbbbbbbbbb',
  'vm-aaaaaaaaaa',
  'vol-diskdiskaa',
  'job-aaaaaaaaaa',
]
const GIB = 2 ** 30
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const vm = {
  ...named,
  id: VM,
  name: 'web',
  description: '',
  labels: {},
  wanted: 'running',
  spec: { uid: 5000, disks: [{ name: 'root', volume: DISK, limits: {} }] },
} as unknown as VmRecord
const poolB: PoolRecord = {
  ...named,
  id: POOL_B,
  name: 'fast',
  kind: 'dir',
  path: '/q',
  overcommit: 1,
  direct_io: true,
  host: B,
}

describe('local disks of a VM that moves', () => {
  let a: Deps
  let b: Deps
  let worlds: { a: FakeWorld; b: FakeWorld }
  const views: CachedView[] = []
  /** What QEMU is there on B. */
  let waits: { job: string; undone: boolean; folder: boolean; ends?: boolean } | undefined

  /** The fake's files as a pool lists them. */
  const listing = (deps: Deps, world: FakeWorld): Deps => {
    const { volumes } = deps.machine
    const list = async (pool: { id: string }) =>
      [...world.files].flatMap((f) => {
        const [, at, id = '', format] = /^(.*)\/(.*)\.(qcow2|raw)$/.exec(f) ?? []
        return at === pool.id ? [{ id, format: format as 'qcow2', temporary: false }] : []
      })
    const migration = {
      ask: async () =>
        waits ? { is: 'there', status: 'inmigrate', migration: 'none', epoch: 2, job: waits.job } : { is: 'gone' },
      rejoinArriving: async () => {
        if (waits?.ends) throw fail('wrong_state', 'The VM ended at the same moment.')
        return {
          undo: async () => {
            if (waits) waits.undone = true
          },
        }
      },
    }
    const machine = {
      ...deps.machine,
      volumes: { ...volumes, list },
      migration,
      known: async () => (waits ? [VM] : []),
      forget: async () => {
        if (waits) waits.folder = false
      },
    }
    return { ...deps, machine: machine as unknown as Machine }
  }

  beforeEach(async () => {
    waits = undefined
    const store = openMemoryStore()
    await store.txn(
      [],
      [
        ...ground(),
        put(hostKind, B, { schema: 1, id: B, name: 'there', created_at: named.created_at }),
        put(poolKind, POOL_B, poolB),
        put(vmKind, VM, vm),
        put(placementKind, VM, { schema: 1, host: HOST, epoch: 1 }),
        put(volumeKind, DISK, {
          ...named,
          id: DISK,
          name: 'web-root',
          pool: POOL,
          format: 'qcow2',
          size_bytes: 10 * GIB,
          base: BASE,
          vm: VM,
          read_only: false,
        }),
      ],
      'made',
    )
    worlds = { a: new FakeWorld(), b: new FakeWorld() }
    worlds.a.files.add(`${POOL}/${DISK}.qcow2`).add(`${POOL}/${BASE}.qcow2`)
    for (let i = 0; i < 2; i++) views.push(await CachedView.open(store, {}))
    const [viewA, viewB] = views.slice(-2) as [CachedView, CachedView]
    const askHost = async <T>(host: string, path: string, body: unknown) => {
      const asked = host === B ? b : a
      return (await (path === HAS_PATH ? answerHas(asked, body) : asked.machine.volumes.facts(body as never))) as T
    }
    b = { ...listing({ ...fakeDeps(store, viewB, worlds.b), hostId: B }, worlds.b), askHost }
    a = { ...listing(fakeDeps(store, viewA, worlds.a), worlds.a), askHost }
  })
  afterEach(async () => {
    for (const view of views.splice(0)) await view.close()
  })

  const apply = async (deps: Deps, change: Promise<{ checks: never[] | object; writes: object }>) => {
    const { checks, writes } = await change
    await commit(deps, checks as never, writes as never)
    await b.view.waitFor(await deps.store.current())
    await a.view.waitFor(await deps.store.current())
  }
  const volume = async () => (await a.store.get(volumeKind, DISK))?.value
  const never = new AbortController().signal
  const fileB = `${POOL_B}/${DISK}.qcow2`
  const expected = async () => undefined

  test('they go to the usual pool there, or to the one that was named, if it is there', async () => {
    const [disk] = await placeDisks(a, vm, B, undefined)
    expect(disk).toEqual({ name: 'root', volume: DISK, from: POOL, to: POOL_B, format: 'qcow2', size_bytes: 10 * GIB })
    expect((await placeDisks(a, vm, B, POOL_B))[0]?.to).toBe(POOL_B)
    await expect(placeDisks(a, vm, B, 'default')).rejects.toMatchObject({
      fault: { code: 'wrong_state', field: '/pool' },
    })
    await expect(placeDisks(a, vm, B, 'nothing')).rejects.toMatchObject({ fault: { code: 'not_found' } })
  })

  test('not where there is no room', async () => {
    const other = {
      ...((await volume()) as object),
      id: 'vol-bigbigbiga',
      name: 'big',
      pool: POOL_B,
      size_bytes: 95 * GIB,
    }
    await apply(a, Promise.resolve({ checks: [], writes: [put(volumeKind, 'vol-bigbigbiga', other as never)] }))
    await expect(placeDisks(a, vm, B, undefined)).rejects.toMatchObject({ fault: { code: 'no_room' } })
    // Another pool of that host has it.
    const roomy = put(poolKind, 'pool-roomyroomy', { ...poolB, id: 'pool-roomyroomy', name: 'roomy', path: '/r' })
    await apply(a, Promise.resolve({ checks: [], writes: [roomy] }))
    expect((await placeDisks(a, vm, B, undefined))[0]?.to).toBe('pool-roomyroomy')
  })

  test('the room is promised while they go; what comes to nothing is swept, and not before', async () => {
    const disks = await placeDisks(a, vm, B, undefined)
    await apply(a, markMoving(a, disks, JOB))
    expect([promisedBytes(a, POOL), promisedBytes(a, POOL_B)]).toEqual([11 * GIB, 10 * GIB])
    // Another move's words are not this one's.
    expect(await roomsFor(b, vm, 'job-bbbbbbbbbb')).toEqual([])
    const rooms = await roomsFor(b, vm, JOB)
    expect(rooms[0]).toMatchObject({ name: 'root', pool: { id: POOL_B }, volume: { id: DISK, pool: POOL_B } })
    expect(rooms[0]?.volume.base).toBeUndefined()
    await makeRooms(b, rooms, 5000, expected, never)
    await sweepMoves(b)
    expect(worlds.b.files).toContain(fileB)
    await apply(a, unmarkMoving(a, disks, 'job-bbbbbbbbbb'))
    expect((await volume())?.moving_to).toBeDefined()
    await apply(a, unmarkMoving(a, disks, JOB))
    expect((await volume())?.moving_to).toBeUndefined()
    expect((await volume())?.base).toBe(BASE)
    await sweepMoves(b)
    expect(worlds.b.files).not.toContain(fileB)
    // What lies where the records say is nobody's leftover.
    await sweepMoves(a)
    expect([...worlds.a.files].sort()).toEqual([`${POOL}/${BASE}.qcow2`, `${POOL}/${DISK}.qcow2`])
  })

  test('they have come: the record says so, they stand by themselves, and the copies here go', async () => {
    const disks: DiskMove[] = await placeDisks(a, vm, B, undefined)
    await dropMoved(a, disks)
    expect(worlds.a.files).toContain(`${POOL}/${DISK}.qcow2`)
    await apply(a, markMoving(a, disks, JOB))
    await makeRooms(b, await roomsFor(b, vm, JOB), 5000, expected, never)
    await apply(b, arrivedDisks(b, vm, JOB))
    expect(await volume()).toMatchObject({ pool: POOL_B, vm: VM, size_bytes: 10 * GIB })
    expect((await volume())?.base).toBeUndefined()
    expect((await volume())?.moving_to).toBeUndefined()
    // Done twice is done once.
    expect((await arrivedDisks(b, vm, JOB)).writes).toEqual([])
    worlds.a.files.add(`${POOL}/${DISK}.qcow2`)
    await sweepMoves(a)
    expect(worlds.a.files).not.toContain(`${POOL}/${DISK}.qcow2`)
    await dropMoved(a, disks)
    await sweepMoves(b)
    expect(worlds.b.files).toContain(fileB)
    expect(worlds.a.files).toContain(`${POOL}/${BASE}.qcow2`)
  })

  describe('with snapshots', () => {
    const LAYER = 'vol-layerlayer'
    const BRANCH = 'vol-branchbran'
    const RAM = 'vol-ramramrama'
    beforeEach(async () => {
      const of = { ...named, pool: POOL, format: 'qcow2' as const, size_bytes: 10 * GIB, vm: VM, read_only: true }
      const layer = { ...of, role: 'layer' as const, held_bytes: GIB }
      const rows = [
        { ...layer, id: LAYER, name: 'web-root-one', base: BASE },
        // Of a snapshot that the VM was taken back from.
        { ...layer, id: BRANCH, name: 'web-root-two', base: LAYER },
        {
          ...of,
          id: RAM,
          name: 'web-ram-two',
          format: 'raw' as const,
          size_bytes: GIB,
          held_bytes: GIB,
          role: 'ram' as const,
        },
        { ...((await volume()) as object), base: LAYER },
      ] as never[]
      await apply(
        a,
        Promise.resolve({ checks: [], writes: rows.map((v: { id: string }) => put(volumeKind, v.id, v as never)) }),
      )
      for (const id of [LAYER, BRANCH]) worlds.a.files.add(`${POOL}/${id}.qcow2`)
      worlds.a.files.add(`${POOL}/${RAM}.raw`)
    })

    test('layers and RAM go along, into one pool; only what no image stands below is copied as it is', async () => {
      const moves = await placeDisks(a, vm, B, undefined)
      expect(moves.map((m) => [m.volume, m.to, m.based, m.held])).toEqual([
        [DISK, POOL_B, true, undefined],
        [BRANCH, POOL_B, true, true],
        [LAYER, POOL_B, undefined, true],
        [RAM, POOL_B, undefined, true],
      ])
      await apply(a, markMoving(a, moves, JOB))
      // What nobody writes any more takes what it takes.
      expect(promisedBytes(a, POOL_B)).toBe(22 * GIB)
    })

    test('over there the disk stands on its layers, whose files must have come; the records say so', async () => {
      const moves = await placeDisks(a, vm, B, undefined)
      await apply(a, markMoving(a, moves, JOB))
      const rooms = await roomsFor(b, vm, JOB)
      const [top] = rooms
      expect(layersOf(rooms, top as Room).map((r) => r.volume.id)).toEqual([DISK, LAYER])
      await expect(makeRooms(b, rooms, 5000, expected, never)).rejects.toMatchObject({ fault: { code: 'gone' } })
      for (const id of [LAYER, BRANCH]) worlds.b.files.add(`${POOL_B}/${id}.qcow2`)
      worlds.b.files.add(`${POOL_B}/${RAM}.raw`)
      await makeRooms(b, rooms, 5000, expected, never)
      expect(worlds.b.files.size).toBe(4)
      await apply(b, arrivedDisks(b, vm, JOB))
      const bases = await Promise.all(
        [DISK, LAYER, BRANCH, RAM].map(async (id) => (await a.store.get(volumeKind, id))?.value),
      )
      expect(bases.map((v) => [v?.pool, v?.base, v?.moving_to])).toEqual([
        [POOL_B, LAYER, undefined],
        [POOL_B, undefined, undefined],
        [POOL_B, LAYER, undefined],
        [POOL_B, undefined, undefined],
      ])
      await dropMoved(a, moves)
      expect([...worlds.a.files]).toEqual([`${POOL}/${BASE}.qcow2`])
    })

    test('a try of the same job that is undone late takes no layer that the next one has brought', async () => {
      const moves = await placeDisks(a, vm, B, undefined)
      await apply(a, markMoving(a, moves, JOB))
      for (const id of [DISK, LAYER, BRANCH]) worlds.b.files.add(`${POOL_B}/${id}.qcow2`)
      await arrivals(b, new Turns(4)).undone?.(JOB, VM)
      expect([...worlds.b.files].toSorted()).toEqual([`${POOL_B}/${BRANCH}.qcow2`, `${POOL_B}/${LAYER}.qcow2`])
    })

    test('a move claims the VM and its disks, however many layers there are', async () => {
      const [top, layer] = await placeDisks(a, vm, B, undefined)
      const disks = [top, ...Array.from({ length: 100 }, (_, i) => ({ ...layer, volume: `vol-${i}` }))]
      expect(migrateVm.claims?.({ vm: VM, disks } as never, { kind: 'vm', id: VM } as never)).toEqual([
        `vm/${VM}`,
        `volume/${DISK}`,
      ])
    })

    test('what came to nothing goes, layers too', async () => {
      const moves = await placeDisks(a, vm, B, undefined)
      await apply(a, markMoving(a, moves, JOB))
      const rooms = await roomsFor(b, vm, JOB)
      for (const id of [LAYER, BRANCH]) worlds.b.files.add(`${POOL_B}/${id}.qcow2`)
      await dropArrival(b, JOB, VM, rooms)
      expect([...worlds.b.files]).toEqual([])
      worlds.b.files.add(`${POOL_B}/${LAYER}.qcow2`)
      await apply(a, unmarkMoving(a, moves, JOB))
      await sweepMoves(b)
      expect([...worlds.b.files]).toEqual([])
      expect(worlds.a.files.size).toBe(5)
    })
  })

  test('what may be all there is stays: the host that the store names says that it has it, or nothing goes', async () => {
    // As after a recovery from a copy of the store that is older than the move.
    worlds.b.files.add(fileB)
    worlds.a.files.delete(`${POOL}/${DISK}.qcow2`)
    await sweepMoves(b)
    expect(worlds.b.files).toContain(fileB)
    // Who is silent is asked again.
    expect(await sweepMoves({ ...b, askHost: async () => Promise.reject(new Error('silent')) })).toBe(1)
    expect(worlds.b.files).toContain(fileB)
    expect(await sweepMoves(b)).toBe(0)
    worlds.a.files.add(`${POOL}/${DISK}.qcow2`)
    await sweepMoves(b)
    expect(worlds.b.files).not.toContain(fileB)
    // The same of what else a host alone may have of a VM; one that has none of it loses nothing.
    expect(await isWhereItBelongs(b, VM)).toBe(true)
    const tpm = put(vmKind, VM, { ...vm, spec: { ...vm.spec, tpm: true } } as VmRecord)
    await apply(a, Promise.resolve({ checks: [], writes: [tpm] }))
    expect(await isWhereItBelongs(b, VM)).toBe(false)
    waits = { job: JOB, undone: false, folder: true }
    expect(await isWhereItBelongs(b, VM)).toBe(true)
  })

  test('on the way to a host nothing of it is wanted there before; what is taken back is not what comes next', async () => {
    const disks = await placeDisks(a, vm, B, undefined)
    await apply(a, markMoving(a, disks, JOB))
    const rooms = await roomsFor(b, vm, JOB)
    const bootable = { ...vm, spec: { ...vm.spec, boot: { kind: 'disk' } } } as VmRecord
    await expect(filesReady(b, bootable)).rejects.toMatchObject({ fault: { code: 'not_found' } })
    await filesReady(b, bootable, ['root'])
    await expect(makeRooms(b, rooms, 5000, async () => Promise.reject(new Error('given up')), never)).rejects.toThrow(
      'given up',
    )
    expect(worlds.b.files).not.toContain(fileB)
    const way = async (to: string, job: string) => {
      const handover = { to, epoch: 2, job, sealed: false }
      const on = put(placementKind, VM, { schema: 1, host: HOST, epoch: 1, handover })
      await apply(a, Promise.resolve({ checks: [], writes: [on] }))
    }
    worlds.b.files.add(fileB)
    await way(B, 'job-bbbbbbbbbb')
    await dropArrival(b, JOB, VM, rooms)
    expect(worlds.b.files).toContain(fileB)
    await way('host-cccccccccc', 'job-bbbbbbbbbb')
    await dropArrival(b, JOB, VM, rooms)
    expect(worlds.b.files).not.toContain(fileB)
  })

  test('a QEMU that waits for a guest is ended once no move is noted, and its disks stay as long as it is there', async () => {
    waits = { job: JOB, undone: false, folder: true }
    worlds.b.files.add(fileB)
    const handover = { to: B, epoch: 2, job: JOB, sealed: true }
    const noted = put(placementKind, VM, { schema: 1, host: HOST, epoch: 1, handover })
    await apply(a, Promise.resolve({ checks: [], writes: [noted] }))
    // It is looked at again: what it waits for may come to nothing a moment later.
    expect(await sweepMoves(b)).toBe(1)
    expect(waits).toMatchObject({ undone: false, folder: true })
    expect(worlds.b.files).toContain(fileB)
    await apply(
      a,
      Promise.resolve({ checks: [], writes: [put(placementKind, VM, { schema: 1, host: HOST, epoch: 1 })] }),
    )
    // It may end while it is looked at: no reason to give up, and what else is left is looked at all the same.
    Object.assign(waits, { ends: true })
    const other = 'vol-otherother'
    worlds.b.files.add(`${POOL_B}/${other}.qcow2`)
    const elsewhere = { ...((await volume()) as object), id: other, name: other, vm: undefined }
    await apply(a, Promise.resolve({ checks: [], writes: [put(volumeKind, other, elsewhere as never)] }))
    worlds.a.files.add(`${POOL}/${other}.qcow2`)
    expect(await sweepMoves(b)).toBeGreaterThan(0)
    expect(worlds.b.files).not.toContain(`${POOL_B}/${other}.qcow2`)
    expect(waits).toMatchObject({ undone: false, folder: true })
    Object.assign(waits, { ends: false })
    await sweepMoves(b)
    expect(waits).toMatchObject({ undone: true, folder: false })
    expect(worlds.b.files).not.toContain(fileB)
  })
})
