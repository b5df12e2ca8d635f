/** Devices that come and go while a guest runs, and those that belong to a machine's hardware. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { basename, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import WebSocket from 'ws'
import { endpoints } from '@wadah/api/endpoints/all'
import type { VmEdit } from '@wadah/api/schema/vm'
import { CACHE, Daemon, purgeDead, until } from '../kit/daemon.ts'

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

describe('a TPM', () => {
  const DISK_MIB = 48
  /** The tiny guest on a disk with a boot loader of its own. */
  async function bootDisk(file: string): Promise<void> {
    const image = await d.api.call(endpoints.images.get, { params: { image: 'tiny' } })
    const version = image.kernel_version ?? ''
    const initrd = join(d.data, `images/${image.id}/initrd`)
    const debs = readdirSync(`${CACHE}/apt/archives`).filter((name) => name.startsWith(`linux-image-${version}_`))
    const vmlinuz = execFileSync(
      'sh',
      [
        '-c',
        'dpkg-deb --fsys-tarfile "$1" | tar -xOf - "./boot/vmlinuz-$2"',
        'x',
        `${CACHE}/apt/archives/${debs[0]}`,
        version,
      ],
      { maxBuffer: 64 * 2 ** 20 },
    )
    const config =
      'default tiny\nlabel tiny\nkernel vmlinuz\nappend initrd=initrd console=ttyS0 quiet cryptomgr.notests\n'
    execFileSync('mformat', [
      '-i',
      file,
      '-F',
      '-v',
      'BOOT',
      '-T',
      String(DISK_MIB * 2048),
      '-h',
      '64',
      '-s',
      '32',
      '::',
    ])
    execFileSync('mcopy', ['-i', file, '-', '::vmlinuz'], { input: vmlinuz })
    execFileSync('mcopy', ['-i', file, initrd, '::initrd'])
    execFileSync('mcopy', ['-i', file, '-', '::syslinux.cfg'], { input: config })
    execFileSync('syslinux', ['--install', file])
  }

  /** Processes of this instance that are a TPM. */
  const swtpms = () =>
    pids((argv) => argv.some((a) => a.includes(`${d.data}/vms/`)) && basename(argv[0] ?? '') === 'swtpm')
  const pids = (wanted: (argv: string[]) => boolean): number[] =>
    readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((pid) => {
        try {
          return wanted(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0'))
        } catch {
          return false
        }
      })
      .map(Number)
  /** TPM2_ReadPublic of the endorsement key (TCG TPM 2.0, part 3, 12.4): its public half tells one TPM from another. */
  const key = async (vm: string) => {
    const ask = String.raw`printf '\x80\x01\x00\x00\x00\x0e\x00\x00\x01\x73\x81\x01\x00\x01' >&3`
    const { out } = await d.exec(
      vm,
      '/bin/busybox',
      'sh',
      '-c',
      `exec 3<>/dev/tpm0; ${ask}; dd bs=4096 count=1 <&3 2>/dev/null | od -An -tx1 | tr -d ' \\n'`,
    )
    // Tag 8001, a length, and no error.
    expect(out).toMatch(/^8001.{8}00000000/)
    return out
  }
  const restart = async () => {
    await d.done(await d.api.call(vms.start, params('keys')))
    await d.booted('keys')
  }

  test('is there in the guest; its process has no rights and is in the group of its VM', async () => {
    // Measured by its firmware, so it needs one: the tiny guest on a disk that boots by itself.
    await expect(d.create({ name: 'keys', tpm: true })).rejects.toMatchObject({
      fault: { code: 'invalid', field: '/tpm', effect: 'none' },
    })
    const disks = [{ name: 'root', size_mib: DISK_MIB, format: 'raw' }]
    const { id, spec } = await d.create({ name: 'keys', image: undefined, memory_mib: 256, tpm: true, disks })
    await bootDisk(join(d.data, `pools/default/wadah/volumes/${spec.disks[0]?.volume}.raw`))
    await restart()
    const vm = await d.vm('keys')
    expect(vm.id).toBe(id)
    expect(await sh('keys', 'cat /sys/class/tpm/tpm0/tpm_version_major')).toBe('2')
    const [pid, ...more] = swtpms()
    expect(more).toEqual([])
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    expect(status).toMatch(new RegExp(`^Uid:\\s+${vm.spec.uid}\\s+${vm.spec.uid}`, 'm'))
    expect(status).toMatch(/^CapEff:\s+0+$/m)
    expect(status).toMatch(/^CapBnd:\s+0+$/m)
    expect(status).toMatch(/^NoNewPrivs:\s+1$/m)
    expect(status).toMatch(/^Seccomp:\s+2$/m)
    expect(readFileSync(`/proc/${pid}/cgroup`, 'utf8')).toContain(`wadah-${d.instance}/${vm.id}`)
    const state = statSync(`${d.data}/vms/${vm.id}/state/tpm`)
    expect([state.uid, state.mode & 0o777]).toEqual([vm.spec.uid, 0o700])
    expect((await d.api.call(endpoints.system.host)).tpm).toBe(true)
  })

  test('outlives the daemon, keeps what it has over a restart of its VM, and ends with it', async () => {
    const [before, first] = [await key('keys'), swtpms()]
    await d.kill('SIGKILL')
    await d.start()
    await d.booted('keys')
    expect([await key('keys'), swtpms()]).toEqual([before, first])
    await stop('keys')
    expect(swtpms()).toEqual([])
    await restart()
    expect(await key('keys')).toBe(before)
    await edit('keys', { restart: 'never' })
    process.kill((await d.vm('keys')).status.pid ?? 0, 'SIGKILL')
    await until('its end', async () => (await d.vm('keys')).status.state === 'stopped')
    expect(swtpms()).toEqual([])
    expect(d.traces().groups).toEqual([])

    // A clone is a machine of its own: nothing of what is in there goes over.
    await d.done(await d.api.call(vms.clone, { ...params('keys'), body: { name: 'twin', start: true } }))
    await d.booted('twin')
    expect(await key('twin')).not.toBe(before)
    const { id } = await d.vm('twin')
    await d.done(await d.api.call(vms.delete, { ...params('twin'), query: { force: true } }))
    expect([swtpms(), existsSync(`${d.data}/vms/${id}`)]).toEqual([[], false])
  })

  test('that ends while its guest runs is said; a start gives it back', async () => {
    await restart()
    for (const pid of swtpms()) process.kill(pid, 'SIGKILL')
    const told = await until('the word of it', async () => {
      const { status } = await d.vm('keys')
      return status.reason !== undefined && status
    })
    expect([told.state, told.reason]).toEqual(['running', expect.stringContaining('TPM')])
    const { attention } = await d.api.call(endpoints.system.host)
    expect(attention.find((a) => a.about === 'tpm')?.detail).toContain('"keys"')
    await stop('keys')
    await restart()
    expect((await d.vm('keys')).status.reason).toBeUndefined()
    expect(await key('keys')).not.toBe('')
    await stop('keys')
  })

  test('of a daemon that is killed in a start leaves nothing behind', async () => {
    for (const ms of [0, 30, 60, 100, 150, 250, 400]) {
      const job = await d.api.call(vms.start, params('keys'))
      await new Promise((resolve) => setTimeout(resolve, ms))
      await d.kill('SIGKILL')
      await d.start()
      await d.ended(job)
      expect(swtpms().length).toBeLessThanOrEqual(1)
      if ((await d.vm('keys')).status.state === 'running') await stop('keys')
      await until(
        'nothing to be left',
        async () => swtpms().length + d.traces().qemus.length + d.traces().groups.length === 0,
        15_000,
      )
    }
    await d.done(await d.api.call(vms.delete, params('keys')))
    expect(d.traces()).toMatchObject({ qemus: [], groups: [], folders: [] })
  })
})

