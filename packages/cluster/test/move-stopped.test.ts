/** A stopped VM goes to another host with what lies on its host alone: both hosts over one store, the job under the generic test. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { ByteStream } from '@wadah/ports/volumes'
import { CachedView } from '@wadah/store/cache'
import { type Store, put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { describe, expect, test } from 'vitest'
import type { Deps } from '../src/context.ts'
import { JobEngine } from '../src/jobs/engine.ts'
import { checkJob, type World } from '../src/jobs/testing.ts'
import { answerWay, WAY_PATH } from '../src/members/way.ts'
import { Talk } from '../src/migration/talk.ts'
import { type Wire, wire } from '../src/migration/testing.ts'
import {
  hostKind,
  type PlacementRecord,
  placementKind,
  poolKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { answerBrought, answerKept, Bringings } from '../src/vms/bring-in.ts'
import { BROUGHT_PATH } from '../src/vms/bring-out.ts'
import { KEPT_PATH } from '../src/vms/kept.ts'
import { answerHas, HAS_PATH, LEFTOVERS_PATH, sweepMoves } from '../src/vms/local-disks.ts'
import { Turns } from '../src/migration/turns.ts'
import { type MigrateParams, migrateVm } from '../src/vms/migrate.ts'
import { BASE, HOST, POOL, fakeDeps, ground } from './kit/cluster.ts'
import { FakeWorld } from './kit/fake-machine.ts'

const [B, POOL_B, VM] = ['host-bbbbbbbbbb', 'pool-bbbbbbbbbb', 'vm-aaaaaaaaaa']
const DISKS = ['vol-diskdiskaa', 'vol-diskdiskab'] as const
/** Who carries the job out, in the harness. */
const EXECUTOR = 'host-test'
/** Below the second disk, and what the snapshot saved of RAM. */
const [LAYER, RAM] = ['vol-layerlayer', 'vol-ramramrama']
const SNAPSHOT = 'snap-aaaaaaaaaa'
const STATE = { 'nvram.fd': 'dmFycw==', 'tpm/tpm2-00.permall': 'dHBt' }
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }
const params: MigrateParams = {
  vm: VM,
  name: 'web',
  from: HOST,
  to: B,
  epoch: 2,
  live: false,
  mode: 'auto',
  limits: { max_stall_ms: 300 },
  tls: true,
  disks: [
    ...DISKS.map((volume, i) => ({ name: `disk${i}`, volume, ...(i === 1 ? { based: true as const } : {}) })),
    { name: 'web-disk1-before', volume: LAYER, held: true as const },
    { name: 'web-ram-before', volume: RAM, held: true as const },
  ].map((d) => ({ ...d, from: POOL, to: POOL_B, format: d.volume === RAM ? 'raw' : 'qcow2', size_bytes: 2 ** 30 })),
  state: true,
}

/** What the target answers, by path. */
type Asked = Record<string, (body: unknown) => Promise<unknown>>
type Two = World<Deps> & {
  worlds: [FakeWorld, FakeWorld]
  views: [CachedView, CachedView]
  wires: Wire[]
  hooks: { wire?: (w: Wire) => void }
  b: Deps
  turns: Turns
  asked: Asked
}

