/** Two hosts that share no disk: VMs go from one to the other with all that lies on their host alone. */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { DrainPlan } from '@wadah/api/schema/cluster'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { at, hideOthers, json, LAB, lab, ok, purgeDeadLabs, run } from '../kit/lab.ts'

const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
const sh = async (vm: string, script: string) =>
  (await ok(at(1, 'vm', 'exec', vm, '--', '/bin/sh', '-c', script))).trim()
type Pool = { id: string; name: string; path: string; host?: string }
const pools = async () => (await json<{ items: Pool[] }>(1, 'pool', 'list')).items
/** Files in the pool of a host. */
const files = (path: string) => readdirSync(join(path, 'wadah/volumes')).toSorted()
const move = (vm: string, to: number, ...more: string[]) =>
  json<VmMove>(2, 'vm', 'migrate', vm, '--to', `${LAB}${to}`, '--max-stall-ms', '5000', ...more)

let path: [string, string]
beforeAll(async () => {
  purgeDeadLabs()
  await lab('up', '--hosts', '2')
  await hideOthers([1, 2])
  const all = await pools()
  path = [1, 2].map((i) => all.find((p) => p.path.includes(`${LAB}${i}`))?.path ?? '') as [string, string]
  expect(path.every((p) => p !== '')).toBe(true)
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
}, 240_000)
afterAll(async () => {
  await lab('down')
}, 120_000)

const create = (name: string, ...more: string[]) =>
  ok(at(1, 'vm', 'create', name, '--image', 'tiny', '--network', 'lan', '--host', `${LAB}1`, '--disk', '64M', ...more))
const SUM = 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum'

test('a running VM goes with its disk, there and back', async () => {
  await create('roamer', '--start')
  const [disk] = (await show(1, 'roamer')).spec.disks
  // On a bridge somebody else gives it its address; its agent tells, and every host's list has it.
  await until('its address in the list', async () => {
    const { items } = await json<{ items: Vm[] }>(2, 'vm', 'list')
    return items.find((vm) => vm.name === 'roamer')?.addresses.some((a) => a.source === 'agent')
  })
  const sum = await sh('roamer', `dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null; ${SUM}`)
  const there = files(path[0]).filter((f) => f.includes(disk?.volume ?? '?'))
  expect(there).toHaveLength(1)
  expect(files(path[1])).not.toContain(there[0])
  const moved = await move('roamer', 2)
  expect(moved).toMatchObject({ live: true, how: 'precopy' })
  expect(moved.phases.map((p) => p.phase)).toContain('mirror')
  expect(await sh('roamer', SUM)).toBe(sum)
  // The file is where the guest is, and nowhere else; the record says so.
  expect(files(path[1])).toContain(there[0])
  expect(files(path[0])).not.toContain(there[0])
  expect((await show(1, 'roamer')).placement).toMatchObject({ epoch: 2 })
  // Paused it comes back, and stays paused.
  await ok(at(1, 'vm', 'pause', 'roamer'))
  const back = await move('roamer', 1)
  expect(back.stall_ms).toBeUndefined()
  expect((await show(2, 'roamer')).status).toMatchObject({ state: 'paused', paused_by: 'user' })
  await ok(at(2, 'vm', 'resume', 'roamer'))
  await until('the agent', async () => (await show(1, 'roamer')).status.agent === 'connected')
  expect(await sh('roamer', SUM)).toBe(sum)
  expect(files(path[1])).not.toContain(there[0])
  // It starts from what came.
  await ok(at(1, 'vm', 'stop', 'roamer', '-y'))
  await ok(at(1, 'vm', 'start', 'roamer'))
  await until('the agent', async () => (await show(1, 'roamer')).status.agent === 'connected')
  expect(await sh('roamer', SUM)).toBe(sum)
}, 240_000)

