import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Job } from '@wadah/api/schema/job'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'
import { chosen, some } from '../kit/sample.ts'

const { vms } = endpoints
let d: Daemon

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  await d.tiny()
  await d.create({ name: 'steady', start: true, disks: [{ size_mib: 64 }] })
  await d.booted('steady')
})
afterAll(async () => {
  await d.purge()
})

/** Every job ends by itself; then files, processes and records say the same. */
async function settled(): Promise<void> {
  const jobs = await until(
    'every job to end',
    async () => {
      const { items } = await d.api.call(endpoints.jobs.list, { query: { limit: 1000 } })
      return items.every((j) => ['done', 'failed', 'cancelled'].includes(j.state)) && items
    },
    120_000,
  )
  expect(jobs.filter((j) => j.fault?.code === 'internal')).toEqual([])
  const [list, volumes] = [await d.api.call(vms.list), await d.api.call(endpoints.volumes.list)]
  const running = list.items.filter((vm) => vm.status.state === 'running')
  await until(
    'traces to match the records',
    () => {
      const t = d.traces()
      return (
        t.qemus.length === running.length &&
        t.groups.length === running.length &&
        t.volumes.length === volumes.items.length &&
        t.temporary.length === 0 &&
        t.folders.every((id) => list.items.some((vm) => vm.id === id))
      )
    },
    30_000,
  ).catch(() =>
    expect({ traces: d.traces(), running: running.map((v) => v.id), volumes: volumes.items.map((v) => v.id) }).toEqual(
      'the same',
    ),
  )
  for (const vm of list.items) expect(['running', 'stopped']).toContain(vm.status.state)
}

const uptime = async (): Promise<number> =>
  Number((await d.exec('steady', '/bin/busybox', 'cat', '/proc/uptime')).out.split(' ')[0])

/** Begins something, kills the daemon after a while, starts it again, and looks. */
async function crash(delay_ms: number, begin: () => Promise<unknown>): Promise<void> {
  const { pid } = (await d.vm('steady')).status
  const before = await uptime()
  const begun = begin().catch(() => undefined)
  await new Promise((resolve) => setTimeout(resolve, delay_ms))
  await d.kill('SIGKILL')
  await begun
  await d.start()
  await settled()
  // What ran still runs: the same process, and the guest never booted anew.
  expect((await d.vm('steady')).status).toMatchObject({ state: 'running', pid })
  expect(await uptime()).toBeGreaterThan(before)
}

function readStat(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return ''
  }
}

describe('what a landing runs of them', () => {
  test('is as many as were asked for, in their order, others by another seed, and all in the end', () => {
    const cases = [1, 2, 3, 4, 5, 6, 7, 8]
    const by = (seed: number) => chosen(String(seed), cases, 3)
    for (const seed of [1, 2, 3]) expect(by(seed)).toEqual(cases.filter((c) => by(seed).includes(c)))
    expect(by(1)).toHaveLength(3)
    expect(by(1)).toEqual(by(1))
    const seeds = Array.from({ length: 40 }, (_, i) => i)
    expect(new Set(seeds.flatMap(by)).size).toBe(cases.length)
    expect(chosen('a', cases, 99)).toEqual(cases)
  })
})

describe('kill -9 of the daemon', () => {
  const delays = [0, 4, 9, 16, 30, 60, 110, 180, 260]
  test.each(some('create', delays, 4))('%d ms into a create with disk and start', async (delay) => {
    const name = `c${randomBytes(3).toString('hex')}`
    await crash(delay, () =>
      d.api.call(vms.create, { body: { name, image: 'tiny', start: true, nics: [{}], disks: [{ size_mib: 32 }] } }),
    )
  })

  test.each(some('clone', [0, 5, 15, 40], 2))('%d ms into a full clone', async (delay) => {
    const name = `v${randomBytes(3).toString('hex')}`
    await d.done(await d.api.call(endpoints.volumes.create, { body: { name, size_mib: 256 } }))
    await crash(delay, () =>
      d.api.call(endpoints.volumes.clone, { params: { volume: name }, body: { name: `${name}x`, clone: 'full' } }),
    )
  })

  test.each(some('delete', [0, 6, 20, 70], 2))('%d ms into a delete of a running VM', async (delay) => {
    const name = `d${randomBytes(3).toString('hex')}`
    await d.create({ name, start: true, disks: [{ size_mib: 32 }] })
    await crash(delay, () => d.api.call(vms.delete, { params: { vm: name }, query: { force: true } }))
  })

  test.each(some('build', [5, 100, 400], 2))('%d ms into an image build', async (delay) => {
    const name = `i${randomBytes(3).toString('hex')}`
    await crash(delay, () => d.api.call(endpoints.images.build, { body: { recipe: 'tiny', name } }))
  })
})

