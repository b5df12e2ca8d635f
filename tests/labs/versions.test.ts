/** Hosts of two releases in one cluster, upgraded one after the other; a third release beside them is refused, and nothing is lost. */
import { existsSync, readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { at, json, LAB, lab, ok, on, purgeDeadLabs, restartAs, twoApart } from '../kit/lab.ts'
import { buildRelease, dropReleases, next, VERSION } from '../kit/release.ts'

const HOST = [LAB, `${LAB}1`, `${LAB}2`]
const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')
const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
let address: string[]
/** The next release has a new level of records; the ones after it are only further on. */
let after: string
let two: string
let three: string

/** What a VM is, whichever daemon tells it. */
const lasting = ({ id, name, spec, placement, status }: Vm) => ({
  id,
  name,
  spec,
  placement,
  pid: status.pid,
  started_at: status.started_at,
  state: status.state,
})
const levelIs = (i: number, level: number) =>
  until(`the records to be of level ${level}`, async () => (await cluster(i)).level === level)

beforeAll(async () => {
  purgeDeadLabs()
  after = await buildRelease(next(1), 2)
  two = await buildRelease(next(2))
  three = await buildRelease(next(3), 2)
  address = await twoApart()
}, 480_000)
afterAll(async () => {
  await lab('down')
  dropReleases()
}, 120_000)

test('a host two releases on is refused, and is as it was; one of the next release joins', async () => {
  await ok(on(1, ['cluster', 'init', '--address', address[1] as string]))
  const { token } = await json<{ token: string }>(1, 'cluster', 'token')
  const join = (wadahd: string) =>
    on(2, ['cluster', 'join', '-', '--address', address[2] as string, '-y'], token, wadahd)

  await ok(restartAs(2, two))
  const refused = await join(two)
  expect(refused.code).not.toBe(0)
  expect(refused.err).toContain(`${HOST[2]} has wadahd ${next(2)}, and ${HOST[1]} ${VERSION}`)
  expect(refused.err).toContain('may be one release apart, not more')
  expect(refused.err).toContain(`${next(1).replace(/\.\d+$/, '')} on ${HOST[2]}`)
  expect((await cluster(2)).id).toBeUndefined()
  expect(existsSync(`/var/lib/wadah-${HOST[2]}/cluster/cluster.json`)).toBe(false)
  expect((await cluster(1)).hosts.map((h) => h.name)).toEqual([HOST[1]])

  await ok(restartAs(2, after))
  await ok(join(after))
  await until('the other host to be up', async () => (await cluster(1)).hosts.every((h) => h.state === 'up'))
  const { hosts, level } = await cluster(1)
  expect(hosts.map((h) => h.version)).toEqual([VERSION, next(1)])
  expect(level).toBe(1)
  expect((await at(1, 'cluster', 'show')).err).toContain(`${VERSION}, ${next(1)}`)
}, 480_000)

test('they work together: VMs are made through either, move there and back, and a drain takes them along', async () => {
  await ok(
    at(1, 'vm', 'create', 'mover', '--image', 'tiny', '--network', 'lan', '--host', HOST[1] as string, '--start'),
  )
  // From the newer to the older, with what the newer fills in by itself; and the other way round.
  await ok(at(2, 'vm', 'create', 'one', '--image', 'tiny', '--network', 'lan', '--host', HOST[1] as string))
  await ok(at(1, 'vm', 'create', 'two', '--image', 'tiny', '--network', 'lan', '--host', HOST[2] as string))
  await ok(at(2, 'vm', 'edit', 'one', '--description', 'edited on the newer'))
  for (const to of [2, 1, 2])
    await ok(at(1, 'vm', 'migrate', 'mover', '--to', HOST[to] as string, '--max-stall-ms', '5000'))
  const epoch = (await show(2, 'mover')).placement.epoch
  expect(epoch).toBe(4)
  expect((await ok(at(1, 'vm', 'exec', 'mover', '--', '/bin/sh', '-c', 'echo I am here'))).trim()).toBe('I am here')
  await ok(at(2, 'host', 'drain', HOST[2] as string, '--max-stall-ms', '5000', '-y'))
  expect((await cluster(1)).hosts.map((h) => [h.name, h.vms])).toEqual([
    [HOST[1], 3],
    [HOST[2], 0],
  ])
  await ok(at(1, 'host', 'undrain', HOST[2] as string, '--max-stall-ms', '5000'))
  expect((await show(1, 'mover')).status.state).toBe('running')
}, 480_000)

test('upgraded in turn: VMs run on, the records are the same, and the last one raises the level', async () => {
  await ok(
    at(1, 'vm', 'create', 'stays', '--image', 'tiny', '--network', 'lan', '--host', HOST[1] as string, '--start'),
  )
  const before = await json<{ items: Vm[] }>(2, 'vm', 'list')
  expect((await cluster(2)).level).toBe(1)
  await ok(restartAs(1, after))
  const now = await json<{ items: Vm[] }>(1, 'vm', 'list')
  expect(now.items.map(lasting)).toEqual(before.items.map(lasting))
  await levelIs(2, 2)
  expect((await cluster(2)).hosts.map((h) => h.version)).toEqual([next(1), next(1)])
  // There is no way back once records may hold what the older one does not know.
  const back = await restartAs(1)
  expect(back.code).not.toBe(0)
  expect(back.err).toContain(`The records of the cluster are of level 2; wadahd ${VERSION}`)
  const { pid } = (await show(2, 'stays')).status
  expect(existsSync(`/proc/${pid}`)).toBe(true)
  await ok(restartAs(1, after))
  expect(lasting(await show(1, 'stays'))).toEqual(now.items.map(lasting).find((v) => v.name === 'stays'))
}, 480_000)

test('a host that is upgraded too far does not serve, says why, and touches nothing that runs', async () => {
  const vm = await show(1, 'mover')
  const i = (await cluster(1)).hosts.findIndex((h) => h.id === vm.placement.host) + 1
  const refused = await restartAs(i, three)
  expect(refused.code).not.toBe(0)
  for (const words of [
    'This host does not serve as it is; its VMs run on',
    `${HOST[i]} has wadahd ${next(3)}, and ${HOST[3 - i]} ${next(1)}`,
    'may be one release apart, not more',
    `on ${HOST[i]}`,
  ])
    expect(refused.err).toContain(words)
  expect(readFileSync(`/var/lib/wadah-${HOST[i]}/wadahd.log`, 'utf8')).toContain(`has wadahd ${next(3)}`)
  expect(readFileSync(`/proc/${vm.status.pid}/cmdline`, 'utf8')).toContain('qemu-system')
  // The others go on, and know nothing of a release that never served.
  await until('it to be seen as down', async () => (await cluster(3 - i)).hosts[i - 1]?.state === 'down')
  expect((await cluster(3 - i)).hosts[i - 1]?.version).toBe(next(1))
  await ok(restartAs(i, after))
  expect(lasting(await show(3 - i, 'mover'))).toEqual(lasting(vm))
}, 480_000)