test('snapshots go along, RAM and branches too: it is taken back to them over there', async () => {
  await create('layered', '--start')
  const agent = () => until('the agent', async () => (await show(1, 'layered')).status.agent === 'connected')
  await agent()
  const mark = (n: number) =>
    sh('layered', `echo mark-${n} | dd of=/dev/vda bs=1M seek=${n} conv=fsync,notrunc 2>/dev/null`)
  const marks = () =>
    sh(
      'layered',
      `echo 3 >/proc/sys/vm/drop_caches; for i in 1 2 3; do dd if=/dev/vda bs=1M skip=$i count=1 2>/dev/null | head -c 6; done | tr -d '\\0'`,
    )
  const its = async () => {
    const { items } = await json<{ items: { id: string; vm?: string }[] }>(1, 'volume', 'list')
    const { id } = await show(1, 'layered')
    const ids = items.filter((v) => v.vm === id).map((v) => v.id)
    return [0, 1].map((i) => files(path[i] ?? '').filter((f) => ids.some((v) => f.startsWith(v))).length)
  }
  await mark(1)
  await ok(at(1, 'snapshot', 'create', 'layered', 'one', '--ram'))
  await mark(2)
  await ok(at(1, 'snapshot', 'create', 'layered', 'two'))
  await mark(3)
  expect(await its()).toEqual([4, 0])
  const moved = await move('layered', 2)
  expect(moved.notes.join()).toContain('lies in')
  expect(await its()).toEqual([0, 4])
  expect(await marks()).toBe('mark-1mark-2mark-3')
  // What the guest writes there goes where it should.
  await mark(3)
  await ok(at(1, 'snapshot', 'revert', 'layered', 'one', '--force'))
  await agent()
  expect(await marks()).toBe('mark-1')
  // Two branches, live.
  await move('layered', 1)
  expect((await its())[1]).toBe(0)
  expect(await marks()).toBe('mark-1')
  await ok(at(1, 'snapshot', 'revert', 'layered', 'two', '--force', '--start'))
  await agent()
  expect(await marks()).toBe('mark-1mark-2')
  await ok(at(1, 'vm', 'stop', 'layered', '-y'))
  await move('layered', 2)
  expect((await its())[0]).toBe(0)
  await ok(at(1, 'vm', 'start', 'layered'))
  await agent()
  for (const name of ['one', 'two']) await ok(at(1, 'snapshot', 'delete', 'layered', name))
  expect(await its()).toEqual([0, 1])
  expect(await marks()).toBe('mark-1mark-2')
  await ok(at(1, 'vm', 'delete', 'layered', '--force', '-y'))
}, 300_000)

test('the host where it was to go dies: nothing is lost, and nothing left', async () => {
  await sh('roamer', 'dd if=/dev/urandom of=/dev/vda bs=1M count=48 conv=fsync 2>/dev/null')
  const [disk] = (await show(1, 'roamer')).spec.disks
  const sum = await sh('roamer', SUM)
  const before = files(path[0])
  const moving = at(1, 'vm', 'migrate', 'roamer', '--to', `${LAB}2`, '--bandwidth', '2')
  await until('the room for it', async () => files(path[1]).some((f) => f.includes(disk?.volume ?? '?')))
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  process.kill(Number(readFileSync(`/run/wadah-${LAB}2/wadahd.pid`, 'utf8').split(' ')[0]), 'SIGKILL')
  expect((await moving).code).not.toBe(0)
  expect(await sh('roamer', SUM)).toBe(sum)
  expect((await show(1, 'roamer')).status.state).toBe('running')
  expect(files(path[0])).toEqual(before)
  await lab('start', `${LAB}2`)
  await until('what was left there to go', async () => !files(path[1]).some((f) => f.includes(disk?.volume ?? '?')))

  // The same with the daemon of the host where it runs: the next one ends the copying.
  const again = at(2, 'vm', 'migrate', 'roamer', '--to', `${LAB}2`, '--bandwidth', '2')
  await until('the room for it', async () => files(path[1]).some((f) => f.includes(disk?.volume ?? '?')))
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  process.kill(Number(readFileSync(`/run/wadah-${LAB}1/wadahd.pid`, 'utf8').split(' ')[0]), 'SIGKILL')
  await again
  await lab('start', `${LAB}1`)
  // The next one takes up its jobs once the lease of the one before has ended.
  await until(
    'what was made there to go',
    async () => !files(path[1]).some((f) => f.includes(disk?.volume ?? '?')),
    150_000,
  ).catch((error: unknown) => {
    // It was seen once, and its cause was not.
    const logs = [1, 2].map((i) => readFileSync(`/var/lib/wadah-${LAB}${i}/wadahd.log`, 'utf8').slice(-6_000))
    throw new Error(`${String(error)}\n${logs.join('\n--\n')}`, { cause: error })
  })
  await until(
    'the job to be over',
    async () => (await at(1, 'vm', 'edit', 'roamer', '--description', 'again')).code === 0,
    120_000,
  )
  expect((await show(2, 'roamer')).placement).toMatchObject({
    host: (await show(1, 'roamer')).placement.host,
    epoch: 3,
  })
  expect(await sh('roamer', SUM)).toBe(sum)

  expect(await move('roamer', 2)).toMatchObject({ live: true })
  expect(await sh('roamer', SUM)).toBe(sum)
}, 500_000)

