/** Devices that come and go while a guest runs, and those that belong to a machine's hardware. */
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { VmEdit } from '@wadah/api/schema/vm'
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
const edit = (vm: string, body: VmEdit) => d.api.call(vms.edit, { ...params(vm), body })
const sh = async (vm: string, script: string) => (await d.exec(vm, '/bin/busybox', 'sh', '-c', script)).out.trim()
const stop = async (vm: string) => {
  await d.done(await d.api.call(vms.stop, params(vm)))
  await until('its end', async () => (await d.vm(vm)).status.state === 'stopped')
}
const freePort = async (): Promise<number> => {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

describe('NICs of a running VM', () => {
  const macs = () => sh('nics', 'cat /sys/class/net/eth*/address 2>/dev/null')
  /** The guest takes an address on the NIC with this MAC. */
  const up = (mac: string) =>
    sh(
      'nics',
      `for n in /sys/class/net/eth*; do [ "$(cat $n/address)" = ${mac} ] || continue; n=\${n##*/}; ip link set $n up; udhcpc -i $n -s /dhcp -t 8 -T 1 -n -q; done`,
    )
  const page = (url: string) =>
    until(url, () =>
      fetch(url, { signal: AbortSignal.timeout(3_000) }).then(
        (r) => r.text(),
        () => undefined,
      ),
    )

  test('one comes on a tap and serves, is known after a restart of the daemon, and goes with its tap', async () => {
    await d.create({ name: 'nics', start: true })
    await d.booted('nics')
    expect(await macs()).toBe('')
    const added = await edit('nics', { add_nics: [{}] })
    expect(added.status.pending_restart).toEqual([])
    const [nic] = added.spec.nics
    await until('the NIC in the guest', async () => (await macs()) === nic?.mac)
    await up(nic?.mac ?? '')
    expect(await page(`http://${nic?.address}/`)).toContain('nics')
    expect(d.traces().taps).toHaveLength(1)
    // Its limits are those of a NIC that was there from the start.
    await edit('nics', { nics: [{ name: 'net1', limits: { in_bytes_per_s: 5_000_000 } }] })

    await d.kill('SIGKILL')
    await d.start()
    await d.booted('nics')
    const without = await edit('nics', { remove_nics: ['net1'] })
    expect([without.status.pending_restart, without.spec.nics, without.addresses]).toEqual([[], [], []])
    await until('its end in the guest', async () => (await macs()) === '')
    expect(d.traces().taps).toEqual([])
  })

  test('on a network of kind user its port is published at once; more than there are ports for wait', async () => {
    const port = await freePort()
    const added = await edit('nics', { add_nics: [{ network: 'user', publish: [{ port, to: 80 }] }] })
    expect(added.status.pending_restart).toEqual([])
    const mac = added.spec.nics[0]?.mac ?? ''
    await until('the NIC in the guest', async () => (await macs()) === mac)
    await up(mac)
    expect(await page(`http://127.0.0.1:${port}/`)).toContain('nics')
    expect((await edit('nics', { add_nics: [{}, {}, {}] })).status.pending_restart).toEqual([])
    expect((await edit('nics', { add_nics: [{}] })).status.pending_restart).toEqual(['nics'])
    expect(d.traces().taps).toHaveLength(3)
    // The one that waits goes without the guest, and the others with the VM.
    expect((await edit('nics', { remove_nics: ['net5'] })).status.pending_restart).toEqual([])
    await edit('nics', { add_nics: [{}] })
    await stop('nics')
    expect(d.traces().taps).toEqual([])
    await d.done(await d.api.call(vms.start, params('nics')))
    expect((await d.vm('nics')).status.pending_restart).toEqual([])
    await d.booted('nics')
    expect((await macs()).split('\n')).toEqual((await d.vm('nics')).spec.nics.map((n) => n.mac))
    await d.done(await d.api.call(vms.delete, { ...params('nics'), query: { force: true } }))
    expect(d.traces()).toMatchObject({ qemus: [], taps: [], groups: [], folders: [] })
  })
})

describe('RAM of a running VM', () => {
  const group = (id: string, what: string) => {
    const name = `wadah-${d.instance}/${id}`
    const v1 = `/sys/fs/cgroup/memory/${name}/memory.limit_in_bytes`
    const file = existsSync(v1) ? v1 : `/sys/fs/cgroup/${name}/memory.max`
    expect(existsSync(file), what).toBe(true)
    return Number(readFileSync(file, 'utf8')) / 2 ** 20
  }
  const total = async () => Number(/MemTotal:\s+(\d+)/.exec(await sh('ram', 'cat /proc/meminfo'))?.[1]) / 1024

  test('grows at once, with its ceiling; is known after a restart of the daemon; is plain RAM at the next start', async () => {
    const { id } = await d.create({ name: 'ram', start: true, memory_mib: 256 })
    await d.booted('ram')
    const [before, ceiling] = [await total(), group(id, 'its group')]
    expect((await edit('ram', { memory_mib: 384 })).status.pending_restart).toEqual([])
    await until('the guest to use it', async () => (await total()) > before + 120)
    expect(group(id, 'its group')).toBeGreaterThanOrEqual(ceiling + 128)

    await d.kill('SIGKILL')
    await d.start()
    await d.booted('ram')
    // Limits are set anew by what it has now; the balloon takes none of it away.
    await edit('ram', { limits: { cpu_weight: 50 } })
    expect(group(id, 'its group')).toBeGreaterThanOrEqual(ceiling + 128)
    expect(await total()).toBeGreaterThan(before + 120)
    expect((await edit('ram', { memory_mib: 640 })).status.pending_restart).toEqual([])
    await until('the guest to use that, too', async () => (await total()) > before + 370)

    // A crooked size, less, and what a balloon would take away again: at the next start.
    expect((await edit('ram', { memory_mib: 700 })).status.pending_restart).toEqual(['memory_mib'])
    expect((await edit('ram', { memory_mib: 512 })).status.pending_restart).toEqual(['memory_mib'])
    expect(await total()).toBeGreaterThan(before + 370)
    await stop('ram')
    await d.done(await d.api.call(vms.start, params('ram')))
    await d.booted('ram')
    expect((await d.vm('ram')).status.pending_restart).toEqual([])
    expect(await total()).toBeGreaterThan(before + 240)
    expect(await total()).toBeLessThan(before + 270)
    await edit('ram', { balloon_mib: 400 })
    expect((await edit('ram', { memory_mib: 640 })).status.pending_restart).toEqual(['memory_mib'])
    await d.done(await d.api.call(vms.delete, { ...params('ram'), query: { force: true } }))
  })
})
