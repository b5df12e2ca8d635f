/**
 * With a real systemd, which boots in a container over this machine's own files: units are written and started, QEMU and dnsmasq live
 * through a restart, a crash and the removal of the unit, guests shut down before the host does, and come back with it.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { CACHE, Daemon, ROOT } from '../kit/daemon.ts'

const NODE = join(ROOT, `node_modules/node-linux-${process.arch === 'arm64' ? 'arm64' : 'x64'}/bin/node`)
const CGROUPS = ['systemd', 'unified'].map((h) => `/sys/fs/cgroup/${h}/wadah-test-systemd`)
let dir: string

beforeAll(async () => {
  // On a disk: the daemon's store and disks lie there. The container has no network: what the image needs is fetched beforehand.
  dir = mkdtempSync('/var/tmp/wadah-systemd-')
  for (const name of ['upper', 'work', 'root', 'out', 'data']) mkdirSync(join(dir, name))
  const d = new Daemon()
  await d.start()
  await d.tiny()
  await d.purge()
})
afterAll(() => {
  rmSync(dir, { recursive: true, force: true })
  for (const group of CGROUPS) removeGroups(group)
})

function removeGroups(group: string): void {
  if (!existsSync(group)) return
  for (const line of spawnSync('find', [group, '-depth', '-type', 'd'], { encoding: 'utf8' }).stdout.split('\n')) {
    try {
      if (line !== '') rmdirSync(line)
    } catch {
      // The next test run looks for what is left.
    }
  }
}

/** Boots the machine; ends when it has switched itself off. */
function boot(n: 1 | 2): Record<string, any> {
  writeFileSync(join(dir, 'out', 'start'), `exec ${NODE} ${ROOT}/tests/kit/systemd/inside.mjs ${ROOT} ${n}\n`)
  const ran = spawnSync(
    'unshare',
    [
      '--mount',
      '--propagation',
      'private',
      'sh',
      join(ROOT, 'tests/kit/systemd/container.sh'),
      dir,
      ROOT,
      CACHE,
      '240',
    ],
    { encoding: 'utf8', timeout: 280_000, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const file = join(dir, 'out', `boot-${n}.json`)
  if (!existsSync(file))
    throw new Error(
      `the container did not get far (${ran.status}):\n${ran.stdout.slice(-3000)}${ran.stderr.slice(-3000)}`,
    )
  const seen = JSON.parse(readFileSync(file, 'utf8')) as Record<string, any>
  expect(seen['error'], `${seen['error']}`).toBeUndefined()
  return seen
}

test('the daemon as a unit: written once, and its VMs outlive it', () => {
  const seen = boot(1)
  expect(seen['init']).toEqual({ units: ['wadahd.service', 'wadah-guests.service'], changed: true, restarted: false })
  expect(seen['again']).toMatchObject({ changed: false, restarted: false })
  expect([seen['enabled'], seen['active']]).toEqual([
    ['enabled', 'enabled'],
    ['active', 'active'],
  ])
  expect(seen['up']).toBe(false)
  expect(seen['network']).toBe('nat')
  const { qemu, dnsmasq, daemon } = seen['begin']
  expect(dnsmasq).toMatch(/^\d+$/)
  for (const after of ['restarted', 'killed', 'upgraded', 'again2'])
    expect([after, seen[after].qemu, seen[after].dnsmasq]).toEqual([after, qemu, dnsmasq])
  expect(new Set([daemon, seen['restarted'].daemon, seen['killed'].daemon, seen['again2'].daemon]).size).toBe(4)
  // After an upgrade of both QEMU and Wadah the guest runs on under the QEMU it began with, and that is said.
  expect(seen['upgrade']).toMatchObject({ changed: true })
  expect(seen['upgraded'].runs).toContain('/opt/wadah/bin/wadahd')
  expect(seen['upgraded'].outdated).toMatchObject([
    { name: 'one', running: expect.stringContaining('before the upgrade') },
  ])
  // When memory runs out the kernel spares the daemon (where systemd itself may ask for that), never the guests.
  expect(['-500', '0']).toContain(seen['oom'][0])
  expect(seen['oom'][1]).toBe('0')
  expect(seen['afterRemove']).toEqual({ qemu: true, dnsmasq, unit: false })
})

test('the machine shut down its guests in order, and starts them again when it comes up', () => {
  const seen = boot(2)
  const of = (kind: string) => seen['jobs'].filter((j: { kind: string }) => j.kind === kind)
  expect(of('host.stop-guests')).toMatchObject([{ state: 'done', result: { done: ['one'], failed: [] } }])
  // By the power button, not by the plug.
  expect(of('vm.shutdown')).toMatchObject([{ state: 'done', result: { how: 'power button' } }])
  expect(of('vm.stop')).toEqual([])
  expect(of('host.autostart')).toMatchObject([{ state: 'done', result: { done: ['one'], failed: [] } }])
  expect(seen['vm']).toMatchObject({ wanted: 'running', status: { state: 'running' } })
  expect(seen['check']).toMatchObject({ state: 'ok', detail: 'wadahd starts with the machine' })
})
