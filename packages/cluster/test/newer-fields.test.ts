/** Records as a newer release wrote them, changed by this one: what it does not know stays where it is. */
import { afterEach, expect, test } from 'vitest'
import type { Kind, Rec, Write } from '@wadah/store/store'
import {
  groupKind,
  hostKind,
  imageKind,
  networkKind,
  placementKind,
  poolKind,
  snapshotKind,
  vmKind,
  volumeKind,
} from '../src/records.ts'
import { placedAfterLoss } from '../src/members/lost.ts'
import { placementFor } from '../src/members/recovery.ts'
import { caller, HOST, room } from './kit/cluster.ts'

type Room = Awaited<ReturnType<typeof room>>
let r: Room
afterEach(() => r.close())

/** A status is what the host that runs the VM saw, in that host's own words; jobs are written by the one host that carries them out. */
const KINDS: readonly Kind<object>[] = [
  vmKind,
  placementKind,
  volumeKind,
  poolKind,
  networkKind,
  imageKind,
  groupKind,
  hostKind,
  snapshotKind,
]
const NEW = { of: ['a', 'newer', 'release'] }
/** What is in a record is an object with fields, or a map of the user's words. */
const MAPS = new Set(['labels'])

/** Into every object of it. */
function mark(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(mark)
  if (typeof value !== 'object' || value === null) return value
  const inside = Object.entries(value).map(([k, v]) => [k, MAPS.has(k) ? v : mark(v)] as const)
  return { ...Object.fromEntries(inside), from_newer: NEW }
}
const records = (): Rec<object>[] => KINDS.flatMap((kind) => r.view.list(kind))

async function plant(): Promise<void> {
  const writes = records().map(({ kind, id, value }): Write => ({ op: 'put', kind, id, value: mark(value) }))
  await r.store.txn([], writes, 'newer')
  await r.view.waitFor(await r.store.current())
}

/** Where the mark is missing, of what was there before: by the name of a disk or a NIC, for their order may change. */
function lost(before: unknown, after: unknown, at = ''): string[] {
  if (Array.isArray(before)) {
    const named = (v: unknown) => (v as { name?: unknown } | null)?.name
    const all = Array.isArray(after) ? after : []
    return before.flatMap((b) => {
      const same = named(b) === undefined ? undefined : all.find((a) => named(a) === named(b))
      return same === undefined ? [] : lost(b, same, `${at}/${String(named(b))}`)
    })
  }
  if (typeof before !== 'object' || before === null) return []
  const [was, is] = [before as Record<string, unknown>, after as Record<string, unknown>]
  const own = 'from_newer' in was && JSON.stringify(is['from_newer']) !== JSON.stringify(NEW) ? [at || '/'] : []
  const inner = Object.keys(was).filter((k) => k !== 'from_newer' && typeof is[k] === 'object' && is[k] !== null)
  return [...own, ...inner.flatMap((k) => lost(was[k], is[k], `${at}/${k}`))]
}

const edit = (body: Parameters<Room['vms']['edit']>[2]) => () => r.vms.edit(caller, 'one', body, undefined)
const changes: [string, () => Promise<unknown>][] = [
  ['a VM gets another name', edit({ name: 'other', description: 'x', labels: { a: 'b' }, protected: true })],
  ['a VM gets other sizes', edit({ cpus: 2, memory_mib: 768, limits: { cpu_cap_percent: 50 } })],
  ['a disk gets a limit', edit({ disks: [{ name: 'root', limits: { iops: 100 } }] })],
  ['a VM gets a disk', edit({ add_disks: [{ size_mib: 5 }] })],
  [
    'a VM gives a disk away',
    async () => {
      await r.done(r.snapshots.delete(caller, 'one', 'before'))
      await edit({ remove_disks: ['disk1'] })()
    },
  ],
  ['a VM gets a NIC', edit({ add_nics: [{ network: 'user' }] })],
  ['a VM starts with the host', edit({ autostart: { enabled: true } })],
  ['a VM gets a firewall', edit({ firewall: { in: 'drop' } })],
  ['a schedule of snapshots', edit({ snapshot_schedule: { every_minutes: 60, keep_last: 3 } })],
  ['a VM starts', () => r.done(r.vms.start(caller, 'one'))],
  [
    'a VM starts and stops',
    async () => {
      await r.done(r.vms.start(caller, 'one'))
      await r.done(r.vms.stop(caller, 'one'))
    },
  ],
  ['a snapshot is taken', () => r.done(r.snapshots.create(caller, 'one', {}))],
  ['a snapshot is gone back to', () => r.done(r.snapshots.revert(caller, 'one', 'before', { force: true }))],
  ['a snapshot is deleted', () => r.done(r.snapshots.delete(caller, 'one', 'before'))],
  ['a volume grows', () => r.done(r.storage.resizeVolume(caller, 'free', { size_mib: 64 }))],
  ['a volume gets another format', () => r.done(r.transfers.changeVolume(caller, 'free', { format: 'raw' }))],
  ['a pool promises more', () => r.storage.editPool(caller, 'default', { overcommit: 2 }, undefined)],
  ['a group gets other rules', () => r.firewallGroups.edit(caller, 'web', { name: 'www', rules: [] }, undefined)],
  ['a host is in maintenance', () => r.cluster.services.cluster.edit(caller, HOST, { maintenance: true })],
]

test.each(changes)('%s', async (_what, change) => {
  r = await room()
  await r.done(r.vms.create(caller, { name: 'one', image: 'web', memory_mib: 512, disks: [{ size_mib: 64 }] }))
  await r.done(r.storage.createVolume(caller, { name: 'free', size_mib: 8 }))
  await r.firewallGroups.create(caller, { name: 'web' })
  await r.done(r.snapshots.create(caller, 'one', { name: 'before' }))
  await plant()
  const before = new Map(records().map((rec) => [`${rec.kind}:${rec.id}`, rec]))
  await change()
  await r.view.waitFor(await r.store.current())
  const changed = records().filter((rec) => {
    const was = before.get(`${rec.kind}:${rec.id}`)
    return was !== undefined && was.modified !== rec.modified
  })
  expect(changed).not.toEqual([])
  for (const rec of changed) {
    const key = `${rec.kind}:${rec.id}`
    expect(lost(before.get(key)?.value, rec.value), key).toEqual([])
  }
})

test('a VM whose place is settled after a loss or a recovery', async () => {
  r = await room()
  const newer = { schema: 1 as const, host: 'a', epoch: 3, from_newer: NEW }
  const handover = { to: 'b', epoch: 4, job: 'j', sealed: true }
  expect(placedAfterLoss(newer, 'here', () => true)).toEqual({ ...newer, host: 'here', epoch: 4 })
  expect(placedAfterLoss({ ...newer, handover }, 'here', () => true)).toEqual({ ...newer, host: 'b', epoch: 4 })
  expect(placementFor({ ...newer, handover }, { host: 'c', epoch: 9 })).toEqual({ ...newer, host: 'c', epoch: 9 })
})
