/**
 * Somebody has broken out of QEMU: a program with the user, groups and rights of one VM's QEMU tries everything that belongs to others.
 * It is less confined than QEMU itself, which runs under a seccomp filter too.
 */
import { existsSync, lstatSync, readFileSync, readdirSync } from 'node:fs'
import https from 'node:https'
import { type AddressInfo, type Server, createServer } from 'node:net'
import { networkInterfaces } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Vm } from '@wadah/api/schema/vm'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'
import { Escaped, type Try, parseRights, rightsOf } from '../kit/escaped.ts'

let d: Daemon
let a: Vm
let b: Vm
let escaped: Escaped
let base: string
let pool: string
let runFolder: string
/** curl could not connect. */
const REFUSED = 7
const SECRET = 'correct-horse-battery'
const pidOf = (vm: Vm) => vm.status.pid ?? 0

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  pool = `${d.data}/pools/default/wadah`
  runFolder = dirname(d.socket)
  await d.tiny()
  const { volumes } = endpoints
  const make = async (name: string) => d.done(await d.api.call(volumes.create, { body: { name, size_mib: 16 } }))
  await make('base')
  await make('unused')
  base = (await d.api.call(volumes.get, { params: { volume: 'base' } })).id
  const body = { name: 'linked', clone: 'linked' as const }
  await d.done(await d.api.call(volumes.clone, { params: { volume: 'base' }, body }))
  await d.api.call(endpoints.tokens.create, { body: { name: 'robot', scope: 'full' } })
  const seed = { password: SECRET }
  const common = { start: true, nics: [{ network: 'default' }], seed }
  a = await d.create({ name: 'a', ...common, disks: [{ size_mib: 16 }, { volume: 'linked' }] })
  b = await d.create({ name: 'b', ...common, disks: [{ size_mib: 16, format: 'raw' }] })
  await d.create({ name: 'stopped', seed, disks: [{ size_mib: 16 }] })
  escaped = new Escaped(pidOf(a))
}, 240_000)
afterAll(async () => {
  await d.purge()
})

function everything(folder: string): string[] {
  const stat = lstatSync(folder)
  if (!stat.isDirectory()) return [folder]
  return [folder, ...readdirSync(folder).flatMap((name) => everything(join(folder, name)))]
}

test('it has what QEMU has, and no more', () => {
  const mine = parseRights(escaped.run('cat', '/proc/self/status').stdout)
  expect(mine).toEqual(rightsOf(pidOf(a)))
  expect(mine).toMatchObject({ CapBnd: '0000000000000000', CapEff: '0000000000000000', NoNewPrivs: '1' })
  expect(mine['Uid']).not.toBe(rightsOf(pidOf(b))['Uid'])
  const ofGroup = (pid: number | 'self') => readFileSync(`/proc/${pid}/cgroup`, 'utf8')
  expect(escaped.run('cat', '/proc/self/cgroup').stdout).toBe(ofGroup(pidOf(a)))
  // QEMU has a filter of system calls besides.
  expect(readFileSync(`/proc/${pidOf(a)}/status`, 'utf8')).toMatch(/^Seccomp:\s*2$/m)
})

/** What may be opened, by path; everything else may not. */
function allowed(what: Try[0], path: string): boolean {
  const own = `${d.data}/vms/${a.id}`
  const volume = (id: string | undefined) => id !== undefined && path.startsWith(`${pool}/volumes/${id}.`)
  // Its own machine: folder, sockets, files, disks.
  if ([`${own}/live`, `${own}/state`].some((f) => path === f || path.startsWith(`${f}/`))) return true
  if (a.spec.disks.some((disk) => volume(disk.volume))) return true
  if (what !== 'r') return what === 'l' && path === runFolder
  // What all VMs read: images, and what linked clones stand on (docs/security.md).
  if (volume(base) || /\/images\/img-[a-z2-7]{10}\/(kernel|initrd)$/.test(path)) return true
  // What says nothing of anybody.
  return [`${d.data}/url`, `${d.data}/accelerator.json`, `${runFolder}/wadahd.pid`].includes(path)
}

test('of all files and sockets of Wadah it reaches its own machine, and what all may read', () => {
  const all = [...everything(d.data), ...everything(runFolder)]
  const tries = all.flatMap((path): Try[] => {
    const stat = lstatSync(path)
    if (stat.isDirectory())
      return [
        ['l', path],
        ['c', path],
      ]
    if (stat.isSocket()) return [['u', path]]
    return [
      ['r', path],
      ['w', path],
    ]
  })
  // Nothing can be left out by mistake.
  for (const vm of [a, b])
    for (const name of [
      'live/qmp.sock',
      'live/serial0.sock',
      'live/vnc.sock',
      'live/agent.sock',
      'boot.json',
      'serial.log',
    ])
      expect(all).toContain(`${d.data}/vms/${vm.id}/${name}`)
  for (const name of ['store.db', 'store.db-wal', 'tls/tls.key', 'audit.log', 'setup-link'])
    expect(all).toContain(`${d.data}/${name}`)
  expect(all).toContain(d.socket)
  expect(all.filter((path) => path.startsWith(`${pool}/volumes/vol-`))).toHaveLength(6)
  const answers = escaped.tries(tries)
  const reached = tries.filter((_, i) => answers[i] === 'ok')
  expect(reached.filter(([what, path]) => !allowed(what, path))).toEqual([])
  // And the tries are real: what it may, it can.
  expect(
    tries.filter(([what, path], i) => answers[i] !== 'ok' && allowed(what, path) && !['l', 'c'].includes(what)),
  ).toEqual([])
})