async function two(store: Store, { spec = {} } = {}): Promise<Two> {
  const worlds: [FakeWorld, FakeWorld] = [new FakeWorld(), new FakeWorld()]
  const disks = DISKS.map((volume, i) => ({ name: `disk${i}`, volume, limits: {} }))
  const vm = {
    ...named,
    id: VM,
    name: 'web',
    description: '',
    labels: {},
    wanted: 'stopped',
    spec: { uid: 5000, disks, tpm: true, firmware: { kind: 'uefi' }, ...spec },
  }
  const pool = { ...named, id: POOL_B, name: 'fast', kind: 'dir', path: '/q', overcommit: 1, direct_io: true, host: B }
  await store.txn(
    [],
    [
      ...ground(),
      put(hostKind, B, { schema: 1, id: B, name: 'there', created_at: named.created_at, address: '192.0.2.2' }),
      put(poolKind, POOL_B, pool as never),
      put(vmKind, VM, vm as never),
      put(placementKind, VM, { schema: 1, host: HOST, epoch: 1 }),
      // Of disks that are in shared pools by the time it moves: what it keeps of UEFI is on the host.
      put(snapshotKind, SNAPSHOT, { ...named, id: SNAPSHOT, name: 'before', vm: VM, spec: vm.spec } as never),
      ...[...DISKS, LAYER, RAM].map((id, i) =>
        put(volumeKind, id, {
          ...named,
          id,
          name: id,
          pool: POOL,
          format: id === RAM ? 'raw' : 'qcow2',
          size_bytes: 2 ** 30,
          ...(id === RAM ? {} : { base: i === 1 ? LAYER : BASE }),
          vm: VM,
          read_only: i > 1,
          ...(i > 1 ? { role: id === RAM ? ('ram' as const) : ('layer' as const) } : {}),
        }),
      ),
    ],
    `ground-${Math.random()}`,
  )
  worlds[0].files.add(`${POOL}/${BASE}.qcow2`)
  for (const id of [...DISKS, LAYER]) worlds[0].files.add(`${POOL}/${id}.qcow2`)
  worlds[0].files.add(`${POOL}/${RAM}.raw`)
  worlds[0].folders.add(VM)
  worlds[0].states.set(VM, STATE)
  worlds[0].kept.add(`${VM}/${SNAPSHOT}`)
  const views: [CachedView, CachedView] = [await CachedView.open(store), await CachedView.open(store)]
  const plain = { ...fakeDeps(store, views[1], worlds[1]), hostId: B }
  const { volumes } = plain.machine
  const list = async (at: { id: string }) =>
    [...worlds[1].files].flatMap((f) => {
      const [, within, id = '', format] = /^(.*)\/(.*)\.(qcow2|raw)$/.exec(f) ?? []
      return within === at.id ? [{ id, format: format as 'qcow2', temporary: false }] : []
    })
  const migration = { ask: async () => ({ is: 'gone' }) }
  const machine = { ...plain.machine, migration, volumes: { ...volumes, list } }
  const a = fakeDeps(store, views[0], worlds[0])
  const askHost = async (_host: string, path: string, body: unknown) =>
    path === HAS_PATH ? answerHas(a, body) : undefined
  const b = { ...plain, machine, askHost } as unknown as Deps
  const ending = new AbortController()
  const turns = new Turns(1)
  const bringings = new Bringings(b, ending.signal, turns)
  const wires: Wire[] = []
  const hooks: Two['hooks'] = {}
  const asked: Asked = {
    [WAY_PATH]: async (body) => answerWay(b, body),
    [BROUGHT_PATH]: (body) => answerBrought(b, body),
    [KEPT_PATH]: (body) => answerKept(b, body, EXECUTOR),
    [LEFTOVERS_PATH]: () => sweepMoves(b),
  }
  const deps = (s: Store): Deps => {
    // With a daemon its connections end, and what it started to read disks.
    for (const w of wires) w.cut()
    worlds[0].served.clear()
    return {
      ...fakeDeps(s, views[0], worlds[0]),
      askHost: async <T>(_host: string, path: string, body: unknown) => (await asked[path]?.(body)) as T,
      moves: {
        open: async () => Promise.reject(new Error('it does not run')),
        bring: async (_host, signal) => {
          signal.throwIfAborted()
          const w = wire()
          wires.push(w)
          hooks.wire?.(w)
          void bringings.handle(w.b, EXECUTOR)
          return w.a
        },
        carry: async (_host, { job, volume }, stream: ByteStream) => bringings.take(job, volume, EXECUTOR)(stream),
      },
    }
  }
  return {
    deps,
    b,
    turns,
    worlds,
    views,
    wires,
    hooks,
    asked,
    snapshot: () => worlds.map((w) => w.snapshot()),
    async close() {
      ending.abort()
      for (const w of wires) w.cut()
      for (const view of views) await view.close()
    },
  }
}

test('whatever happens, it is whole on one of the two hosts, and nothing of it on the other', async () => {
  const tried = await checkJob<MigrateParams, Deps>({ definition: migrateVm, params, world: (store) => two(store) })
  expect(tried.length).toBeGreaterThan(100)
}, 600_000)

