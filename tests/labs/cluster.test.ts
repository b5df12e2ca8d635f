/** Three hosts in network namespaces become one cluster: with VMs that run on, hosts that die, moves that a guest hardly feels. */
import { existsSync, readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { at, json, LAB, lab, ok, on, purgeDeadLabs, run, SHARED, WADAH } from '../kit/lab.ts'

const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')
const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
const address: string[] = ['']
const pidOf = (i: number) => Number(readFileSync(`/run/wadah-${LAB}${i}/wadahd.pid`, 'utf8').split(' ')[0])
const ticks = async (vm: string) =>
  Number((await ok(at(1, 'vm', 'exec', vm, '--', '/bin/sh', '-c', 'cut -d. -f1 /proc/uptime'))).trim())

beforeAll(async () => {
  purgeDeadLabs()
  const made = JSON.parse(await lab('up', '--hosts', '3', '--apart', '--json')) as { hosts: { address: string }[] }
  address.push(...made.hosts.map((h) => h.address))
}, 240_000)
afterAll(async () => {
  await lab('down')
  expect(await ok(run('ip', ['-o', 'link']))).not.toContain(`w${LAB}`)
  expect((await run('ip', ['netns'])).out).not.toContain(`w${LAB}`)
}, 120_000)

test('a host becomes a cluster of one, and its VM runs on', async () => {
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'vm', 'create', 'first', '--image', 'tiny', '--start'))
  const before = await show(1, 'first')
  // Alone, it does nothing in the place of a host that is not there.
  const elsewhere = await at(1, 'vm', 'create', 'lost', '--image', 'tiny', '--host', 'nobody')
  expect(elsewhere.err).toContain('There is no host "nobody"')
  expect((await at(1, 'host', 'show', '--host', 'nobody')).err).toContain('There is no host "nobody"')
  for (const wrong of ['127.0.0.1', '::1', '169.254.1.1'])
    expect((await on(1, ['cluster', 'init', '--address', wrong])).err).toContain(address[1])
  const foreign = await on(1, ['cluster', 'init', '--address', '192.0.2.77'])
  expect(foreign.code).not.toBe(0)
  expect(foreign.err).toContain('192.0.2.77 is no address of this host')
  await ok(on(1, ['cluster', 'init', '--address', address[1] as string]))
  const after = await show(1, 'first')
  expect(after.status.state).toBe('running')
  expect(after.status.started_at).toBe(before.status.started_at)
  const c = await cluster(1)
  expect(c.store).toMatchObject({ kind: 'etcd', members: [{ state: 'leader' }] })
  expect((await on(1, ['cluster', 'init', '--address', address[1] as string])).err).toContain('of a cluster already')
}, 240_000)

test('hosts join with what they have; tokens are for one host, once', async () => {
  // A VM that runs on the host which joins, and one whose name is taken.
  await ok(at(2, 'image', 'build', 'tiny'))
  await ok(at(2, 'vm', 'create', 'second', '--image', 'tiny', '--start'))
  await ok(at(2, 'vm', 'create', 'first', '--image', 'tiny'))
  const before = await show(2, 'second')
  const { token } = await json<{ token: string }>(1, 'cluster', 'token')
  const join = (i: number, text: string, ...more: string[]) =>
    on(i, ['cluster', 'join', '-', '--address', address[i] as string, '-y', ...more], text)

  const body = JSON.parse(Buffer.from(token.slice(11), 'base64url').toString()) as { s: string }
  const forged = `wadah-join-${Buffer.from(JSON.stringify({ ...body, s: `${body.s.split('.')[0]}.AAAA` })).toString('base64url')}`
  expect((await join(2, forged)).err).toContain('The token is unknown')
  const twin = await join(2, token)
  expect(twin.err).toContain('a VM called "first" is in the cluster already')
  expect(twin.err).toContain('wadah vm edit first --name')
  // Nothing was changed, and the host works on alone.
  expect((await cluster(2)).id).toBeUndefined()
  await ok(at(2, 'vm', 'delete', 'first', '-y'))
  expect((await join(2, token, '--name', `${LAB}1`)).err).toContain(`A host called "${LAB}1" is in the cluster already`)
  await ok(join(2, token))
  const after = await show(1, 'second')
  expect(after.status.state).toBe('running')
  expect(after.status.started_at).toBe(before.status.started_at)
  expect((await ok(at(1, 'vm', 'exec', 'second', '--', '/bin/sh', '-c', 'echo I am here'))).trim()).toBe('I am here')

  expect((await join(3, token)).err).toMatch(/used already, by another host|unknown/)
  const next = await json<{ token: string }>(2, 'cluster', 'token')
  await ok(join(3, next.token))
  await until(
    'three copies of the store',
    async () => {
      const c = await cluster(3)
      return c.store.members.length === 3 && c.store.members.every((m) => ['leader', 'follower'].includes(m.state))
    },
    90_000,
  )
}, 300_000)