test('it neither signals nor looks into another QEMU or the daemon', () => {
  const tries = [pidOf(b), d.pid].flatMap((pid): Try[] => [
    ...['0', '9', '19'].map((signal): Try => ['k', String(pid), signal]),
    ['p', String(pid)],
    ['m', String(pid), readFileSync(`/proc/${pid}/maps`, 'utf8').split('-')[0] ?? ''],
    ...['environ', 'mem', 'maps', 'auxv', 'syscall', 'stack'].map((name): Try => ['r', `/proc/${pid}/${name}`]),
    ...['fd', 'fdinfo', 'cwd', 'map_files'].map((name): Try => ['l', `/proc/${pid}/${name}`]),
    ['r', `/proc/${pid}/root/etc/passwd`],
    ['w', `/proc/${pid}/oom_score_adj`],
  ])
  const answers = escaped.tries(tries)
  expect(tries.filter((_, i) => answers[i] === 'ok')).toEqual([])
  expect(new Set(answers.map((e) => (['EPERM', 'EACCES'].includes(e) ? '' : e)))).toEqual(new Set(['']))
  // What everybody sees of a process holds no secret.
  const line = escaped.run('cat', `/proc/${pidOf(b)}/cmdline`).stdout
  expect(line).toContain(b.id)
  expect(line).not.toContain(SECRET)
})

test('it takes no other VM’s tap, makes none, and leaves its group of resources alone', () => {
  const taps = d.traces().taps
  expect(taps).toHaveLength(2)
  const groups = readFileSync(`/proc/${pidOf(a)}/cgroup`, 'utf8')
    .split('\n')
    .flatMap((l) => l.split(':')[2]?.split('\0') ?? [])
    .filter((p) => p.includes('/wadah'))
  expect(groups.length).toBeGreaterThan(0)
  const tries: Try[] = [
    ...taps.map((t): Try => ['t', t]),
    ['t', 'escaped0'],
    ['c', '/sys/fs/cgroup'],
    ['c', dirname(d.data)],
  ]
  for (const mount of ['/sys/fs/cgroup', '/sys/fs/cgroup/cpu', '/sys/fs/cgroup/memory'])
    for (const group of groups)
      for (const of of [group, dirname(group)])
        if (existsSync(`${mount}${of}/cgroup.procs`)) tries.push(['w', `${mount}${of}/cgroup.procs`])
  expect(tries.length).toBeGreaterThan(5)
  const answers = escaped.tries(tries)
  expect(tries.filter((_, i) => answers[i] === 'ok')).toEqual([])
})

describe('by TCP', () => {
  const get = (url: string, ...more: string[]) =>
    escaped.run('curl', '-gks', '--max-time', '5', '-o', '/dev/null', '-w', '%{http_code}', ...more, url)
  const servers: Server[] = []
  const listen = (address: string) =>
    new Promise<number>((resolve) => {
      const server = createServer((socket) => socket.end('HTTP/1.0 200 OK\r\n\r\n'))
      servers.push(server)
      server.listen(0, address, () => resolve((server.address() as AddressInfo).port))
    })
  afterAll(() => {
    for (const server of servers) server.close()
  })

  test('it reaches neither the daemon nor anything else that listens on the host', async () => {
    const { port } = new URL(d.url)
    // The daemon is there for others: without a token it says so, and gives nothing away.
    const asked = async (path: string) =>
      new Promise<number>((resolve, reject) =>
        https
          .get(`https://127.0.0.1:${port}${path}`, { rejectUnauthorized: false }, (r) =>
            resolve(r.resume().statusCode ?? 0),
          )
          .on('error', reject),
      )
    for (const path of ['/v1/vms', '/v1/host', '/v1/audit', '/v1/events', '/v1/volumes'])
      expect(await asked(path)).toBe(401)
    const local = Object.values(networkInterfaces())
      .flatMap((list) => list ?? [])
      .filter((i) => i.family === 'IPv4')
    for (const address of ['127.0.0.1', '127.9.9.9', ...local.map((i) => i.address)]) {
      const { code } = get(`https://${address}:${port}/v1/ping`)
      expect([address, code]).toEqual([address, REFUSED])
    }
    const four = await listen('0.0.0.0')
    expect(get(`http://127.0.0.1:${four}/`).code).toBe(REFUSED)
    if (existsSync('/proc/net/if_inet6')) {
      const six = await listen('::1')
      expect(get(`http://[::1]:${six}/`).code).toBe(REFUSED)
    }
  })

  test('it reaches of other guests what is published, and no more', async () => {
    const address = b.addresses[0]?.address ?? ''
    await d.booted('b')
    const page = () =>
      fetch(`http://${address}/`, { signal: AbortSignal.timeout(3000) }).then(
        (r) => r.status,
        () => undefined,
      )
    expect(await until('the page of b', page)).toBe(200)
    expect(get(`http://${address}/`).code).toBe(REFUSED)
  })

  test('it opens no raw socket', () => {
    expect(
      escaped.run('perl', '-e', 'use Socket; socket(my $s, 17, SOCK_RAW, 0x300) ? print "open" : print 0 + $!').stdout,
    ).toBe('1')
    expect(
      escaped.run('perl', '-e', 'use Socket; socket(my $s, PF_INET, SOCK_RAW, 1) ? print "open" : print 0 + $!').stdout,
    ).toBe('1')
  })
})
