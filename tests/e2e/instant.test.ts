/** Instant clones of real guests: each is somebody else before its network is up, or is not at all. */
import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, images, snapshots } = endpoints
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

const image = (name: string) => d.api.call(images.get, { params: { image: name } })
const warm = async (name: string, body = {}) => d.done(await d.api.call(images.warm, { params: { image: name }, body }))
const sh = async (vm: string, script: string) => {
  const { code, out } = await d.exec(vm, '/bin/busybox', 'sh', '-c', script)
  if (code !== 0) throw new Error(`${script}: ${out}`)
  return out.trim()
}
const page = async (address: string | undefined) =>
  until(`http://${address}/`, () =>
    fetch(`http://${address}/`, { signal: AbortSignal.timeout(3_000) }).then(
      (r) => r.text(),
      () => undefined,
    ),
  )

describe('instant clones', () => {
  test('of an image that is not warm, or with what the template has not, are refused with the reason', async () => {
    const ask = (body: object) => d.create({ name: 'no', start: true, nics: [{}], instant: true, ...body })
    await expect(ask({})).rejects.toMatchObject({
      fault: { code: 'wrong_state', field: '/instant', remedy: 'wadah image warm tiny' },
    })
    const said = d.cli(['image', 'warm', 'tiny'])
    expect(said).toMatchObject({ code: 0, stdout: expect.stringContaining('--instant') })
    expect((await image('tiny')).warm).toMatchObject({ cpus: 1, memory_mib: 96, accelerator: expect.any(String) })
    expect(d.traces()).toMatchObject({ qemus: [], folders: [] })
    for (const [body, field] of [
      [{ cpus: 2 }, '/cpus'],
      [{ memory_mib: 128 }, '/memory_mib'],
      [{ disks: [{ size_mib: 16 }] }, '/disks'],
      [{ nics: [{}, {}] }, '/nics'],
      [{ start: false }, '/start'],
      [{ seed: { kind: 'none' } }, '/seed/kind'],
    ] as const)
      await expect(ask(body)).rejects.toMatchObject({ fault: { code: 'invalid', field } })
    await expect(d.api.call(images.warm, { params: { image: 'tiny' }, body: {} })).rejects.toMatchObject({
      fault: { code: 'wrong_state', remedy: 'wadah image unwarm tiny' },
    })
  })

  test('two at once: names, machine ids, MACs, addresses and random numbers differ; the clocks are right', async () => {
    const names = ['one', 'two']
    await Promise.all(names.map((name) => d.create({ name, start: true, nics: [{}], instant: true, wait_ready: true })))
    const seen = await Promise.all(
      names.map(async (name) => {
        const vm = await d.vm(name)
        const [nic] = vm.spec.nics
        expect(await page(nic?.address)).toBe(`<h1>${name}</h1>\n`)
        await d.booted(name)
        const text = await sh(
          name,
          'hostname; cat /etc/machine-id /sys/class/net/eth0/address; head -c 16 /dev/urandom | od -An -tx1 | tr -d " "; date +%s',
        )
        const [hostname, machine, mac, random, clock] = text.split('\n')
        expect([hostname, mac]).toEqual([name, nic?.mac])
        expect(await sh(name, 'ip -4 addr show eth0')).toContain(`inet ${nic?.address}/24`)
        expect(Math.abs(Number(clock) - Date.now() / 1000)).toBeLessThan(15)
        return { machine, mac, random, address: nic?.address }
      }),
    )
    for (const what of ['machine', 'mac', 'random', 'address'] as const) {
      expect(seen[0]?.[what]).toMatch(/./)
      expect(seen[0]?.[what]).not.toBe(seen[1]?.[what])
    }
    // The neighbour is reached, by its own name; the clone's resolver is told about a second after its network is up.
    await until('the neighbour by its name', async () =>
      (await sh('one', 'wget -qO- http://two/ || true')).includes('two'),
    )
  })

  test('what has the user and the memory of a clone can not write to its template', async () => {
    const vm = await d.vm('one')
    const uid = Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${vm.status.pid}/status`, 'utf8'))?.[1])
    expect(uid).toBeGreaterThan(0)
    const as = (script: string) =>
      spawnSync(
        'setpriv',
        [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--no-new-privs', 'bash', '-c', script],
        {
          encoding: 'utf8',
        },
      )
    const memory = `/proc/${vm.status.pid}/fd/5`
    const tries = [`exec 6<>${memory}; echo x >&6`, `truncate -s 0 ${memory}`, `fallocate -p -o 0 -l 4096 ${memory}`]
    for (const script of tries) {
      const { status, stderr } = as(script)
      expect(status).not.toBe(0)
      expect(stderr).toMatch(/not permitted|denied/)
    }
    // As root too: it is sealed.
    expect(spawnSync('bash', ['-c', tries[0] as string], { encoding: 'utf8' }).stderr).toContain('not permitted')
    const folder = `${d.data}/images/${(await image('tiny')).id}/warm`
    for (const file of ['ram', 'state']) {
      expect(statSync(`${folder}/${file}`)).toMatchObject({ uid: 0 })
      expect(as(`cat ${folder}/${file}`).status).not.toBe(0)
    }
  })

  test('a clone starts, is kept in a snapshot with RAM and goes back like any other', async () => {
    await sh('two', 'echo here > /mark')
    await d.done(await d.api.call(snapshots.create, { params: { vm: 'two' }, body: { name: 's', ram: true } }))
    await sh('two', 'echo gone > /mark')
    const asked = { params: { vm: 'two', snapshot: 's' }, body: { force: true } }
    await d.done(await d.api.call(snapshots.revert, asked))
    await d.booted('two')
    expect(await sh('two', 'cat /mark; hostname')).toBe('here\ntwo')
    // From within, in the same QEMU, it is no template.
    await sh('two', 'touch /before')
    await d.api.call(vms.reset, { params: { vm: 'two' } })
    await d.booted('two')
    expect(await page((await d.vm('two')).spec.nics[0]?.address)).toBe('<h1>two</h1>\n')
    expect(await sh('two', 'ls /before 2>/dev/null || echo anew; cat /sys/class/net/eth0/address')).toBe(
      `anew\n${(await d.vm('two')).spec.nics[0]?.mac}`,
    )
    const { mac } = (await d.vm('one')).spec.nics[0] ?? {}
    await d.done(await d.api.call(vms.stop, { params: { vm: 'one' } }))
    await until('its end', async () => (await d.vm('one')).status.state === 'stopped')
    await d.done(await d.api.call(vms.start, { params: { vm: 'one' } }))
    await d.booted('one')
    expect(await sh('one', 'cat /sys/class/net/eth0/address')).toBe(mac)
    expect(await page((await d.vm('one')).spec.nics[0]?.address)).toBe('<h1>one</h1>\n')
  })

  test('the template outlives the daemon; after unwarm clones run on, and none can be made', async () => {
    await d.kill('SIGKILL')
    await d.start()
    await d.create({ name: 'three', start: true, nics: [{ network: 'default' }], instant: true })
    expect(await page((await d.vm('three')).spec.nics[0]?.address)).toBe('<h1>three</h1>\n')
    expect(d.cli(['image', 'unwarm', 'tiny'])).toMatchObject({ code: 0 })
    expect((await image('tiny')).warm).toBeUndefined()
    expect(readdirSync(`${d.data}/images/${(await image('tiny')).id}`).sort()).toEqual(['initrd', 'kernel'])
    expect(await page((await d.vm('three')).spec.nics[0]?.address)).toBe('<h1>three</h1>\n')
  })

  test('an image that was not built from a recipe is refused', async () => {
    await d.api.call(images.createKernel, { body: { name: 'strange' } })
    await expect(d.api.call(images.warm, { params: { image: 'strange' }, body: {} })).rejects.toMatchObject({
      fault: { code: 'wrong_state', field: '/image' },
    })
  })

  test('whose guest part never says that it is somebody else: nothing gets out, and nothing is left', async () => {
    await d.done(await d.api.call(images.build, { body: { recipe: 'tiny', name: 'mute' } }))
    const file = `${d.data}/images/${(await image('mute')).id}/initrd`
    // It sends as much as it can, as the one it was told to be, and keeps silent to its host.
    const before = readFileSync(file, 'latin1')
    const call = 'my $wrong = become();'
    const comment = before.slice(before.indexOf('# The guest part of instant clones'), before.indexOf('my ($settled'))
    const loud =
      "my $wrong = become(); while (1) { send($net, 'out', 0, pack('S n a4 x8', 2, 9, ipv4($told{gateway}))); select(undef, undef, undef, 0.01) }"
    const shorter = `#${' '.repeat(comment.length - (loud.length - call.length) - 2)}\n`
    const after = before.replace(comment, () => shorter).replace(call, () => loud)
    expect(after.length).toBe(before.length)
    expect(after).not.toBe(before)
    writeFileSync(`${file}.new`, after, 'latin1')
    renameSync(`${file}.new`, file)
    await warm('mute')
    const others = new Set(d.traces().qemus)
    const qemus = others.size
    const taps = new Set(d.traces().taps)
    const volumes = d.traces().volumes.length
    const job = await d.api.call(vms.create, {
      body: { name: 'mute', image: 'mute', start: true, instant: true, nics: [{}] },
    })
    const tap = await until('its tap', () => d.traces().taps.find((t) => !taps.has(t)))
    const sent = () => Number(readFileSync(`/sys/class/net/${tap}/statistics/rx_packets`, 'utf8'))
    const pid = await until('its QEMU', () => d.traces().qemus.length > qemus)
    expect(pid).toBe(true)
    let [looked, most] = [0, 0]
    const strange: unknown[] = []
    const watching = setInterval(() => {
      try {
        most = Math.max(most, sent())
        looked += 1
      } catch (error) {
        // ENOENT: it is gone; EINVAL: it is going (net/core/net-sysfs.c, netstat_show).
        if (!['ENOENT', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) strange.push(error)
      }
    }, 50)
    // Also for a daemon that comes to it in the middle: it begins anew, with another QEMU.
    const [first] = d.traces().qemus.filter((q) => !others.has(q))
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    await d.kill('SIGKILL')
    await d.start()
    await until('another QEMU', () => d.traces().qemus.length > qemus && !d.traces().qemus.includes(first as number))
    const ended = await d.ended(job)
    clearInterval(watching)
    expect({ most, strange }).toEqual({ most: 0, strange: [] })
    expect(looked).toBeGreaterThan(20)
    expect(ended).toMatchObject({ state: 'failed', fault: { code: 'agent_silent' } })
    await expect(d.vm('mute')).rejects.toMatchObject({ fault: { code: 'not_found' } })
    expect(d.traces().qemus).toHaveLength(qemus)
    expect(d.traces().volumes).toHaveLength(volumes)
    expect(new Set(d.traces().taps)).toEqual(taps)
  }, 180_000)
})