test('any host serves everything; a host that dies is seen, and the others write on', async () => {
  const names = async (i: number) => (await json<{ items: Vm[] }>(i, 'vm', 'list')).items.map((v) => v.name).toSorted()
  for (const i of [1, 2, 3]) expect(await names(i)).toEqual(['first', 'second'])
  await ok(at(3, 'vm', 'pause', 'second'))
  expect((await show(1, 'second')).status.state).toBe('paused')
  await ok(at(1, 'vm', 'resume', 'second'))
  await lab('kill', `${LAB}3`)
  await ok(at(1, 'vm', 'edit', 'first', '--description', 'written with one host less'))
  await until('the host to be said to be down', async () =>
    (await cluster(2)).hosts.some((h) => h.name === `${LAB}3` && h.state === 'down'),
  )
  await lab('start', `${LAB}3`)
  await until('the host to be back', async () => (await cluster(2)).hosts.every((h) => h.state === 'up'))
  expect((await show(3, 'first')).description).toBe('written with one host less')
}, 240_000)

test('a running VM moves, and is the same guest afterwards', async () => {
  const nat = await at(3, 'vm', 'migrate', 'second')
  expect(nat.err).toContain('which each host has for itself')
  await ok(at(1, 'pool', 'create', 'common', SHARED, '--shared'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
  await ok(
    at(
      2,
      'vm',
      'create',
      'mover',
      '--image',
      'tiny',
      '--network',
      'lan',
      '--host',
      `${LAB}1`,
      '--disk',
      '64M',
      '--pool',
      'common',
      '--start',
    ),
  )
  expect((await show(2, 'mover')).placement).toMatchObject({ epoch: 1 })
  await ok(
    at(1, 'vm', 'exec', 'mover', '--', '/bin/sh', '-c', 'echo kept >/kept; echo on disk | dd of=/dev/vda conv=fsync'),
  )
  const up = await ticks('mover')
  const daemon = pidOf(1)
  const move = await json<VmMove>(3, 'vm', 'migrate', 'mover', '--max-stall-ms', '5000', '--to', `${LAB}2`)
  expect(move).toMatchObject({ vm: 'mover', from: `${LAB}1`, to: `${LAB}2`, live: true, how: 'precopy' })
  expect(move.stall_ms).toBeGreaterThan(0)
  expect(move.bytes).toBeGreaterThan(2 ** 20)
  const there = await show(3, 'mover')
  expect(there.placement).toMatchObject({ epoch: 2 })
  expect(there.status.state).toBe('running')
  const said = await ok(at(1, 'vm', 'exec', 'mover', '--', '/bin/sh', '-c', 'cat /kept; head -n 1 /dev/vda'))
  expect(said.split('\n').slice(0, 2)).toEqual(['kept', 'on disk'])
  expect(await ticks('mover')).toBeGreaterThanOrEqual(up)
  expect(pidOf(1)).toBe(daemon)
  // Nothing of it is left where it was.
  expect((await ok(run('ip', ['-n', `w${LAB}1`, '-o', 'link']))).match(/wtap|tap/g) ?? []).toHaveLength(
    (await json<{ items: Vm[] }>(1, 'vm', 'list')).items.filter((v) => v.name === 'first').length,
  )
  // Each host of the lab tells of its own share, not of the machine below.
  const busy = async () => (await cluster(3)).hosts.map((h) => ({ of: h.cpus ?? 0, cores: h.cpu_busy ?? -1 }))
  await until('the hosts to say how busy they are', async () => (await busy()).every(({ cores }) => cores >= 0))
  for (const { of, cores } of await busy()) expect(cores).toBeLessThanOrEqual(of * 1.2)
  expect((await at(1, 'vm', 'migrate', 'mover', '--to', `${LAB}2`)).err).toContain('already')
  expect((await at(1, 'vm', 'migrate', 'mover', '--to', 'nobody')).err).toContain('There is no host "nobody"')
}, 240_000)

test('a whole site that lost its power comes back, with all that was in its store', async () => {
  const before = (await json<{ items: Vm[] }>(1, 'vm', 'list')).items
  for (const i of [1, 2, 3]) await lab('kill', `${LAB}${i}`)
  await lab('up', '--hosts', '3', '--apart')
  const c = await cluster(2)
  expect(c.store.members.map((m) => m.state).filter((s) => s === 'silent' || s === 'learner')).toEqual([])
  await until('every host to be up', async () => (await cluster(2)).hosts.every((h) => h.state === 'up'))
  const after = (await json<{ items: Vm[] }>(3, 'vm', 'list')).items
  expect(after.map((v) => [v.name, v.placement.host]).toSorted()).toEqual(
    before.map((v) => [v.name, v.placement.host]).toSorted(),
  )
  // The machine below the lab was not started anew: what ran is started again by its policy, and nothing else.
  const ran = (vm: Vm) => before.some((v) => v.name === vm.name && v.status.state === 'running')
  for (const vm of after.filter(ran))
    await until(`${vm.name} to run again`, async () => (await show(1, vm.name)).status.state === 'running')
  for (const vm of after.filter((v) => !ran(v)))
    expect(['stopped', 'unknown']).toContain((await show(1, vm.name)).status.state)
}, 240_000)

test('a host is emptied, brought back, and taken out', async () => {
  await ok(at(1, 'vm', 'create', 'asleep', '--image', 'tiny', '--host', `${LAB}2`))
  const drained = await at(1, 'host', 'drain', `${LAB}2`, '-y', '--max-stall-ms', '5000')
  // One has a NIC that only its host has: it stays, is named, and holds up no other.
  expect(drained.code).toBe(1)
  expect(drained.err + drained.out).toContain('second')
  const c = await cluster(3)
  expect(c.hosts.find((h) => h.name === `${LAB}2`)).toMatchObject({ state: 'maintenance', vms: 1 })
  expect((await at(1, 'vm', 'create', 'no', '--image', 'tiny', '--host', `${LAB}2`)).err).toContain('in maintenance')
  // On a machine as busy as this one the guest may stand still for longer than it may by default.
  await ok(at(3, 'host', 'undrain', `${LAB}2`, '--max-stall-ms', '5000'))
  expect((await cluster(1)).hosts.find((h) => h.name === `${LAB}2`)).toMatchObject({ state: 'up', vms: 3 })

  expect((await at(1, 'cluster', 'remove', `${LAB}2`, '-y')).err).toContain('are placed on')
  await ok(at(1, 'host', 'drain', `${LAB}3`, '-y', '--max-stall-ms', '5000'))
  await ok(at(1, 'cluster', 'remove', `${LAB}3`, '-y'))
  expect((await cluster(1)).hosts.map((h) => h.name)).toEqual([`${LAB}1`, `${LAB}2`])
  expect((await cluster(1)).store.members).toHaveLength(2)

  // It takes back by itself what opens the store, is alone after its next start, and may come again.
  await until('the host to let go', async () => !existsSync(`/var/lib/wadah-${LAB}3/cluster`), 60_000)
  expect(existsSync(`/var/lib/wadah-${LAB}3/etcd/data`)).toBe(false)
  await lab('start', `${LAB}3`)
  expect((await cluster(3)).id).toBeUndefined()
  const { token } = await json<{ token: string }>(2, 'cluster', 'token')
  await ok(on(3, ['cluster', 'join', '-', '--address', address[3] as string, '-y'], token))
  await until('three hosts again', async () => (await cluster(3)).hosts.filter((h) => h.state === 'up').length === 3)
}, 300_000)

test('a host that was down while it was taken out is told so when it comes back', async () => {
  await lab('kill', `${LAB}3`)
  await until('the host to be said to be down', async () =>
    (await cluster(1)).hosts.some((h) => h.name === `${LAB}3` && h.state === 'down'),
  )
  await ok(at(1, 'cluster', 'remove', `${LAB}3`, '-y'))
  const back = await run(WADAH, ['lab', 'start', `${LAB}3`, '--lab', LAB])
  expect(back.err + back.out).toContain('was taken out of the cluster')
  expect(existsSync(`/var/lib/wadah-${LAB}3/cluster`)).toBe(false)
  await lab('start', `${LAB}3`)
  expect((await cluster(3)).id).toBeUndefined()
  expect((await cluster(1)).hosts).toHaveLength(2)
}, 240_000)
