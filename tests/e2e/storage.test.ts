import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, volumes, pools } = endpoints
let d: Daemon
let mount: string

/** A small file system of its own: 160 MiB that nobody else fills. */
beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  mount = `/mnt/wadah-${d.instance}`
  mkdirSync(mount, { recursive: true })
  const done = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=160m,mode=0755', 'wadah-test', mount], {
    encoding: 'utf8',
  })
  if (done.status !== 0) throw new Error(done.stderr)
  await d.start()
  await d.tiny()
  await d.api.call(pools.create, { body: { name: 'small', path: mount, overcommit: 10 } })
})
afterAll(async () => {
  await d.purge()
  spawnSync('umount', ['-l', mount])
  rmSync(mount, { recursive: true, force: true })
})

describe('a pool that is small', () => {
  test('promises no more than it may, with the numbers', async () => {
    const more = d.api.call(volumes.create, { body: { name: 'huge', pool: 'small', size_mib: 2000 } })
    await expect(more).rejects.toMatchObject({
      fault: { code: 'no_room', field: '/size_mib', detail: expect.stringMatching(/1\.5 GiB.*1\.9 GiB/) },
    })
  })

  test('full while a guest writes: the VM pauses, says why, and goes on by itself with nothing lost', async () => {
    const ballast = `${mount}/ballast`
    writeFileSync(ballast, Buffer.alloc(90 * 1024 * 1024))
    await d.create({
      name: 'writer',
      start: true,
      disks: [{ name: 'data', size_mib: 120, pool: 'small', format: 'raw' }],
    })
    await d.booted('writer')
    const stream = 'yes wadah | head -c 104857600'
    const command = `${stream} >/dev/vda && sync && echo 3 >/proc/sys/vm/drop_caches; ${stream} | md5sum; head -c 104857600 /dev/vda | md5sum`
    const sums = d.api.call(vms.exec, {
      params: { vm: 'writer' },
      body: { argv: ['/bin/busybox', 'sh', '-c', command], timeout_ms: 240_000 },
    })
    const paused = await until(
      'the pause',
      async () => {
        const vm = await d.vm('writer')
        return vm.status.state === 'paused' && vm
      },
      120_000,
    )
    expect(paused.status).toMatchObject({ paused_by: 'io-error', reason: expect.stringContaining('pool is full') })
    const host = await d.api.call(endpoints.system.host)
    expect(host.attention.some((a) => a.about === 'VM writer')).toBe(true)
    rmSync(ballast)
    await until('it to go on', async () => (await d.vm('writer')).status.state === 'running')
    const { exit_code, stdout } = await sums
    const lines = Buffer.from(stdout, 'base64').toString().trim().split('\n')
    expect([exit_code, lines.length, new Set(lines).size]).toEqual([0, 2, 1])
  })

  test('full in the middle of a full clone: refused with no_room, nothing is left', async () => {
    await d.done(await d.api.call(vms.shutdown, { params: { vm: 'writer' }, body: { force: true } }))
    await until('its end', async () => (await d.vm('writer')).status.state === 'stopped')
    const source = (await d.vm('writer')).spec.disks[0]?.volume ?? ''
    const job = await d.api.call(volumes.clone, { params: { volume: source }, body: { name: 'copy', clone: 'full' } })
    const ended = await d.ended(job)
    expect([ended.state, ended.fault?.code]).toEqual(['failed', 'no_room'])
    expect((await d.api.call(volumes.list, { query: { pool: 'small' } })).items.map((v) => v.id)).toEqual([source])
    const found = spawnSync('find', [mount, '-type', 'f'], { encoding: 'utf8' }).stdout.trim().split('\n')
    expect(found).toHaveLength(1)
  })

  test('a full clone that is cancelled leaves nothing', async () => {
    await d.done(await d.api.call(volumes.create, { body: { name: 'long', size_mib: 4000, format: 'raw' } }))
    const job = await d.api.call(volumes.clone, { params: { volume: 'long' }, body: { name: 'cut', clone: 'full' } })
    await d.api.call(endpoints.jobs.cancel, { params: { job: job.id } }).catch(() => undefined)
    const ended = await d.ended(job)
    const names = (await d.api.call(volumes.list)).items.map((v) => v.name)
    expect(ended.state === 'done' ? names.includes('cut') : !names.includes('cut')).toBe(true)
    expect(d.traces().temporary).toEqual([])
  })

  test('a pool with volumes stays', async () => {
    await expect(d.api.call(pools.delete, { params: { pool: 'small' } })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    await d.done(await d.api.call(vms.delete, { params: { vm: 'writer' } }))
    await d.api.call(pools.delete, { params: { pool: 'small' } })
    expect(spawnSync('ls', ['-A', mount], { encoding: 'utf8' }).stdout).toBe('')
  })
})
