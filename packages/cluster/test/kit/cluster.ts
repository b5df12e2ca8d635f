/** A cluster room over a store in memory and a fake machine, with a pool, two networks and an image. */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Job } from '@wadah/api/schema/job'
import { CachedView } from '@wadah/store/cache'
import { type Clock, systemClock } from '@wadah/store/clock'
import type { Store, Write } from '@wadah/store/store'
import { put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { openCluster } from '../../src/cluster.ts'
import type { Deps } from '../../src/context.ts'
import { type Cut, mortalStore, watched } from '../../src/jobs/testing-cut.ts'
import type { FactsRecord } from '../../src/members/records.ts'
import {
  type ImageRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  networkKind,
  poolKind,
  hostKind,
  volumeKind,
} from '../../src/records.ts'
import type { Caller } from '../../src/services.ts'
import { FakeWorld, fakeMachine } from './fake-machine.ts'

export const CONFIG = { uid_base: 5000, uid_count: 100, memory_overcommit: 1, publish_address: '127.0.0.1' }
export const POOL = 'pool-aaaaaaaaaa'
export const IMAGE = 'img-aaaaaaaaaa'
export const BASE = 'vol-basebasea2'.replace('basebasea2', 'basebaseaa')
export const HOST = 'host-aaaaaaaaaa'
const named = { schema: 1 as const, project: 'default', created_at: '2026-01-01T00:00:00.000Z' }

/** A pool, a nat and a user network, and a disk image with its volume. */
export function ground(): Write[] {
  const image: ImageRecord = {
    ...named,
    id: IMAGE,
    name: 'web',
    kind: 'disk',
    description: '',
    volume: BASE,
    size_bytes: 2 ** 30,
    min_memory_mib: 256,
    agent: true,
    service: { kind: 'http', port: 80, path: '/' },
    ready: true,
    has_initrd: false,
    has_kernel: false,
  }
  const volume: VolumeRecord = {
    ...named,
    id: BASE,
    name: 'image-web',
    pool: POOL,
    format: 'qcow2',
    size_bytes: 2 ** 30,
    image: IMAGE,
    read_only: true,
  }
  const index = (key: string, holder: string) => put(indexKind, key, { schema: 1, holder })
  return [
    put(hostKind, HOST, { schema: 1, id: HOST, name: 'here', created_at: named.created_at }),
    put(poolKind, POOL, {
      ...named,
      id: POOL,
      name: 'default',
      kind: 'dir',
      path: '/p',
      overcommit: 1,
      direct_io: true,
      host: HOST,
    }),
    put(networkKind, 'net-aaaaaaaaaa', {
      ...named,
      id: 'net-aaaaaaaaaa',
      name: 'default',
      kind: 'nat',
      subnet: '10.1.0.0/24',
      gateway: '10.1.0.1',
      bridge: 'b0',
      domain: 'd',
      state: 'up',
    }),
    put(networkKind, 'net-bbbbbbbbbb', { ...named, id: 'net-bbbbbbbbbb', name: 'user', kind: 'user', state: 'up' }),
    put(imageKind, IMAGE, image),
    put(volumeKind, BASE, volume),
    index(indexKeys.name('pool', 'default', 'default'), POOL),
    index(indexKeys.name('network', 'default', 'default'), 'net-aaaaaaaaaa'),
    index(indexKeys.name('network', 'default', 'user'), 'net-bbbbbbbbbb'),
    index(indexKeys.name('image', 'default', 'web'), IMAGE),
    index(indexKeys.name('volume', 'default', 'image-web'), BASE),
  ]
}

export function fakeDeps(store: Store, view: CachedView, world: FakeWorld): Deps {
  return {
    store,
    view,
    machine: fakeMachine(world),
    clock: systemClock,
    randomBytes,
    hostId: HOST,
    hostMemoryMib: 8192,
    config: CONFIG,
    log: () => {},
    syncNetworks: async () => {},
  }
}

export const caller: Caller = {
  subject: { kind: 'socket', id: 'root', name: 'root', scope: 'full' },
  project: 'default',
}
export const reader: Caller = {
  subject: { kind: 'token', id: 'tok-aaaaaaaaaa', name: 'look', scope: 'read' },
  project: 'default',
}

/**
 * The whole room, on its ground; or again on the store and the machine of one that has ended.
 * @param cut kills its daemon; then nothing of it ends or answers any more
 */
export async function room(before?: { store: Store; world: FakeWorld }, clock: Clock = systemClock, cut?: Cut) {
  const store = before?.store ?? openMemoryStore()
  const world = before?.world ?? new FakeWorld()
  if (!before) {
    world.files.add(`${POOL}/${BASE}.qcow2`)
    await store.txn([], ground(), 'ground')
  }
  const dir = mkdtempSync(join(tmpdir(), 'wadah-cluster-'))
  const cluster = await openCluster({
    store: cut ? mortalStore(store, cut) : store,
    machine: cut ? watched(fakeMachine(world), cut) : fakeMachine(world),
    clock,
    randomBytes,
    config: CONFIG,
    version: '0',
    defaultPoolPath: '/p',
    jobLogs: join(dir, 'jobs'),
    lanes: { start: 8, build: 2, create: 16 },
    log: () => {},
    onUnforeseen: (error) => {
      throw error
    },
  })
  const { services, engine, view } = cluster
  return {
    ...services,
    store,
    world,
    cluster,
    view,
    /** Of its job logs; one that dies leaves it. */
    dir,
    /** Waits for a job; what it made is then in the view. */
    async done(job: Promise<Job>): Promise<Job['state']> {
      const ended = await engine.wait((await job).id, { timeout_ms: 10_000 })
      await view.waitFor(await store.current())
      if (ended.state !== 'done') throw new Error(`${ended.name}: ${ended.state} ${ended.fault?.detail}`)
      return ended.state
    },
    /** Ends the daemon; its store and its machine stay. */
    async end() {
      await cluster.stop()
      rmSync(dir, { recursive: true, force: true })
    },
    async close() {
      await cluster.stop()
      await store.close()
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
export { CachedView }

/** What a host says of itself; it reaches nothing unless said. */
export const factsOf = (over: Partial<FactsRecord>): FactsRecord => ({
  schema: 1,
  version: '0',
  cpu_model: '',
  cpu_flags: [],
  cpus: 4,
  memory_mib: 4096,
  memory_free_mib: 4096,
  accelerator: 'tcg',
  qemu_version: '7.2',
  firmware: [],
  tpm: false,
  pools: [],
  networks: [],
  at_ms: 0,
  ...over,
})
