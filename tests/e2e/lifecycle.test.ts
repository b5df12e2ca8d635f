import { readFileSync, readdirSync, statSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import WebSocket from 'ws'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms } = endpoints
let d: Daemon

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  await d.tiny()
})
afterAll(async () => {
  await d.purge()
})

const params = (vm: string) => ({ params: { vm } })

describe('the life of a VM', () => {
  test('made and started: an unprivileged QEMU in a folder and a group of its own', async () => {
    const vm = await d.create({ name: 'one', start: true, limits: { cpu_cap_percent: 50, cpu_weight: 200 } })
    expect(vm.status).toMatchObject({ state: 'running', accelerator: 'tcg' })
    const status = readFileSync(`/proc/${vm.status.pid}/status`, 'utf8')
    expect(status).toMatch(new RegExp(`^Uid:\\s+${vm.spec.uid}\\s+${vm.spec.uid}`, 'm'))
    expect(status).toMatch(/^CapEff:\s+0+$/m)
    expect(status).toMatch(/^CapBnd:\s+0+$/m)
    expect(status).toMatch(/^NoNewPrivs:\s+1$/m)
    expect(status).toMatch(/^Seccomp:\s+2$/m)
    const live = statSync(`${d.data}/vms/${vm.id}/live`)
    expect([live.uid, live.mode & 0o777]).toEqual([vm.spec.uid, 0o700])
    const group = readFileSync(`/proc/${vm.status.pid}/cgroup`, 'utf8')
    expect(group).toContain(`wadah-${d.instance}/${vm.id}`)
    const file = (name: string) =>
      readFileSync(`/sys/fs/cgroup/cpu/wadah-${d.instance}/${vm.id}/${name}`, 'utf8').trim()
    if (group.includes(':cpu:')) expect([file('cpu.shares'), file('cpu.cfs_quota_us')]).toEqual(['2048', '50000'])
  })

  test('limits change while it runs; what needs a restart is said', async () => {
    const edited = await d.api.call(vms.edit, {
      ...params('one'),
      body: { limits: { cpu_cap_percent: null }, memory_mib: 128, cpus: 2, description: 'x' },
    })
    expect(edited.status.pending_restart.sort()).toEqual(['cpus', 'memory_mib'])
    expect(edited.spec.limits).toEqual({ cpu_weight: 200 })
  })

  test('pause, resume, reset, and the actions that are allowed', async () => {
    await d.booted('one')
    expect((await d.api.call(vms.pause, params('one'))).status).toMatchObject({ state: 'paused', paused_by: 'user' })
    const paused = await until('the state', async () => {
      const vm = await d.vm('one')
      return vm.status.state === 'paused' && vm
    })
    expect(paused.actions?.['shutdown']).toMatchObject({ ok: false, why: { code: 'wrong_state' } })
    expect((await d.api.call(vms.resume, params('one'))).status.state).toBe('running')
    await d.api.call(vms.reset, params('one'))
    await until('the guest to be back', async () => (await d.vm('one')).status.agent === 'connected')
  })

  test('the guest agent: exec with input and exit code, files both ways', async () => {
    const cat = await d.api.call(vms.exec, {
      ...params('one'),
      body: { argv: ['/bin/busybox', 'sh', '-c', 'cat; exit 3'], stdin: Buffer.from('hello').toString('base64') },
    })
    expect([cat.exit_code, Buffer.from(cat.stdout, 'base64').toString()]).toEqual([3, 'hello'])
    const data = Buffer.alloc(1_500_000, 'wadah')
    await d.api.call(vms.putFile, { ...params('one'), query: { path: '/tmp/f' }, data })
    const back: Uint8Array[] = []
    for await (const part of await d.api.stream(vms.getFile, { ...params('one'), query: { path: '/tmp/f' } }))
      back.push(part)
    expect(Buffer.concat(back).equals(data)).toBe(true)
    expect((await d.api.call(vms.guest, params('one'))).interfaces.map((i) => i.name)).toContain('lo')
  })

  test('the serial console echoes over a WebSocket, and the log keeps it', async () => {
    const ticket = await d.api.call(vms.console, { ...params('one'), body: { kind: 'serial' } })
    const open = () => new WebSocket(`ws+unix:${d.socket}:${ticket.path}`)
    const socket = open()
    let seen = ''
    socket.on('message', (data: Buffer) => {
      seen += data.toString()
    })
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject))
    socket.send(Buffer.from("\necho con''sole\n"))
    await until('the echo', () => seen.includes('console'))
    socket.close()
    // The ticket was good once.
    const again = open()
    await new Promise<void>((resolve) => again.once('error', () => resolve()).once('close', () => resolve()))
    const { text } = await d.api.call(vms.log, params('one'))
    expect(text).toContain('WADAH-TINY-READY')
    expect(text).toContain('console')
  })

  test('the screen speaks RFB', async () => {
    const ticket = await d.api.call(vms.console, { ...params('one'), body: { kind: 'vnc' } })
    const socket = new WebSocket(`ws+unix:${d.socket}:${ticket.path}`)
    const first = await new Promise<Buffer>((resolve, reject) => socket.once('message', resolve).once('error', reject))
    expect(first.toString()).toMatch(/^RFB 003/)
    socket.close()
  })

  test('a picture of the screen', async () => {
    const parts: Uint8Array[] = []
    for await (const part of await d.api.stream(vms.screenshot, params('one'))) parts.push(part)
    const png = Buffer.concat(parts)
    expect(png.subarray(1, 4).toString()).toBe('PNG')
    // Width and height lie at 16 and 20 (PNG, 11.2.2 IHDR): what a BIOS leaves behind is at least 640 × 400.
    expect(png.readUInt32BE(16)).toBeGreaterThanOrEqual(640)
    expect(png.readUInt32BE(20)).toBeGreaterThanOrEqual(400)
    const { id } = await d.vm('one')
    expect(readdirSync(`${d.data}/vms/${id}/live`).filter((name) => name.endsWith('.png'))).toEqual([])
  })

  test('shuts down by the button, starts again with what was edited', async () => {
    await d.done(await d.api.call(vms.shutdown, { ...params('one'), body: {} }))
    const stopped = await until('the state', async () => {
      const vm = await d.vm('one')
      return vm.status.state === 'stopped' && vm
    })
    expect(stopped.wanted).toBe('stopped')
    await d.done(await d.api.call(vms.start, params('one')))
    const vm = await d.vm('one')
    expect(vm.status.pending_restart).toEqual([])
    await d.booted('one')
    expect((await d.exec('one', '/bin/busybox', 'nproc')).out.trim()).toBe('2')
  })

  test('a rename frees the old name; a running VM is not deleted; force ends it first', async () => {
    await d.api.call(vms.edit, { ...params('one'), body: { name: 'first' } })
    await expect(d.api.call(vms.delete, params('first'))).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    await d.create({ name: 'one' })
    await d.done(await d.api.call(vms.delete, params('one')))
    await d.done(await d.api.call(vms.delete, { ...params('first'), query: { force: true } }))
    await expect(d.vm('first')).rejects.toMatchObject({ fault: { code: 'not_found' } })
    expect(d.traces()).toMatchObject({ qemus: [], taps: [], groups: [], folders: [], volumes: [], temporary: [] })
  })

  test('disks: blank ones appear in the guest, a linked chain boots, references are kept', async () => {
    await d.create({
      name: 'disks',
      start: true,
      disks: [
        { name: 'data', size_mib: 64, limits: { iops: 500 } },
        { name: 'raw', size_mib: 32, format: 'raw' },
      ],
    })
    await d.booted('disks')
    const sizes = await d.exec('disks', '/bin/busybox', 'cat', '/sys/block/vda/size', '/sys/block/vdb/size')
    expect(sizes.out.trim().split('\n').map(Number)).toEqual([131072, 65536])
    const edited = await d.api.call(vms.edit, {
      ...params('disks'),
      body: { disks: [{ name: 'data', limits: { iops: null, bytes_per_s: 50_000_000 } }] },
    })
    expect(edited.spec.disks[0]?.limits).toEqual({ bytes_per_s: 50_000_000 })
    await d.exec('disks', '/bin/busybox', 'sh', '-c', 'echo kept | dd of=/dev/vda conv=notrunc; sync')
    // A disk comes while it runs, is found again by a new daemon, and goes.
    const plugged = await d.api.call(vms.edit, {
      ...params('disks'),
      body: { add_disks: [{ name: 'hot', size_mib: 16 }] },
    })
    expect(plugged.status.pending_restart).toEqual([])
    const blocks = async () => (await d.exec('disks', '/bin/busybox', 'ls', '/sys/block')).out
    await until('the new disk', async () => (await blocks()).includes('vdc'))
    await d.kill('SIGKILL')
    await d.start()
    await d.booted('disks')
    const unplugged = await d.api.call(vms.edit, { ...params('disks'), body: { remove_disks: ['hot'] } })
    expect([unplugged.status.pending_restart, unplugged.spec.disks.map((x) => x.name)]).toEqual([[], ['data', 'raw']])
    await until('its end', async () => !(await blocks()).includes('vdc'))
    await d.done(await d.api.call(endpoints.volumes.delete, { params: { volume: 'disks-hot' } }))
    // A disk grows under a guest that runs.
    const grow = async (name: string, size_mib: number) =>
      d.done(await d.api.call(endpoints.volumes.resize, { params: { volume: name }, body: { size_mib } }))
    await grow('disks-data', 96)
    await until('the guest to see it', async () =>
      (await d.exec('disks', '/bin/busybox', 'cat', '/sys/block/vda/size')).out.startsWith('196608'),
    )
    await expect(grow('disks-data', 80)).rejects.toMatchObject({ fault: { code: 'invalid', field: '/size_mib' } })
    await expect(grow('disks-data', 60 * 1024 * 1024)).rejects.toMatchObject({ fault: { code: 'no_room' } })
    await d.done(await d.api.call(vms.shutdown, { ...params('disks'), body: {} }))
    await until('the state', async () => (await d.vm('disks')).status.state === 'stopped')
    // And while it is stopped; the copy has what it has come to.
    await grow('disks-data', 128)
    await grow('disks-raw', 48)
    await d.done(await d.api.call(vms.clone, { ...params('disks'), body: { name: 'copy', start: true } }))
    await d.booted('copy')
    expect((await d.exec('copy', '/bin/busybox', 'head', '-c', '4', '/dev/vda')).out).toBe('kept')
    const grown = await d.exec('copy', '/bin/busybox', 'cat', '/sys/block/vda/size', '/sys/block/vdb/size')
    expect(grown.out.trim().split('\n').map(Number)).toEqual([262144, 98304])
    for (const vm of ['disks', 'copy'])
      await d.done(await d.api.call(vms.delete, { ...params(vm), query: { force: true } }))
    expect(d.traces().volumes).toEqual([])
  })

  test('twenty at once', async () => {
    const names = Array.from({ length: 20 }, (_, i) => `many${i}`)
    const jobs = await Promise.all(
      names.map((name) => d.api.call(vms.create, { body: { name, image: 'tiny', disks: [{ size_mib: 16 }] } })),
    )
    await Promise.all(jobs.map((job) => d.done(job)))
    const list = await d.api.call(vms.list, { query: { name: 'many' } })
    expect(new Set(list.items.map((vm) => vm.spec.uid)).size).toBe(20)
    expect(new Set(list.items.flatMap((vm) => vm.addresses.map((a) => a.address))).size).toBe(20)
    const gone = await Promise.all(names.map((vm) => d.api.call(vms.delete, params(vm))))
    await Promise.all(gone.map((job) => d.done(job)))
    expect(d.traces().volumes).toEqual([])
  })
})