describe('one that is on its way', () => {
  async function begun(o: { spec?: object } = {}) {
    const store = openMemoryStore()
    const there = await two(store, o)
    const deps = there.deps(store)
    const logs = mkdtempSync(join(tmpdir(), 'wadah-stopped-'))
    const engine = new JobEngine<Deps>({
      store,
      hostId: EXECUTOR,
      definitions: [migrateVm],
      deps,
      logDir: logs,
      randomBytes: deps.randomBytes,
    })
    const run = async () => {
      const { id } = await engine.submit(migrateVm, params, { subject: 'test', target: { kind: 'vm', id: VM } })
      return engine.wait(id, { timeout_ms: 10_000 })
    }
    const placement = async () => (await store.get(placementKind, VM))?.value as PlacementRecord
    const close = async () => {
      await engine.stop()
      await there.close?.()
      await store.close()
      rmSync(logs, { recursive: true, force: true })
    }
    return { ...there, store, engine, run, placement, close }
  }

  test('is over there: disks that stand on what came along alone, its state, the new epoch; here nothing', async () => {
    const t = await begun()
    expect(await t.run()).toMatchObject({
      state: 'done',
      result: { live: false, mode: 'offline', bytes: 6 * 4096, from: 'here', to: 'there', phases: [{ phase: 'copy' }] },
    })
    expect(await t.placement()).toEqual({ schema: 1, host: B, epoch: 2 })
    for (const id of [...DISKS, LAYER, RAM]) {
      const { pool, base, moving_to } = (await t.store.get(volumeKind, id))?.value ?? {}
      expect([pool, base, moving_to]).toEqual([POOL_B, id === DISKS[1] ? LAYER : undefined, undefined])
    }
    expect(t.worlds[1].states.get(VM)).toEqual(STATE)
    expect([...t.worlds[1].kept]).toEqual([`${VM}/${SNAPSHOT}`])
    const files = [...DISKS.map((id) => `${id}.qcow2`), `${LAYER}.qcow2`, `${RAM}.raw`]
    expect([...t.worlds[1].files].sort()).toEqual(files.map((f) => `${POOL_B}/${f}`).toSorted())
    expect([...t.worlds[0].files]).toEqual([`${POOL}/${BASE}.qcow2`])
    expect([t.worlds[0].folders.size, t.worlds[0].states.size]).toEqual([0, 0])
    await t.close()
  })

  const refusals: [string, { spec?: object }, string, ((w: FakeWorld) => void)?][] = [
    ['no firmware for it there', { spec: { firmware: { kind: 'uefi', secure_boot: true } } }, 'host_lacks'],
    ['no swtpm there', {}, 'host_lacks', (w: FakeWorld) => void (w.tpm = false)],
    ['the pool there is full after all', {}, 'no_room', (w: FakeWorld) => void (w.full = 1)],
    ['a QEMU of it there', {}, 'busy', (w: FakeWorld) => void w.running.add(VM)],
  ]
  test.each(refusals)('%s: it stays, and nothing is left there', async (_, o, code, change) => {
    const t = await begun(o)
    change?.(t.worlds[1])
    const before = [...t.worlds[0].files]
    expect(await t.run()).toMatchObject({ state: 'failed', fault: { code, effect: 'none' } })
    expect(await t.placement()).toEqual({ schema: 1, host: HOST, epoch: 1 })
    expect([...t.worlds[1].files, ...t.worlds[1].folders]).toEqual([])
    expect([...t.worlds[0].files]).toEqual(before)
    expect((await t.store.get(volumeKind, DISKS[0]))?.value.moving_to).toBeUndefined()
    await t.close()
  })

  test('a source that says nothing more: what came goes again; one that begins anew is heard', async () => {
    const t = await begun()
    const held = Promise.withResolvers<void>()
    t.worlds[1].copying = held.promise
    // By itself, also when nobody asks for it.
    delete t.asked[LEFTOVERS_PATH]
    const moving = t.run()
    await expect.poll(() => t.worlds[0].served.size).toBe(1)
    await expect.poll(() => t.worlds[1].states.size).toBe(1)
    t.wires[0]?.cut()
    held.resolve()
    expect(await moving).toMatchObject({ state: 'failed', fault: { code: 'unreachable' } })
    await expect.poll(() => t.worlds[1].folders.size + t.worlds[1].files.size).toBe(0)
    expect(await t.run()).toMatchObject({ state: 'done' })
    await t.close()
  })

  test('an older release there takes nothing that snapshots keep: it stays, and that is said', async () => {
    const t = await begun()
    t.asked[KEPT_PATH] = async () => Promise.reject(fail('not_found', 'There is nothing at /peer/v1/kept.'))
    expect(await t.run()).toMatchObject({ state: 'failed', fault: { code: 'host_lacks', effect: 'none' } })
    expect(await t.placement()).toEqual({ schema: 1, host: HOST, epoch: 1 })
    expect([...t.worlds[1].files, ...t.worlds[1].folders]).toEqual([])
    await t.close()
  })

  const offers: [string, (d: { volume: string; bytes: number; as?: 'layer' }) => object, string][] = [
    ['as what it is not', ({ volume, bytes }) => ({ volume, bytes }), 'not those that room was made for'],
    ['another disk', (d) => ({ ...d, volume: 'vol-otherother' }), 'not those that room was made for'],
  ]
  test.each(offers)('a source that brings %s brings nothing', async (_, change, why) => {
    const t = await begun()
    t.hooks.wire = (w) =>
      w.pass((m) => {
        if (m.type === 'bring') m.bring.disks = m.bring.disks.map(change) as never
        return true
      })
    expect(await t.run()).toMatchObject({ state: 'failed', fault: { detail: expect.stringContaining(why) } })
    expect([...t.worlds[1].files, ...t.worlds[1].folders]).toEqual([])
    await t.close()
  })

  test('a layer that takes more than was promised is not kept', async () => {
    const t = await begun()
    t.worlds[1].allocated = 3 * 2 ** 30
    expect(await t.run()).toMatchObject({ state: 'failed', fault: { code: 'no_room' } })
    expect([...t.worlds[1].files, ...t.worlds[1].folders]).toEqual([])
    await t.close()
  })

  test('what no snapshot of it keeps is not taken', async () => {
    const t = await begun()
    const body = { job: 'job-aaaaaaaaaa', vm: VM, epoch: 2, snapshot: SNAPSHOT, state: {} }
    await expect(answerKept(t.b, body, EXECUTOR)).rejects.toMatchObject({ fault: { code: 'not_owner' } })
    await expect(answerKept(t.b, { ...body, snapshot: '../x' }, EXECUTOR)).rejects.toMatchObject({
      fault: { code: 'malformed' },
    })
    expect(t.worlds[1].kept.size).toBe(0)
    await t.close()
  })

  test('where as many come as that host takes it waits for its turn, and comes then', async () => {
    const t = await begun()
    const never = new AbortController().signal
    const leave = await t.turns.take(new Talk(wire().b, () => 0), 'another', never)
    const done = t.run()
    await expect.poll(() => t.wires[0]?.said.some((s) => s.message.type === 'wait'), { timeout: 10_000 }).toBe(true)
    expect([...t.worlds[1].files]).toEqual([])
    leave()
    expect(await done).toMatchObject({ state: 'done' })
    ;(await t.turns.take(new Talk(wire().b, () => 0), 'next', never))()
    await t.close()
  })

  test('a stranger is told nothing, and takes nothing', async () => {
    const t = await begun()
    const bringings = new Bringings(t.b, new AbortController().signal, new Turns(1))
    const w = wire()
    const handled = bringings.handle(w.b, 'host-cccccccccc')
    const heard: unknown[] = []
    w.a.listen((m) => heard.push(m))
    const bring = { vm: VM, epoch: 2, state: {}, disks: [] }
    w.a.send({ type: 'bring', version: 1, job: 'job-aaaaaaaaaa', bring })
    await handled
    await expect.poll(() => heard.at(-1)).toMatchObject({ type: 'abort', fault: { code: 'not_owner' } })
    expect(() => bringings.take('job-aaaaaaaaaa', DISKS[0], B)).toThrow('Nobody waits')
    expect(t.worlds[1].snapshot()).toEqual(new FakeWorld().snapshot())
    await t.close()
  })
})
