/** Snapshots of real guests over the API and the CLI: taken while they run, gone back to, deleted, by themselves. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { SnapshotRevert } from '@wadah/api/schema/snapshot'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, snapshots, volumes } = endpoints
let d: Daemon

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  await d.tiny()
  await d.create({
    name: 'box',
    start: true,
    disks: [
      { name: 'data', size_mib: 64 },
      { name: 'raw', size_mib: 16, format: 'raw' },
    ],
  })
  await d.booted('box')
})
afterAll(async () => {
  await d.purge()
})

const params = { params: { vm: 'box' } }
const sh = async (script: string) => {
  const { code, out } = await d.exec('box', '/bin/busybox', 'sh', '-c', script)
  if (code !== 0) throw new Error(`${script}: ${out}`)
  return out.trim()
}
const put = (text: string) =>
  sh(
    `for disk in vda vdb; do printf %-512s ${text} | dd of=/dev/$disk bs=512 conv=notrunc,fsync 2>/dev/null; done; echo ${text} > /mark`,
  )
const disk = (name: string) =>
  sh(`echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/${name} bs=512 count=1 2>/dev/null | tr -d '\\0 '`)
const both = async () => [await disk('vda'), await disk('vdb')]
const mark = () => sh('cat /mark 2>/dev/null || echo none')
const list = async () => (await d.api.call(snapshots.list, params)).items
const revert = async (snapshot: string, body: SnapshotRevert = {}) =>
  d.done(await d.api.call(snapshots.revert, { params: { vm: 'box', snapshot }, body }))
const remove = async (snapshot: string) =>
  d.done(await d.api.call(snapshots.delete, { params: { vm: 'box', snapshot } }))

describe('snapshots', () => {
  test('with RAM, while the guest runs: its stall is told, and it goes on there after a revert', async () => {
    await put('one')
    const made = d.cli(['snapshot', 'create', 'box', 'one', '--ram', '--description', 'before the upgrade'])
    expect(made.stderr).not.toContain('power cut')
    expect(made).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/snapshot one \(with RAM\).*stood still for \d+ ms/),
    })
    expect((await d.vm('box')).status).toMatchObject({ state: 'running', pending_restart: [] })
    await put('two')
    // Long enough for a clock that stands where it stood to be told from one that was set.
    await new Promise((resolve) => setTimeout(resolve, 4_000))
    const { pid } = (await d.vm('box')).status
    const refused = d.cli(['snapshot', 'revert', 'box', 'one'])
    expect(refused.code).not.toBe(0)
    expect(refused.stderr).toContain('--force')
    const back = d.cli(['snapshot', 'revert', 'box', 'one', '--force'])
    expect(back).toMatchObject({ code: 0, stdout: expect.stringContaining('goes on where it was') })
    expect((await d.vm('box')).status.pid).not.toBe(pid)
    expect(await mark()).toBe('one')
    expect(await both()).toEqual(['one', 'one'])
    await until('its clock to be right', async () => {
      const [before, seen, after] = [Date.now() / 1000, Number(await sh('date +%s')), Date.now() / 1000]
      return seen >= before - 1.5 && seen <= after + 1
    })
  })

  test('of the disks: consistent as can be had, and said; a restart finds the same disks under the same names', async () => {
    const serial = () => sh('cat /sys/block/vda/serial /sys/block/vdb/serial')
    const before = await serial()
    await put('three')
    await d.done(await d.api.call(snapshots.create, { ...params, body: { name: 'three' } }))
    const taken = (await list()).find((s) => s.name === 'three')
    expect(['frozen', 'crash']).toContain(taken?.consistency)
    if (taken?.consistency === 'crash') expect(taken.note).toBeTruthy()
    expect(await serial()).toBe(before)
    await put('four')
    await revert('three', { force: true, start: true })
    await d.booted('box')
    expect(await mark()).toBe('none')
    expect(await both()).toEqual(['three', 'three'])
    expect(await serial()).toBe(before)
  })

  test('a tree: back to the first, another branch, and what holds it up is refused', async () => {
    await revert('one', { force: true })
    expect(await mark()).toBe('one')
    await put('five')
    await d.done(await d.api.call(snapshots.create, { ...params, body: { name: 'five' } }))
    const shown = d.cli(['snapshot', 'list', 'box']).stdout
    expect(shown).toMatch(/^one +/m)
    expect(shown).toMatch(/^├ three +/m)
    expect(shown).toMatch(/^└ five <- now/m)
    const { items } = await d.api.call(volumes.list, { query: { vm: 'box' } })
    const layer = items.find((v) => v.role === 'layer')
    await expect(d.api.call(volumes.delete, { params: { volume: layer?.id ?? '' } })).rejects.toMatchObject({
      fault: { code: 'in_use', remedy: 'wadah snapshot list box' },
    })
    await expect(d.api.call(vms.edit, { ...params, body: { remove_disks: ['data'] } })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    await expect(d.api.call(vms.delete, { ...params, query: { force: true, keep_disks: true } })).rejects.toMatchObject(
      { fault: { code: 'in_use' } },
    )
  })

  test('deleted under the running guest, in any order: it does not notice, and in the end nothing is left', async () => {
    const { pid } = (await d.vm('box')).status
    await put('six')
    for (const name of ['one', 'three', 'five']) {
      await remove(name)
      expect(await both()).toEqual(['six', 'six'])
    }
    expect((await d.vm('box')).status).toMatchObject({ state: 'running', pid, pending_restart: [] })
    const { items } = await d.api.call(volumes.list, { query: { vm: 'box' } })
    expect(items.map((v) => v.name).sort()).toEqual(['box-data', 'box-raw'])
    expect(items.find((v) => v.name === 'box-raw')?.format).toBe('raw')
    expect(d.traces().volumes).toHaveLength(2)
    await put('seven')
    await d.done(await d.api.call(vms.stop, params))
    await d.done(await d.api.call(vms.start, params))
    await d.booted('box')
    expect(await both()).toEqual(['seven', 'seven'])
  })

  test('a disk grows in between: the snapshot has the old size, the VM after its end the new one', async () => {
    await d.done(await d.api.call(snapshots.create, { ...params, body: { name: 'small' } }))
    await d.done(await d.api.call(volumes.resize, { params: { volume: 'box-raw' }, body: { size_mib: 24 } }))
    expect(await sh('cat /sys/block/vdb/size')).toBe(String(24 * 2048))
    await remove('small')
    expect((await d.api.call(volumes.get, { params: { volume: 'box-raw' } })).size_bytes).toBe(24 * 2 ** 20)
    expect(await both()).toEqual(['seven', 'seven'])
    expect(await sh('cat /sys/block/vdb/size')).toBe(String(24 * 2048))
  })

  test('of one that is off; a clone of it stands by itself', async () => {
    await d.done(await d.api.call(vms.stop, params))
    await expect(d.api.call(snapshots.create, { ...params, body: { ram: true } })).rejects.toMatchObject({
      fault: { code: 'wrong_state', field: '/ram' },
    })
    await d.done(await d.api.call(snapshots.create, { ...params, body: { name: 'off' } }))
    await d.done(await d.api.call(vms.clone, { ...params, body: { name: 'twin' } }))
    await remove('off')
    await d.done(await d.api.call(vms.delete, { params: { vm: 'twin' } }))
    await d.done(await d.api.call(vms.start, params))
    await d.booted('box')
    expect(await both()).toEqual(['seven', 'seven'])
  })

  test('by themselves: shown, taken at the next look, and kept off by --off', async () => {
    const schedule = (...more: string[]) => d.cli(['snapshot', 'schedule', 'box', ...more])
    expect(schedule('--every', '4h', '--keep', '3', '--keep-daily', '2').stdout).toContain(
      'every 4h; kept: the last 3, 2 daily',
    )
    expect(schedule('--every', '4x')).toMatchObject({ stderr: expect.stringContaining('30m, 4h, 1d') })
    const taken = await until(
      'a snapshot by the schedule',
      async () => (await list()).find((s) => s.scheduled && s.state === 'ready'),
      90_000,
    )
    expect(taken.name).toMatch(/^auto-\d{8}-\d{4}$/)
    expect(schedule('--off').stdout).toContain('no snapshots by themselves')
    expect(await list()).toHaveLength(1)
  })

  test('a VM goes with all that its snapshots hold', async () => {
    await d.done(await d.api.call(snapshots.create, { ...params, body: { ram: true } }))
    await d.done(await d.api.call(vms.delete, { ...params, query: { force: true } }))
    expect(d.traces().volumes).toEqual([])
    expect(d.traces().folders).toEqual([])
    expect((await d.api.call(volumes.list)).items.filter((v) => v.vm)).toEqual([])
  })
})
