/** A store that lost its majority for good: one host's copy makes it answer again, and nothing runs twice. */
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import type { Vm } from '@wadah/api/schema/vm'
import { CACHE, until } from '../kit/daemon.ts'
import { at, json, LAB, lab, ok, on, purgeDeadLabs, SHARED } from '../kit/lab.ts'

const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')
const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
const argvOf = (pid: string): string[] => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  } catch {
    return []
  }
}
const address: string[] = []
const copy = join(CACHE, `${LAB}-copy.db`)

beforeAll(async () => {
  purgeDeadLabs()
  const made = JSON.parse(await lab('up', '--hosts', '3', '--json')) as { hosts: { address: string }[] }
  address.push(...made.hosts.map((h) => h.address))
  await until(
    'three copies of the store',
    async () => (await cluster(1)).store.members.filter((m) => m.state !== 'learner').length === 3,
    90_000,
  )
  await ok(at(1, 'pool', 'create', 'common', SHARED, '--shared'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
  await ok(at(3, 'image', 'build', 'tiny'))
  for (const [vm, host] of [
    ['one', 1],
    ['three', 3],
    ['asleep', 3],
  ] as const)
    await ok(
      at(
        host,
        'vm',
        'create',
        vm,
        '--image',
        'tiny',
        '--network',
        'lan',
        '--host',
        `${LAB}${host}`,
        ...(vm === 'asleep' ? [] : ['--start']),
      ),
    )
  await ok(
    at(
      3,
      'vm',
      'create',
      'two-shared',
      '--image',
      'tiny',
      '--network',
      'lan',
      '--host',
      `${LAB}2`,
      '--pool',
      'common',
      '--disk',
      '16M',
      '--start',
    ),
  )
  await ok(
    at(2, 'vm', 'create', 'two-local', '--image', 'tiny', '--network', 'lan', '--host', `${LAB}2`, '--disk', '16M'),
  )
}, 240_000)
afterAll(async () => {
  await lab('down')
  rmSync(copy, { force: true })
}, 120_000)

test('as long as a majority answers nothing is to be recovered', async () => {
  const refused = await on(3, ['cluster', 'recover', '-y'])
  expect(refused.err).toContain('The store of the cluster answers')
  expect(refused.code).not.toBe(0)
  expect((await show(1, 'three')).status.state).toBe('running')
}, 120_000)

test('one copy of three is left: the store answers again, VMs ran on, and nothing starts before all have said what they run', async () => {
  const before = await show(3, 'three')
  await lab('kill', `${LAB}1`)
  await lab('kill', `${LAB}2`)
  const done = JSON.parse(await ok(on(3, ['cluster', 'recover', '-y', '--json']))) as { waiting: string[] }
  expect(done.waiting.toSorted()).toEqual([`${LAB}1`, `${LAB}2`])
  const after = await show(3, 'three')
  expect([after.status.state, after.status.pid, after.placement.epoch]).toEqual([
    'running',
    before.status.pid,
    before.placement.epoch,
  ])
  await ok(at(3, 'vm', 'edit', 'three', '--description', 'written with one copy'))
  const refused = await at(3, 'vm', 'start', 'asleep')
  expect(refused.err).toMatch(new RegExp(`${LAB}1, ${LAB}2 have not said yet what runs there`))
  expect(refused.err).toContain(`wadah cluster remove ${LAB}1`)

  // One is lost for good, and what it ran can be started here; what lay on its disks only is lost, too. The other comes back, with what it kept.
  await until('the host to be said to be down', async () =>
    (await cluster(3)).hosts.some((h) => h.name === `${LAB}2` && h.state === 'down'),
  )
  expect((await at(3, 'cluster', 'remove', `${LAB}2`, '-y')).err).toContain(`wadah cluster remove ${LAB}2 --lost`)
  const tied = await at(3, 'cluster', 'remove', `${LAB}2`, '--lost', '-y')
  expect(tied.err).toContain('the VM two-local')
  expect(tied.err).not.toContain('two-shared')
  await ok(at(3, 'cluster', 'remove', `${LAB}2`, '--lost', '--drop', '-y'))
  expect((await at(3, 'vm', 'show', 'two-local')).code).not.toBe(0)
  expect(await show(3, 'two-shared')).toMatchObject({
    status: { state: 'stopped', reason: `its host, ${LAB}2, was given up as lost` },
    placement: { epoch: 2 },
  })
  await lab('start', `${LAB}1`)
  await until(
    'the other host to have said what it runs',
    async () => (await at(3, 'vm', 'start', 'asleep')).code === 0,
    60_000,
  )
  await ok(at(3, 'vm', 'start', 'two-shared'))
  expect((await show(1, 'three')).description).toBe('written with one copy')
  // Its host ran it last, and the machine below was not started anew: its policy starts it again.
  await until('one to run again', async () => (await show(1, 'one')).status.state === 'running')
  const c = await cluster(1)
  expect(c.hosts.map((h) => [h.name, h.state])).toEqual([
    [`${LAB}1`, 'up'],
    [`${LAB}3`, 'up'],
  ])
  expect(c.store.members.filter((m) => m.state === 'leader')).toHaveLength(1)
}, 240_000)

test('no copy is left: one in a file does, and what runs by now is where it runs', async () => {
  await ok(at(3, 'store', 'backup', copy))
  // What the copy does not know: a VM that has moved since.
  await ok(at(3, 'vm', 'migrate', 'one', '--max-stall-ms', '5000', '--to', `${LAB}3`))
  const moved = await show(3, 'one')
  expect(moved.placement.epoch).toBe(2)
  await lab('kill', `${LAB}1`)
  // The daemon and its etcd end, and the copy with them; QEMUs run on.
  const data = `/var/lib/wadah-${LAB}3/etcd/data`
  process.kill(Number(readFileSync(`/run/wadah-${LAB}3/wadahd.pid`, 'utf8').split(' ')[0]), 'SIGKILL')
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
    if (argvOf(pid).includes(data)) process.kill(Number(pid), 'SIGKILL')
  await until(
    'etcd to be gone',
    () => !readdirSync('/proc').some((pid) => /^\d+$/.test(pid) && argvOf(pid).includes(data)),
  )
  rmSync(data, { recursive: true })
  const done = JSON.parse(
    await ok(
      on(3, [
        'cluster',
        'recover',
        '-y',
        '--json',
        '--from',
        copy,
        '--config',
        `/var/lib/wadah-lab-${LAB}/${LAB}3.toml`,
      ]),
    ),
  ) as {
    records: number
  }
  expect(done.records).toBeGreaterThan(10)
  await lab('start', `${LAB}3`)
  await until('what runs to be known', async () => (await show(3, 'one')).status.state === 'running')
  const known = await show(3, 'one')
  expect([known.placement, known.status.pid]).toEqual([moved.placement, moved.status.pid])
}, 240_000)

test('a new machine takes the place of one that is lost, under its name, and VMs go there', async () => {
  // What the lost one had is nowhere any more.
  const data = `/var/lib/wadah-${LAB}2`
  for (const name of readdirSync(data)) rmSync(join(data, name), { recursive: true })
  await lab('start', `${LAB}2`)
  const { token } = await json<{ token: string }>(3, 'cluster', 'token')
  await ok(on(2, ['cluster', 'join', '-', '--address', address[1] as string, '-y'], token))
  await until(
    'it to be up',
    async () => (await cluster(3)).hosts.find((h) => h.name === `${LAB}2`)?.state === 'up',
    60_000,
  )
  await ok(at(3, 'vm', 'migrate', 'one', '--max-stall-ms', '5000', '--to', `${LAB}2`))
  expect((await show(2, 'one')).status.state).toBe('running')
}, 240_000)
