/** An edit that adds disks, with the daemon killed after each commit and each call on the machine: all or nothing, and nothing leaks. */
import { rmSync } from 'node:fs'
import { afterEach, expect, test } from 'vitest'
import { Cut } from '../src/jobs/testing-cut.ts'
import { hasEnded, jobKind } from '../src/jobs/record.ts'
import { volumeKind } from '../src/records.ts'
import { POOL, caller, room } from './kit/cluster.ts'

type Room = Awaited<ReturnType<typeof room>>
const closing: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0)) await close()
})

/** Nothing is at work any more, and every volume is a disk of a VM or was free before. */
async function settled(r: Room): Promise<void> {
  await expect
    .poll(async () => {
      await r.view.waitFor(await r.store.current())
      const jobs = r.view.list(jobKind).filter(({ value }) => !hasEnded(value))
      const marked = r.view.list(volumeKind).filter(({ value }) => value.making || value.added_to !== undefined)
      return [...jobs, ...marked].map(({ id }) => id)
    })
    .toEqual([])
}

async function crashed(arm: (cut: Cut) => void): Promise<boolean> {
  const before = await room()
  await before.done(before.vms.create(caller, { name: 'one', nics: [], image: 'web' }))
  await before.done(before.storage.createVolume(caller, { name: 'free', size_mib: 5 }))
  const ground = [...before.world.files].sort()
  await before.end()
  const cut = new Cut()
  const mortal = await room(before, undefined, cut)
  closing.push(async () => rmSync(mortal.dir, { recursive: true, force: true }))
  Object.assign(cut, { commits: 0, calls: [] })
  arm(cut)
  const body = { add_disks: [{ size_mib: 5 }, { volume: 'free' }, { name: 'data', size_mib: 6 }] }
  const answer = await cut.orDeath(mortal.vms.edit(caller, 'one', body, undefined))
  const after = await room(before)
  closing.push(() => after.close())
  await settled(after)
  const vm = after.vms.get(caller, 'one')
  const disks = vm.spec.disks.map((d) => d.name)
  const volumes = after.storage.listVolumes(caller, {}).items
  expect(volumes.map((v) => `${POOL}/${v.id}.${v.format}`).sort()).toEqual([...after.world.files].sort())
  if (disks.length === 1) {
    expect(answer).toBeUndefined()
    expect([...after.world.files].sort()).toEqual(ground)
    expect(volumes.find((v) => v.name === 'free')?.vm).toBeUndefined()
    // The names are free again.
    await after.vms.edit(caller, 'one', body, undefined)
    expect(after.vms.get(caller, 'one').spec.disks).toHaveLength(4)
  } else {
    expect(disks).toEqual(['root', 'disk1', 'disk2', 'data'])
    for (const d of vm.spec.disks) expect(volumes.find((v) => v.id === d.volume)?.vm).toBe(vm.id)
  }
  return cut.dead
}

test('after each commit', async () => {
  for (let n = 1; ; n++) {
    if (!(await crashed((cut) => (cut.dieAfterCommit = n)))) return expect(n).toBeGreaterThan(4)
  }
}, 60_000)

test('after each call on the machine', async () => {
  for (let n = 1; ; n++) {
    if (!(await crashed((cut) => (cut.dieAfterCall = n)))) return expect(n).toBeGreaterThan(3)
  }
}, 60_000)
