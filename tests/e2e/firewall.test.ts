/** A firewall around a guest that runs, security groups, and a guest on a LAN of its own. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, networks } = endpoints
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
// wget's own -T crashes in Debian's busybox 1.35.
const TIMED = ['/bin/busybox', 'timeout', '2', '/bin/busybox', 'wget']
const ip = (...argv: string[]) => execFileSync('ip', argv, { encoding: 'utf8' })
const answers = (address: string) =>
  fetch(`http://${address}/`, { signal: AbortSignal.timeout(2000) }).then(
    (r) => r.text(),
    () => '',
  )
const addressOf = async (vm: string) => (await d.vm(vm)).addresses[0]?.address ?? ''

describe('a firewall', () => {
  test('opens and closes while the guest runs, by the command line, and outlives the daemon', async () => {
    const wadah = (...argv: string[]) => {
      const { code, stdout, stderr } = d.cli(argv)
      expect([argv.join(' '), code, stderr]).toEqual([argv.join(' '), 0, expect.anything()])
      return stdout
    }
    wadah('firewall', 'group', 'create', 'web', '--rule', 'http in accept tcp 80')
    await d.create({ name: 'site', start: true, nics: [{}] })
    await d.create({ name: 'peer', start: true, nics: [{}] })
    await d.booted('peer')
    const address = await addressOf('site')
    const fromPeer = async () => (await d.exec('peer', ...TIMED, '-qO-', `http://${address}/`)).out

    await until('the page', () => answers(address))
    await until('the page for a neighbour', fromPeer)
    wadah('vm', 'edit', 'site', '--firewall', 'on')
    expect(await answers(address)).toBe('')
    expect(await fromPeer()).toBe('')
    wadah('vm', 'edit', 'site', '--firewall-group', 'web')
    expect(await answers(address)).toContain('site')
    expect(await fromPeer()).toContain('site')

    // One edit of the group, for whoever has it: from now on only the VMs that are in "clients".
    wadah('firewall', 'group', 'create', 'clients')
    wadah('firewall', 'group', 'edit', 'web', '--rule', 'http in accept tcp 80 from clients')
    expect([await answers(address), await fromPeer()]).toEqual(['', ''])
    wadah('vm', 'edit', 'peer', '--firewall', 'in=accept', '--firewall-group', 'clients')
    expect([await answers(address), await fromPeer()]).toEqual(['', expect.stringContaining('site')])
    expect(wadah('vm', 'firewall', 'site')).toMatch(/http +in +accept +tcp +80 +clients +web +\d+\.\d+\.\d+\.\d+\/32/)
    expect(d.cli(['firewall', 'group', 'delete', 'clients']).stderr).toContain('names the group "clients"')

    await d.kill('SIGKILL')
    expect(await answers(address)).toBe('')
    await d.start()
    expect([await answers(address), await fromPeer()]).toEqual(['', expect.stringContaining('site')])
    // What was exported says the same as what is there.
    const exported = wadah('vm', 'export', 'site', 'peer')
    expect(exported).toContain('firewall:')
    const applied = d.cli(['apply', '--dry-run', '--set', 'x', '-f', '-'], exported.replaceAll(/^labels:.*\n/gm, ''))
    expect(applied.stdout).not.toContain('firewall')
    wadah('vm', 'edit', 'site', '--firewall', 'off')
    expect(await answers(address)).toContain('site')
  })

  test('on a network of kind user is refused with the reason', async () => {
    const work = d.create({ name: 'alone', nics: [{ network: 'user' }], firewall: {} })
    await expect(work).rejects.toMatchObject({ fault: { code: 'invalid', field: '/firewall' } })
  })
})

describe('a LAN', () => {
  const tag = `wt${randomBytes(3).toString('hex')}`
  const nic = `${tag}n`
  let dhcp: ChildProcess | undefined
  beforeAll(() => {
    ip('netns', 'add', tag)
    ip('link', 'add', nic, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', tag)
    ip('-n', tag, 'addr', 'add', '203.0.113.1/24', 'dev', 'eth0')
    ip('-n', tag, 'link', 'set', 'eth0', 'up')
    ip('-n', tag, 'link', 'set', 'lo', 'up')
    const options = ['--keep-in-foreground', '--port=0', '--dhcp-range=203.0.113.50,203.0.113.99,1h', '--leasefile-ro']
    dhcp = spawn('ip', ['netns', 'exec', tag, 'dnsmasq', ...options, '--conf-file=/dev/null', '--pid-file='])
  })
  afterAll(async () => {
    dhcp?.kill('SIGKILL')
    ip('netns', 'del', tag)
  })
  const masterOf = () => (JSON.parse(ip('-json', 'link', 'show', nic)) as { master?: string }[])[0]?.master

  test('gives a guest its address, is reached by it, and has its NIC back when the network is deleted', async () => {
    const { code, stderr } = d.cli(['network', 'create', 'lan', '--kind', 'bridge', '--nic', nic])
    expect([code, stderr]).toEqual([0, ''])
    const lan = await d.api.call(networks.get, { params: { network: 'lan' } })
    expect(masterOf()).toBe(lan.bridge)
    await d.create({ name: 'guest', start: true, nics: [{ network: 'lan' }], firewall: { in: 'accept' } })
    await d.booted('guest')
    const address = await until('an address of the LAN', async () => {
      const { out } = await d.exec('guest', '/bin/busybox', 'ip', '-4', 'addr')
      return /203\.0\.113\.\d+/.exec(out)?.[0]
    })
    const page = () => {
      try {
        const argv = ['netns', 'exec', tag, 'timeout', '2', 'busybox', 'wget', '-qO-', `http://${address}/`]
        return execFileSync('ip', argv, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
      } catch {
        return ''
      }
    }
    await until('the page', page)
    await d.api.call(vms.edit, { params: { vm: 'guest' }, body: { firewall: { in: 'drop' } } })
    expect(page()).toBe('')
    await d.api.call(vms.edit, { params: { vm: 'guest' }, body: { firewall: null } })
    expect(page()).toContain('guest')

    const work = d.api.call(networks.delete, { params: { network: 'lan' } })
    await expect(work).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await d.done(await d.api.call(vms.delete, { params: { vm: 'guest' }, query: { force: true } }))
    await d.api.call(networks.delete, { params: { network: 'lan' } })
    expect(masterOf()).toBeUndefined()
  })

  test('what would cut the host off is refused', async () => {
    const routes = JSON.parse(ip('-json', 'route', 'show', 'default')) as { dev: string }[]
    const { stderr, code } = d.cli(['network', 'create', 'x', '--kind', 'bridge', '--nic', routes[0]?.dev ?? 'lo'])
    expect(code).not.toBe(0)
    expect(stderr).toMatch(/cut the host off|loopback/)
  })
})