describe('kill -9 of the daemon in the middle of', () => {
  const { snapshots } = endpoints
  const name = 'snapped'
  const params = { vm: name }
  const line = (text: string) => `printf %-512s ${text} | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>/dev/null`
  const sh = async (script: string) => (await d.exec(name, '/bin/busybox', 'sh', '-c', script)).out.trim()
  const content = () =>
    sh("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0 '")
  const ready = async () => {
    const { items } = await d.api.call(snapshots.list, { params })
    for (const s of items) expect(s.state).toBe('ready')
    return items.map((s) => s.name)
  }
  const clear = async () => {
    for (const snapshot of await ready())
      await d.done(await d.api.call(snapshots.delete, { params: { vm: name, snapshot } }))
  }

  test('(a VM with a disk)', async () => {
    await d.create({ name, start: true, disks: [{ size_mib: 64 }] })
    await d.booted(name)
  })

  test.each(some('snapshot', [0, 10, 25, 45, 70, 110, 160, 240], 3))(
    '%d ms into a snapshot with RAM: whole or not at all',
    async (delay) => {
      const { pid } = (await d.vm(name)).status
      const text = `w${delay}`
      await sh(line(text))
      await crash(delay, () => d.api.call(snapshots.create, { params, body: { name: 's', ram: true } }))
      expect((await d.vm(name)).status).toMatchObject({ state: 'running', pid, pending_restart: [] })
      expect(await content()).toBe(text)
      await sh(line(`${text}x`))
      expect(await content()).toBe(`${text}x`)
      await clear()
      expect(await content()).toBe(`${text}x`)
    },
  )

  test.each(some('snapshot delete', [0, 15, 40, 80, 150], 3))(
    '%d ms into deleting one under the running guest',
    async (delay) => {
      await d.done(await d.api.call(snapshots.create, { params, body: { name: 's' } }))
      await sh(`${line(`d${delay}`)}; dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=16 conv=fsync 2>/dev/null`)
      const sum = await sh('md5sum /dev/vda')
      await crash(delay, () => d.api.call(snapshots.delete, { params: { vm: name, snapshot: 's' } }))
      // Killed before it was asked for, it is still there; else gone, and never in between.
      await clear()
      expect((await d.vm(name)).status).toMatchObject({ state: 'running', pending_restart: [] })
      expect(await sh('echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/vda')).toBe(sum)
    },
  )

  test.each(some('revert', [0, 20, 60, 150, 300], 3))('%d ms into a revert to RAM', async (delay) => {
    await sh(`${line(`r${delay}`)}; echo here > /mark`)
    await d.done(await d.api.call(snapshots.create, { params, body: { name: 's', ram: true } }))
    await sh(`${line('after')}; echo gone > /mark`)
    const asked = { params: { vm: name, snapshot: 's' }, body: { force: true } }
    await crash(delay, () => d.api.call(snapshots.revert, asked))
    // Begun or not: it is one or the other, never a mixture.
    await until('the guest', async () => (await d.vm(name)).status.agent === 'connected')
    const seen = [await content(), await sh('cat /mark')]
    expect([`r${delay} here`, 'after gone']).toContain(seen.join(' '))
    await clear()
  })
})

