/** The store of a cluster in an etcd that the administrator runs: what is refused, two hosts on it, its loss and its return. */
import { existsSync, readFileSync, statSync } from 'node:fs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import { until } from '../kit/daemon.ts'
import { GivenEtcd } from '../kit/etcd.ts'
import { at, json, LAB, lab, ok, on, purgeDeadLabs } from '../kit/lab.ts'

const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')
const data = (i: number) => `/var/lib/wadah-${LAB}${i}`
const address: string[] = ['']
let etcd: GivenEtcd

beforeAll(async () => {
  purgeDeadLabs()
  const made = JSON.parse(await lab('up', '--hosts', '3', '--apart', '--json')) as { hosts: { address: string }[] }
  address.push(...made.hosts.map((h) => h.address))
  etcd = new GivenEtcd(3, address[3] as string)
  await etcd.start()
}, 240_000)
afterAll(async () => {
  await etcd?.stop()
  await lab('down')
}, 120_000)

const init = (...more: string[]) => on(1, ['cluster', 'init', '--address', address[1] as string, ...more])

test('what can not carry the store is refused, and the host stays alone', async () => {
  const plain = await init('--etcd', `http://${address[3]}:2379`, ...etcd.options().slice(2))
  expect(plain.err).toContain('in the clear')
  expect((await init('--etcd', etcd.url)).err).toContain('--etcd-ca FILE --etcd-cert FILE --etcd-key FILE')
  expect((await init(...etcd.options('wrong'))).err).toContain(`does not answer at ${address[3]}:2379`)
  const dead = await init('--etcd', `${etcd.url},https://${address[2]}:2379`, ...etcd.options().slice(2))
  expect(dead.err).toContain(`does not answer at ${address[2]}:2379`)
  expect(dead.err).not.toContain(`${address[3]}:2379 (`)
  expect((await cluster(1)).id).toBeUndefined()
  expect(existsSync(`${data(1)}/cluster`)).toBe(false)
}, 120_000)

test('two hosts use it: both serve, none runs a member, and the key stays where it belongs', async () => {
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'vm', 'create', 'first', '--image', 'tiny', '--start'))
  await ok(init(...etcd.options()))
  const { token } = await json<{ token: string }>(1, 'cluster', 'token')
  await ok(on(2, ['cluster', 'join', '-', '--address', address[2] as string, '-y'], token))
  for (const i of [1, 2]) {
    const c = await cluster(i)
    expect(c.store).toMatchObject({ kind: 'etcd', given: { prefix: '/wadah' } })
    expect(c.store.members).toMatchObject([{ endpoint: `${address[3]}:2379`, state: 'leader' }])
    expect(c.hosts.map((h) => h.member)).toEqual([false, false])
    expect(statSync(`${data(i)}/cluster/etcd-client.pem`).mode & 0o777).toBe(0o600)
    expect(existsSync(`${data(i)}/etcd/data`)).toBe(false)
    await ok(at(i, 'vm', 'edit', 'first', '--description', `by ${i}`))
    expect(JSON.parse(await ok(at(3 - i, '--json', 'vm', 'show', 'first')))).toMatchObject({ description: `by ${i}` })
  }
  expect(await ok(at(2, 'cluster', 'show'))).toContain('an etcd of your own, below /wadah/')
  const secret = readFileSync(etcd.file('client.key'), 'utf8').split('\n')[1] as string
  const log = readFileSync(`${data(1)}/wadahd.log`, 'utf8')
  expect(log).not.toContain(secret)
  const used = await on(3, ['cluster', 'init', '--address', address[3] as string, ...etcd.options()])
  expect(used.err).toContain('There is something under /wadah/ in this etcd already')
}, 240_000)

test('it goes away: VMs run on, and all is as it was when it is back', async () => {
  await etcd.kill()
  const gone = await at(1, 'vm', 'edit', 'first', '--description', 'while it is away')
  expect(gone.code).not.toBe(0)
  etcd.run()
  await until(
    'a write to succeed',
    async () => (await at(2, 'vm', 'edit', 'first', '--description', 'back')).code === 0,
    60_000,
  )
  await until('both to be up', async () => (await cluster(1)).hosts.every((h) => h.state === 'up'), 30_000)
  expect(await json(1, 'vm', 'show', 'first')).toMatchObject({ description: 'back', status: { state: 'running' } })
}, 240_000)

test('after a snapshot was put back all hosts are told, and say what runs before anything starts', async () => {
  const done = await on(1, ['--json', 'cluster', 'recover', '-y'])
  expect(JSON.parse(done.out)).toMatchObject({ waiting: [`${LAB}2`] })
  // Without systemd: a daemon that ended because of it is started by hand.
  await until('the other daemon to have ended', async () => (await at(2, 'cluster', 'show')).code !== 0, 60_000)
  await lab('start', `${LAB}2`)
  await until('both to be up', async () => (await cluster(1)).hosts.every((h) => h.state === 'up'), 30_000)
  expect(await json(2, 'vm', 'show', 'first')).toMatchObject({ status: { state: 'running' } })
}, 240_000)

test('a host that is taken out has no key to it any more', async () => {
  await ok(at(1, 'cluster', 'remove', `${LAB}2`, '-y'))
  await until('the host to let go', async () => !existsSync(`${data(2)}/cluster`), 60_000)
  expect((await cluster(1)).hosts).toHaveLength(1)
}, 120_000)