describe('serial ports', () => {
  const open = async (port: number) => {
    const { path } = await d.api.call(vms.console, { ...params('lines'), body: { kind: 'serial', port } })
    const socket = new WebSocket(`ws+unix:${d.socket}:${path}`)
    const line = { seen: '', send: (text: string) => socket.send(Buffer.from(text)), close: () => socket.close() }
    socket.on('message', (data: Buffer) => (line.seen += data.toString()))
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject))
    return line
  }

  test('four of them, each a line of its own; only the first is in the log', async () => {
    await d.create({ name: 'lines', start: true, serial_ports: 4 })
    await d.booted('lines')
    const lines = await Promise.all([0, 1, 2, 3].map((port) => open(port)))
    // The guest echoes on each what comes in there, all at once.
    for (const n of [1, 2, 3])
      await sh(
        'lines',
        `stty -F /dev/ttyS${n} raw -echo; (while read -r x; do echo "port${n}:$x"; done </dev/ttyS${n} >/dev/ttyS${n} 2>&1 &)`,
      )
    for (let round = 0; round < 5; round++) {
      for (const n of [1, 2, 3]) lines[n]?.send(`hello${round}\n`)
      for (const n of [1, 2, 3])
        await until(`port ${n}, round ${round}`, () => lines[n]?.seen.includes(`port${n}:hello${round}`), 20_000)
    }
    expect(lines.map((l) => /port[0-9]/.test(l.seen))).toEqual([false, true, true, true])
    expect((await d.api.call(vms.log, params('lines'))).text).not.toContain('port1')
    for (const line of lines) line.close()

    expect((await edit('lines', { serial_ports: 2 })).status.pending_restart).toEqual(['serial_ports'])
    // It still runs with four.
    ;(await open(3)).close()
    await stop('lines')
    await d.done(await d.api.call(vms.start, params('lines')))
    await expect(open(2)).rejects.toMatchObject({ fault: { code: 'not_found', field: '/port', effect: 'none' } })
    await d.done(await d.api.call(vms.delete, { ...params('lines'), query: { force: true } }))
  })
})
