/** A host whose clock is five minutes ahead: it is named with the remedy, may not join so, and disturbs neither VMs nor moves. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import type { HostCheck } from '@wadah/api/schema/host'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { clockOff, dropClocks, qemuClockOff } from '../kit/clock.ts'
import { until } from '../kit/daemon.ts'
import { at, json, LAB, lab, ok, on, purgeDeadLabs, restartAs, twoApart } from '../kit/lab.ts'

const OFF_S = 300
const YEARS_S = 20 * 365 * 86_400
const HOST = [LAB, `${LAB}1`, `${LAB}2`]
const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')
const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
let address: string[]

beforeAll(async () => {
  purgeDeadLabs()
  address = await twoApart()
}, 480_000)
afterAll(async () => {
  await lab('down')
  dropClocks()
}, 240_000)

test('a host with such a clock may not join, nor one that is in another decade; both are told that it is the clock', async () => {
  await ok(on(1, ['cluster', 'init', '--address', address[1] as string]))
  const { token } = await json<{ token: string }>(1, 'cluster', 'token')
  const join = (wadahd?: string) =>
    on(2, ['cluster', 'join', '-', '--address', address[2] as string, '-y'], token, wadahd)
  for (const [off_s, words] of [
    [OFF_S, `The clock of ${HOST[2]} is 5 min ahead of that of ${HOST[1]}`],
    [-OFF_S, `The clock of ${HOST[2]} is 5 min behind that of ${HOST[1]}`],
    [-YEARS_S, 'one of the two clocks is wrong'],
    [YEARS_S, 'one of the two clocks is wrong'],
  ] as const) {
    const refused = await join(clockOff(off_s))
    expect(refused.code).not.toBe(0)
    expect(refused.err).toContain(words)
    expect(refused.err).toContain('timedatectl set-ntp true')
    expect((await cluster(2)).id).toBeUndefined()
  }
  expect((await cluster(1)).hosts).toHaveLength(1)
  await ok(restartAs(2))
  await ok(join())
}, 480_000)

test('one that is in the cluster is named by every host, with how far it is off', async () => {
  const wadahd = clockOff(OFF_S)
  qemuClockOff(2, OFF_S)
  await ok(restartAs(2, wadahd))
  await until('both to be up', async () => (await cluster(1)).hosts.every((h) => h.state === 'up'))
  for (const [i, sign, words] of [
    [1, 1, 'ahead'],
    [2, -1, 'behind'],
  ] as const) {
    const other = HOST[3 - i] as string
    const { hosts } = await cluster(i)
    const [own, far] = [hosts.find((h) => h.name === HOST[i]), hosts.find((h) => h.name === other)]
    expect(own?.clock_off_ms).toBeUndefined()
    expect(((far?.clock_off_ms ?? 0) * sign) / 1000).toBeCloseTo(OFF_S, -1)
    const shown = await at(i, 'cluster', 'show')
    expect(shown.err).toMatch(new RegExp(`The clock of ${other} is (5 min 0|4 min 5\\d) s ${words}`))
    expect(shown.err).toContain('timedatectl set-ntp true')
    const { items } = JSON.parse((await at(i, '--json', 'host', 'check')).out) as HostCheck
    expect(items.find((item) => item.name === `way to ${other}`)).toMatchObject({
      state: 'warn',
      detail: expect.stringContaining(`5 min ${words}`),
      remedy: expect.stringContaining('chrony'),
    })
  }
}, 240_000)

test('its VMs run on, its lease holds, and moves there and back tell how long the guest really stood still', async () => {
  await ok(
    at(1, 'vm', 'create', 'mover', '--image', 'tiny', '--network', 'lan', '--host', HOST[1] as string, '--start'),
  )
  const clockOf = async (vm: string) =>
    Number((await ok(at(1, 'vm', 'exec', vm, '--', '/bin/sh', '-c', 'cut -d. -f1 /proc/uptime'))).trim())
  await until('the guest to answer', async () => (await at(1, 'vm', 'exec', 'mover', '--', '/bin/true')).code === 0)
  const stalls: number[] = []
  for (const to of [2, 1, 2]) {
    const before = await clockOf('mover')
    const move = await json<VmMove>(1, 'vm', 'migrate', 'mover', '--to', HOST[to] as string, '--max-stall-ms', '5000')
    stalls.push(move.stall_ms ?? Number.NaN)
    // Its own time goes on, and makes no jump of five minutes.
    const passed = (await clockOf('mover')) - before
    expect(passed).toBeGreaterThanOrEqual(0)
    expect(passed).toBeLessThan(OFF_S / 2)
  }
  for (const stall_ms of stalls) {
    expect(stall_ms).toBeGreaterThanOrEqual(0)
    // Far from what the clocks are apart: they were held against each other.
    expect(stall_ms).toBeLessThan(60_000)
  }
  expect((await show(1, 'mover')).placement.epoch).toBe(4)
  const { pid } = (await show(2, 'mover')).status
  // Longer than any lease of a host lasts, and with a new one taken on the way.
  await ok(restartAs(2, clockOff(OFF_S)))
  await until('both to be up', async () => (await cluster(1)).hosts.every((h) => h.state === 'up'))
  expect(await show(1, 'mover')).toMatchObject({ status: { state: 'running', pid }, placement: { epoch: 4 } })
}, 480_000)