test('a host is emptied of VMs with local disks, and they come back into their pool', async () => {
  const [disk] = (await show(1, 'roamer')).spec.disks
  if ((await show(1, 'roamer')).placement.epoch % 2 === 1) await move('roamer', 2)
  const sum = await sh('roamer', SUM)
  await ok(at(1, 'vm', 'create', 'asleep', '--image', 'tiny', '--network', 'lan', '--host', `${LAB}2`, '--disk', '8M'))
  const plan = await json<DrainPlan>(1, 'host', 'drain', `${LAB}2`, '--dry-run')
  expect(plan.moves).toMatchObject([
    {
      vm: 'roamer',
      to: `${LAB}1`,
      mode: 'live',
      disks: [{ from: `default-${LAB}2`, to: 'default', bytes: 64 * 2 ** 20 }],
    },
    {
      vm: 'asleep',
      to: `${LAB}1`,
      mode: 'offline',
      disks: [{ from: `default-${LAB}2`, to: 'default', bytes: 8 * 2 ** 20 }],
    },
  ])
  // Of its disk 64 MiB are written by now: they count, with its RAM.
  expect(plan.moves[0]?.bytes).toBeGreaterThan(48 * 2 ** 20)
  expect(plan.eta_how).not.toContain('taken as full')
  expect(plan.blockers).toEqual([])
  const asleep = (await show(1, 'asleep')).spec.disks[0]?.volume ?? '?'
  const drained = await ok(at(1, 'host', 'drain', `${LAB}2`, '-y', '--max-stall-ms', '5000', '--mode', 'precopy'))
  expect(drained).toContain('asleep')
  expect(await sh('roamer', SUM)).toBe(sum)
  expect([0, 1].map((i) => files(path[i] ?? '').some((f) => f.includes(asleep)))).toEqual([true, false])
  expect(files(path[0]).some((f) => f.includes(disk?.volume ?? '?'))).toBe(true)
  await ok(at(2, 'host', 'undrain', `${LAB}2`, '--max-stall-ms', '5000'))
  expect(await sh('roamer', SUM)).toBe(sum)
  expect(files(path[1]).some((f) => f.includes(disk?.volume ?? '?'))).toBe(true)
  expect(files(path[0]).some((f) => f.includes(disk?.volume ?? '?'))).toBe(false)
  expect([0, 1].map((i) => files(path[i] ?? '').some((f) => f.includes(asleep)))).toEqual([false, true])
  const bad = await at(1, 'host', 'drain', `${LAB}2`, '-y', '--mode', 'quick')
  expect(bad.err).toContain('one of auto, precopy, postcopy, hybrid')
}, 240_000)

test('how far a move is, is seen on the other host as it comes', async () => {
  const watched = at(1, '--json', '--timeout', '40', 'events', '--resource', 'job')
  await new Promise((resolve) => setTimeout(resolve, 2_000))
  await ok(at(1, 'vm', 'migrate', 'roamer', '--to', `${LAB}1`, '--max-stall-ms', '5000', '--bandwidth', '16'))
  const events = (await watched).out.split('\n').flatMap((line) => {
    if (!line.startsWith('{')) return []
    return [JSON.parse(line) as { job?: string; step?: string; percent?: number }]
  })
  const seen = events.filter((e) => e.step === 'move' && e.percent !== undefined).map((e) => e.percent as number)
  expect(seen.length).toBeGreaterThan(3)
  expect(seen).toEqual(seen.toSorted((a, b) => a - b))
}, 120_000)

test('each host tells Prometheus of the moves away from it, also after its daemon was started anew', async () => {
  const told = async (i: number) => {
    const socket = `/run/wadah-${LAB}${i}/wadahd.sock`
    return ok(run('curl', ['-sS', '--fail', '--unix-socket', socket, 'http://localhost/metrics']))
  }
  const value = (text: string, series: string) =>
    Number(
      text
        .split('\n')
        .find((line) => line.startsWith(`${series} `))
        ?.split(' ')[1],
    )
  const before = await told(2)
  expect(value(before, 'wadah_moves_total{mode="auto",result="done"}')).toBeGreaterThan(0)
  expect(value(before, 'wadah_move_stall_seconds_sum{how="precopy"}')).toBeGreaterThan(0)
  expect(before).toContain(`host="${LAB}2"`)
  process.kill(Number(readFileSync(`/run/wadah-${LAB}2/wadahd.pid`, 'utf8').split(' ')[0]), 'SIGKILL')
  await lab('start', `${LAB}2`)
  const moves = (text: string) => text.split('\n').filter((line) => line.startsWith('wadah_move'))
  expect(moves(await told(2))).toEqual(moves(before))
}, 120_000)
