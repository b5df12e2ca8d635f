/** A way between two hosts on which large packets vanish without a word: it is named, and no move hangs on it. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import type { HostCheck } from '@wadah/api/schema/host'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { at, json, LAB, lab, ok, purgeDeadLabs, run } from '../kit/lab.ts'

beforeAll(async () => {
  purgeDeadLabs()
  await lab('up', '--hosts', '2')
}, 240_000)
afterAll(() => lab('down'), 120_000)

/** Frames beyond this length between the hosts are dropped, in both directions, and no ICMP says so. */
const hole = (bytes: number) =>
  ok(run('nft', ['add', 'rule', 'bridge', `w${LAB}br`, 'f', 'meta', 'length', '>', String(bytes), 'drop']))
const whole = () => ok(run('nft', ['flush', 'chain', 'bridge', `w${LAB}br`, 'f']))
const way = async (i: number) => {
  const { out } = await at(i, '--json', 'host', 'check')
  return (JSON.parse(out) as HostCheck).items.find((item) => item.name === `way to ${LAB}${3 - i}`)
}

test('a small MTU in the middle is named by the check of the host, and a move says so and changes nothing', async () => {
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
  await ok(at(1, 'vm', 'create', 'mover', '--image', 'tiny', '--network', 'lan', '--host', `${LAB}1`, '--start'))
  expect(await way(1)).toMatchObject({
    state: 'ok',
    detail: expect.stringContaining('small and large packets come through'),
  })
  await hole(1_400)
  try {
    expect(await way(1)).toMatchObject({ state: 'lack', detail: expect.stringContaining('MTU') })
    const moved = await at(1, 'vm', 'migrate', 'mover', '--to', `${LAB}2`)
    expect(moved.code).not.toBe(0)
    expect(moved.err).toContain('MTU')
    expect(await json<Vm>(1, 'vm', 'show', 'mover')).toMatchObject({
      status: { state: 'running' },
      placement: { host: expect.stringMatching(/^host-/), epoch: 1 },
    })
  } finally {
    await whole()
  }
  // Connections that ran into it try again ever more seldom: what needs one of them at once, the store above all, may fail once more.
  const words: string[] = []
  const goes = async () => {
    const { code, out, err } = await at(1, 'vm', 'migrate', 'mover', '--to', `${LAB}2`, '--max-stall-ms', '5000')
    if (code !== 0) words.push(out + err)
    return code === 0
  }
  await until('a move to go', goes, 120_000)
  expect(words.join()).not.toContain('a mistake of ours')
  expect((await json<Vm>(1, 'vm', 'show', 'mover')).placement.epoch).toBe(2)
}, 240_000)

test('on a network that is said to be reached by hosts alone VMs move unencrypted, unless asked otherwise', async () => {
  const { hosts } = await json<Cluster>(1, 'cluster', 'show')
  const network = `${hosts[0]?.address ?? ''}/24`
  const move = (to: number, ...more: string[]) =>
    json<VmMove>(1, 'vm', 'migrate', 'mover', '--to', `${LAB}${to}`, '--max-stall-ms', '5000', ...more)
  const { plain_networks = [] } = await json<Cluster>(2, 'cluster', 'set', '--plain', network)
  expect(plain_networks).toEqual([expect.stringMatching(/\.0\/24$/)])
  expect(await ok(at(1, 'cluster', 'show'))).toContain(plain_networks[0])
  expect(await move(1)).toMatchObject({ live: true, tls: false })
  expect(await move(2, '--tls')).toMatchObject({ tls: true })
  await ok(at(1, 'cluster', 'set', '--no-plain'))
  expect(await move(1)).toMatchObject({ tls: true })
  const refused = await at(1, 'cluster', 'set', '--plain', 'lan')
  expect([refused.code, refused.err]).toEqual([2, expect.stringContaining('is no network')])
}, 240_000)