describe('kill -9 of the daemon in the middle of', () => {
  const { images } = endpoints
  const params = { image: 'tiny' }

  test.each(some('warm', [0, 60, 400, 2000, 4500], 2))(
    '%d ms into warming an image: warm, or not, and nothing left over',
    async (delay) => {
      await crash(delay, () => d.api.call(images.warm, { params, body: {} }))
      const { warm } = await d.api.call(images.get, { params })
      if (warm) await d.done(await d.api.call(images.unwarm, { params }))
      expect((await d.api.call(images.get, { params })).warm).toBeUndefined()
    },
  )

  test.each(some('instant', [0, 30, 80, 150, 250, 400, 700, 1200], 4))(
    '%d ms into an instant clone: itself, or not at all',
    async (delay) => {
      if (!(await d.api.call(images.get, { params })).warm)
        await d.done(await d.api.call(images.warm, { params, body: {} }))
      const name = `q${randomBytes(3).toString('hex')}`
      await crash(delay, () =>
        d.api.call(vms.create, { body: { name, image: 'tiny', start: true, instant: true, nics: [{}] } }),
      )
      const vm = await d.vm(name).catch(() => undefined)
      // Not asked for before the end.
      if (!vm) return
      await d.booted(name)
      const { out } = await d.exec(name, '/bin/busybox', 'sh', '-c', 'hostname; cat /sys/class/net/eth0/address')
      expect(out.trim().split('\n')).toEqual([name, vm.spec.nics[0]?.mac])
      await d.done(await d.api.call(vms.delete, { params: { vm: name }, query: { force: true } }))
    },
  )
})

describe('QEMU under it', () => {
  test('killed: stopped, said, and it is started again by itself', async () => {
    const vm = await d.create({ name: 'victim', start: true })
    process.kill(vm.status.pid ?? 0, 'SIGKILL')
    const seen = await until('the end to be seen', async () => {
      const now = await d.vm('victim')
      return now.status.state === 'stopped' && now
    })
    expect(seen.status.reason).toContain('SIGKILL')
    const host = await d.api.call(endpoints.system.host)
    expect(host.attention.some((a) => a.about === 'VM victim')).toBe(true)
    await until('its start', async () => (await d.vm('victim')).status.state === 'running')
    await settled()
  })

  test('killed while the daemon was away: stopped after its start, and stays so where it is to', async () => {
    await d.api.call(vms.edit, { params: { vm: 'victim' }, body: { restart: 'never' } })
    const { pid } = (await d.vm('victim')).status
    await d.kill('SIGKILL')
    process.kill(pid ?? 0, 'SIGKILL')
    await d.start()
    expect((await d.vm('victim')).status.state).toBe('stopped')
    await settled()
  })

  test('that does not answer is unknown, never stopped, and stop ends it', async () => {
    await d.done(await d.api.call(vms.start, { params: { vm: 'victim' } }))
    const { pid = 0 } = (await d.vm('victim')).status
    await d.kill('SIGKILL')
    process.kill(pid, 'SIGSTOP')
    await d.start()
    expect((await d.vm('victim')).status.state).toBe('unknown')
    await d.done(await d.api.call(vms.stop, { params: { vm: 'victim' } }))
    await until('its end', async () => (await d.vm('victim')).status.state === 'stopped')
    // Gone, or waiting for an init that does not look after its orphans.
    expect(/\) [^Z]/.test(readStat(pid))).toBe(false)
  })
})

describe('a guest agent that is silent', () => {
  test('is said, and the VM is well', async () => {
    const pid = (await d.exec('steady', '/bin/busybox', 'pidof', 'ld-linux-x86-64.so.2')).out.trim()
    // It stops itself: nobody is there to answer any more.
    const asked = d.api.call(vms.exec, {
      params: { vm: 'steady' },
      body: { argv: ['/bin/busybox', 'kill', '-STOP', ...pid.split(' ')], timeout_ms: 3_000 },
    })
    await expect(asked).rejects.toMatchObject({ fault: { code: expect.stringMatching(/agent_silent|timeout/) } })
    expect((await d.vm('steady')).status.state).toBe('running')
  })

  test('holds nobody up once its guest is reset', async () => {
    const long = d.api
      .call(vms.exec, { params: { vm: 'steady' }, body: { argv: ['/bin/true'], timeout_ms: 600_000 } })
      .catch((error: unknown) => error)
    await new Promise((done) => setTimeout(done, 500))
    await d.api.call(vms.reset, { params: { vm: 'steady' } })
    expect(await long).toMatchObject({ fault: { code: 'agent_silent', detail: expect.stringContaining('closed') } })
    await d.booted('steady')
    expect((await d.exec('steady', '/bin/busybox', 'echo', 'here')).out).toBe('here\n')
    const job: Job = await d.api.call(vms.stop, { params: { vm: 'steady' } })
    await d.done(job)
  })
})
