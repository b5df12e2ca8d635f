/** The file system of the store is full: changes are refused and change nothing, everything else works on, and so do changes once there is room. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead } from '../kit/daemon.ts'

let d: Daemon
beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  mkdirSync(d.data, { recursive: true, mode: 0o711 })
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=24M,mode=0711', 'wadah-test', d.data], {
    encoding: 'utf8',
  })
  expect(mounted.stderr).toBe('')
  await d.start()
})
afterAll(async () => {
  await d.kill('SIGKILL')
  spawnSync('umount', ['--lazy', d.data])
  await d.purge()
  // The mount point: the purge found no store in it, and leaves a folder that is not its own.
  rmSync(d.data, { recursive: true, force: true })
})

const filler = () => join(d.data, 'filler')
function fill(): void {
  const { bavail, bsize } = statfsSync(d.data)
  writeFileSync(filler(), Buffer.alloc(Number(bavail) * Number(bsize)))
  expect(statfsSync(d.data).bavail).toBe(0)
}

test('a full disk refuses changes by name, and they go on once there is room', async () => {
  const vm = await d.create({ name: 'one', image: undefined, disk_mib: 1 })
  fill()
  let refused = 0
  // The store's own file has some room left in it: until that is used up changes still fit.
  for (let i = 0; i < 400 && refused < 3; i++) {
    const description = `${i} ${'x'.repeat(4000)}`
    const answer = await d.raw('PATCH', `/v1/vms/${vm.id}`, { description })
    if (answer.status === 200) continue
    refused += 1
    expect([answer.status, answer.body.code, answer.body.effect]).toEqual([507, 'no_room', 'none'])
    // What was there is there, and can be read.
    const { description: now } = await d.vm('one')
    expect(now.startsWith(`${i} `)).toBe(false)
  }
  expect(refused).toBe(3)
  expect((await d.raw('POST', '/v1/store/backup')).status).toBe(507)
  expect(
    (await d.raw('GET', '/v1/host/check')).body.items.find((i: { name: string }) => i.name === 'disk space').state,
  ).toBe('lack')
  // Also through a crash: it opens again on a full disk, or says why not; with room it has all that was acknowledged.
  const before = await d.vm('one')
  await d.kill('SIGKILL')
  rmSync(filler())
  await d.start()
  expect((await d.vm('one')).description).toBe(before.description)
  const edited = await d.api.call(endpoints.vms.edit, { params: { vm: 'one' }, body: { description: 'room again' } })
  expect(edited.description).toBe('room again')
})
