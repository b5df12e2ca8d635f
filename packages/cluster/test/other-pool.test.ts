/** Default pools have the same path on every host: what a host makes is recorded in a pool of its own, never in another's, nor in one that it may not use. */
import { put } from '@wadah/store/store'
import { afterEach, beforeEach, expect, test } from 'vitest'
import {
  hostKind,
  imageKind,
  type ImageRecord,
  indexKeys,
  indexKind,
  type PoolRecord,
  poolKind,
  volumeKind,
} from '../src/records.ts'
import { NOT_PASSED, UNSAID } from '../src/storage/proven.ts'
import { BASE, caller, HOST, IMAGE, POOL, room } from './kit/cluster.ts'

const [B, OWN] = ['host-bbbbbbbbbb', 'pool-bbbbbbbbbb']
let r: Awaited<ReturnType<typeof room>>

/** This host joined the other: "default" is the other's pool, its own is called after it. Both lie at /p. */
beforeEach(async () => {
  r = await room()
  const theirs = r.view.get(poolKind, POOL)?.value as PoolRecord
  const base = r.view.get(volumeKind, BASE)?.value
  await r.store.txn(
    [],
    [
      put(hostKind, B, { schema: 1, id: B, name: 'there', created_at: theirs.created_at }),
      put(poolKind, POOL, { ...theirs, host: B }),
      put(poolKind, OWN, { ...theirs, id: OWN, name: 'default-here', host: HOST }),
      put(indexKind, indexKeys.name('pool', 'default', 'default-here'), { schema: 1, holder: OWN }),
      put(volumeKind, BASE, { ...base, pool: POOL } as never),
    ],
    'joined',
  )
  await r.view.waitFor(await r.store.current())
})
afterEach(() => r.close())

const refused = { fault: { code: 'wrong_state', detail: expect.stringContaining('on the host there') } }
const poolsOf = () => new Set(r.storage.listVolumes(caller, { limit: 100 }).items.map((v) => v.pool))

test('a clone goes into a pool of the host that makes it', async () => {
  await r.done(r.storage.createVolume(caller, { name: 'data', size_mib: 64 }))
  await expect(r.storage.cloneVolume(caller, 'data', { name: 'copy', pool: 'default' })).rejects.toMatchObject(refused)
  await r.done(r.storage.cloneVolume(caller, 'data', { name: 'copy' }))
  const copy = await r.storage.getVolume(caller, 'copy')
  expect(copy.pool).toBe(OWN)
  expect(r.world.files).toContain(`${OWN}/${copy.id}.qcow2`)
  await r.done(r.storage.deleteVolume(caller, 'copy', undefined))
  expect(r.world.files).not.toContain(`${OWN}/${copy.id}.qcow2`)
})

test('the RAM of a VM without disks is saved in a pool of its host', async () => {
  await r.done(r.vms.create(caller, { name: 'one', memory_mib: 512 }))
  await r.done(r.vms.start(caller, 'one'))
  await r.done(r.snapshots.create(caller, 'one', { ram: true }))
  expect(poolsOf()).toEqual(new Set([POOL, OWN]))
  const ram = r.storage.listVolumes(caller, { vm: r.vms.get(caller, 'one').id, limit: 9 }).items
  expect(ram).toMatchObject([{ role: 'ram', pool: OWN }])
  await r.done(r.snapshots.delete(caller, 'one', 's1'))
  expect([...r.world.files].filter((f) => f.startsWith(OWN))).toEqual([])
})

test('a VM gets no disk that lies in the pool of another host: neither one cloned from its image nor one that is there', async () => {
  await expect(r.vms.create(caller, { name: 'one', image: 'web', host: 'here' })).rejects.toMatchObject(refused)
  const free = { ...r.view.get(volumeKind, BASE)?.value, id: 'vol-freefreeaa', name: 'free', read_only: false }
  delete (free as { image?: string }).image
  await r.store.txn(
    [],
    [
      put(volumeKind, free.id, free as never),
      put(indexKind, indexKeys.name('volume', 'default', 'free'), { schema: 1, holder: free.id }),
    ],
    'free',
  )
  await r.view.waitFor(await r.store.current())
  const disks = [{ volume: 'free' }]
  await expect(r.vms.create(caller, { name: 'one', host: 'here', disks })).rejects.toMatchObject(refused)
  expect(r.view.get(imageKind, IMAGE)?.value as ImageRecord).toMatchObject({ volume: BASE })
})

test('a shared pool whose trial this host did not pass: no start, no new volume, and its check says so', async () => {
  const share = async (tried: Record<string, string>) => {
    const own = r.view.get(poolKind, OWN)?.value as PoolRecord
    await r.store.txn([], [put(poolKind, OWN, { ...own, shared: true, mark: 'm', tried })], JSON.stringify(tried))
    await r.view.waitFor(await r.store.current())
  }
  await r.done(r.vms.create(caller, { name: 'one', memory_mib: 512, disks: [{ size_mib: 64 }] }))
  await share({ [HOST]: NOT_PASSED })
  const why = { code: 'wrong_state', detail: expect.stringMatching(/"default-here" was not tried on here/) }
  const ended = await r.cluster.engine.wait((await r.vms.start(caller, 'one')).id, { timeout_ms: 10_000 })
  expect(ended).toMatchObject({ state: 'failed', fault: { ...why, remedy: expect.stringMatching(/wadah pool show/) } })
  await expect(r.storage.createVolume(caller, { name: 'data', size_mib: 64 })).rejects.toMatchObject({ fault: why })
  const { items } = await r.host.check()
  expect(items).toContainEqual(
    expect.objectContaining({ name: 'pool default-here', state: 'lack', detail: why.detail }),
  )
  await share({ [HOST]: UNSAID })
  await r.done(r.vms.start(caller, 'one'))
})
