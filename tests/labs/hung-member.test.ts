/** Of three members of etcd one hangs: writes go on through every host, and no host loses its lease. How soon: `node bench/run.ts --only hung`. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Cluster } from '@wadah/api/schema/cluster'
import { hangInTurn, HOSTS, leasesLost, threeMembers, write } from '../kit/hang.ts'
import { json, lab, purgeDeadLabs } from '../kit/lab.ts'

beforeAll(async () => {
  purgeDeadLabs()
  await threeMembers()
}, 300_000)
afterAll(() => lab('down'), 120_000)

test('writes through every host go on, whichever member hangs', async () => {
  for (const i of HOSTS) expect(await write(i)).toBeLessThan(300)
  const before = leasesLost()
  const { first, later, said } = await hangInTurn()
  process.stdout.write(`${said.map((line) => `      hung: ${line}`).join('\n')}\n`)
  expect([...first, ...later].filter((ms) => !Number.isFinite(ms))).toEqual([])
  expect(first).toHaveLength(5 * HOSTS.length)
  expect(leasesLost()).toEqual(before)
  expect((await json<Cluster>(2, 'cluster', 'show')).hosts.every((h) => h.state === 'up')).toBe(true)
}, 400_000)
