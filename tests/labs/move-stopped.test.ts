/** Two hosts that share no disk: a VM that does not run goes from one to the other with all that it is. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Job } from '@wadah/api/schema/job'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { at, hideOthers, json, LAB, lab, ok, purgeDeadLabs } from '../kit/lab.ts'

type Pool = { id: string; name: string; path: string; host?: string }
const show = (vm: string) => json<Vm>(1, 'vm', 'show', vm)
const sh = async (vm: string, script: string) =>
  (await ok(at(1, 'vm', 'exec', vm, '--', '/bin/sh', '-c', script))).trim()
const to = (i: number) => ['--to', `${LAB}${i}`]
const SUM = 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=32 2>/dev/null | md5sum'
const SLOW = ['--bandwidth', '1']

/** By host: its pool, and what lies beside it. */
let path: [string, string]
let disk: string
let sum: string
let points: string
/** Files of volumes, half-made ones too, of a host. */
const files = (i: number) => {
  const root = join(path[i - 1] ?? '', 'wadah')
  return ['volumes', 'tmp'].flatMap((f) => readdirSync(join(root, f)).map((file) => `${f}/${file}`))
}
const data = (i: number) => dirname(dirname(path[i - 1] ?? ''))
const its = (i: number) => files(i).filter((f) => f.includes(disk))
/** Nothing of the VM, nor of the copying. */
const nothingOn = async (i: number, vm: string) => {
  const { id } = await show(vm)
  const nbd = join(data(i), 'nbd')
  return (
    its(i).length === 0 && !existsSync(join(data(i), 'vms', id)) && (!existsSync(nbd) || readdirSync(nbd).length === 0)
  )
}
const pid = (i: number) => Number(readFileSync(`/run/wadah-${LAB}${i}/wadahd.pid`, 'utf8').split(' ')[0])
const kill = (i: number) => process.kill(pid(i), 'SIGKILL')
const running = async (vm: string, i: number) => {
  await ok(at(1, 'vm', 'start', vm))
  await until('the agent', async () => (await show(vm)).status.agent === 'connected')
  expect((await show(vm)).placement.host).toBe((await json<Vm>(i, 'vm', 'show', vm)).placement.host)
}
const jobOf = async (vm: string) => {
  const { items } = await json<{ items: Job[] }>(1, 'job', 'list')
  return items.find((j) => j.kind === 'vm.migrate' && j.target.name === vm && ['running', 'undoing'].includes(j.state))
}

beforeAll(async () => {
  purgeDeadLabs()
  points = mkdtempSync(join(tmpdir(), 'wadah-points-'))
  process.env['WADAH_PAUSE_POINTS'] = points
  await lab('up', '--hosts', '2')
  await hideOthers([1, 2])
  const all = (await json<{ items: Pool[] }>(1, 'pool', 'list')).items
  path = [1, 2].map((i) => all.find((p) => p.path.includes(`${LAB}${i}`))?.path ?? '') as [string, string]
  expect(path.every((p) => p !== '')).toBe(true)
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
  await ok(
    at(
      1,
      'vm',
      'create',
      'sleeper',
      '--image',
      'tiny',
      '--network',
      'lan',
      '--host',
      `${LAB}1`,
      '--disk',
      '64M',
      '--start',
    ),
  )
  disk = (await show('sleeper')).spec.disks[0]?.volume ?? '?'
  await until('the agent', async () => (await show('sleeper')).status.agent === 'connected')
  sum = await sh('sleeper', `dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null; ${SUM}`)
  await ok(at(1, 'vm', 'stop', 'sleeper', '-y'))
}, 600_000)
afterAll(async () => {
  delete process.env['WADAH_PAUSE_POINTS']
  await lab('down')
  rmSync(points, { recursive: true, force: true })
}, 120_000)

test('it goes with its disk, is told how far it is, and starts there with what it had', async () => {
  expect(its(1)).toEqual([`volumes/${disk}.qcow2`])
  const told = await ok(at(2, 'vm', 'migrate', 'sleeper', ...to(2)))
  expect(told).toMatch(new RegExp(`sleeper moved from ${LAB}1 to ${LAB}2 in`))
  expect(told).toMatch(/sent\s+3\d(\.\d)? MiB/)
  expect([its(1), its(2)]).toEqual([[], [`volumes/${disk}.qcow2`]])
  expect(await nothingOn(1, 'sleeper')).toBe(true)
  expect((await show('sleeper')).placement.epoch).toBe(2)
  // As sparse as it was: 32 of 64 MiB.
  expect(statSync(join(path[1], 'wadah', its(2)[0] ?? '')).blocks * 512).toBeLessThan(40 * 2 ** 20)
  await running('sleeper', 2)
  expect(await sh('sleeper', SUM)).toBe(sum)
  await ok(at(1, 'vm', 'stop', 'sleeper', '-y'))
  const back = await json<VmMove>(1, 'vm', 'migrate', 'sleeper', ...to(1), '--pool', 'default')
  expect(back).toMatchObject({ live: false, mode: 'offline', phases: [{ phase: 'copy' }] })
  expect(back.notes.join()).toContain('lies in default now')
  expect([its(1), its(2)]).toEqual([[`volumes/${disk}.qcow2`], []])
  await running('sleeper', 1)
  expect(await sh('sleeper', SUM)).toBe(sum)
  await ok(at(1, 'vm', 'stop', 'sleeper', '-y'))
}, 240_000)

test('while it is on its way it is busy; given up, it is here as it was', async () => {
  writeFileSync(join(points, 'bring-copy.stop'), '')
  const moving = at(1, 'vm', 'migrate', 'sleeper', ...to(2), ...SLOW)
  await until('the copying', () => its(2).length > 0 && existsSync(join(points, 'bring-copy.here')))
  for (const what of [
    ['vm', 'start', 'sleeper'],
    ['vm', 'migrate', 'sleeper', ...to(2)],
    ['vm', 'delete', 'sleeper', '-y'],
  ]) {
    const { code, err } = await at(2, ...what)
    expect([code, err]).toEqual([expect.any(Number), expect.stringContaining('wadah job wait job-')])
    expect(code).not.toBe(0)
  }
  const cancelled = ok(at(2, 'job', 'cancel', (await jobOf('sleeper'))?.id ?? ''))
  await until('the cancel', async () => (await jobOf('sleeper'))?.state !== 'running')
  for (const file of readdirSync(points)) rmSync(join(points, file))
  await cancelled
  expect((await moving).code).not.toBe(0)
  expect(await nothingOn(2, 'sleeper')).toBe(true)
  expect((await show('sleeper')).placement).not.toHaveProperty('handover')
  // Nobody has its disk open any more.
  await running('sleeper', 1)
  expect(await sh('sleeper', SUM)).toBe(sum)
  await ok(at(1, 'vm', 'stop', 'sleeper', '-y'))
}, 240_000)

test('the daemon of the host where it goes is killed: it stays, and nothing is left there', async () => {
  const moving = at(1, 'vm', 'migrate', 'sleeper', ...to(2), ...SLOW)
  await until('the copying', () => its(2).some((f) => f.startsWith('tmp/')))
  kill(2)
  const { code, err } = await moving
  expect([code, err]).toEqual([expect.any(Number), expect.stringContaining('sleeper')])
  expect(code).not.toBe(0)
  expect(its(1)).toEqual([`volumes/${disk}.qcow2`])
  await lab('start', `${LAB}2`)
  await until('what was left there to go', () => nothingOn(2, 'sleeper'))
  expect(await jobOf('sleeper')).toBeUndefined()
}, 240_000)

test('its own daemon is killed while it is copied: the next one begins the copy anew, and it goes', async () => {
  const moving = at(2, 'vm', 'migrate', 'sleeper', ...to(2), ...SLOW)
  await until('the copying', () => its(2).some((f) => f.startsWith('tmp/')))
  kill(1)
  await moving
  await until('what was begun there to go', () => its(2).length === 0)
  expect(its(1)).toEqual([`volumes/${disk}.qcow2`])
  await lab('start', `${LAB}1`)
  await until('the next one to be through', async () => (await jobOf('sleeper')) === undefined, 120_000)
  expect([its(1), its(2)]).toEqual([[], [`volumes/${disk}.qcow2`]])
  expect(await nothingOn(1, 'sleeper')).toBe(true)
  await running('sleeper', 2)
  expect(await sh('sleeper', SUM)).toBe(sum)
  await ok(at(1, 'vm', 'stop', 'sleeper', '-y'))
}, 300_000)

test('UEFI variables and a TPM go along; both daemons are killed between the last byte and the commit', async () => {
  await ok(
    at(
      1,
      'vm',
      'create',
      'keeper',
      '--firmware',
      'uefi',
      '--tpm',
      '--disk',
      '8M',
      '--network',
      'lan',
      '--host',
      `${LAB}1`,
      '--start',
    ),
  )
  const { id } = await show('keeper')
  await ok(at(1, 'vm', 'stop', 'keeper', '-y'))
  const kept = (i: number) => {
    const state = join(data(i), 'vms', id, 'state')
    return ['nvram.fd', 'tpm/tpm2-00.permall'].map((f) => readFileSync(join(state, f)).toString('base64'))
  }
  const before = kept(1)
  writeFileSync(join(points, 'bring-commit.stop'), '')
  const moving = at(2, 'vm', 'migrate', 'keeper', ...to(2))
  await until('the moment before the commit', () => existsSync(join(points, 'bring-commit.here')))
  kill(1)
  kill(2)
  await moving
  for (const file of readdirSync(points)) rmSync(join(points, file))
  await lab('start', `${LAB}2`)
  // What came is kept for a source that comes back.
  await new Promise((resolve) => setTimeout(resolve, 3_000))
  expect(kept(2)).toEqual(before)
  await lab('start', `${LAB}1`)
  await until('the move to be over', async () => (await jobOf('keeper')) === undefined, 120_000)
  expect(kept(2)).toEqual(before)
  expect(existsSync(join(data(1), 'vms', id))).toBe(false)
  // It starts with them: a TPM that is not the one it had would be made anew.
  await ok(at(1, 'vm', 'start', 'keeper'))
  expect((await show('keeper')).status.state).toBe('running')
  await ok(at(1, 'vm', 'stop', 'keeper', '-y'))
  await ok(at(1, 'vm', 'migrate', 'keeper', ...to(1)))
  expect(existsSync(join(data(2), 'vms', id))).toBe(false)
  expect(kept(1).every((text) => text.length > 0)).toBe(true)
}, 300_000)

test('what a snapshot keeps of UEFI goes along, stopped and running, and the VM goes back to it there', async () => {
  const uefi = ['--firmware', 'uefi', '--disk', '8M', '--network', 'lan', '--host', `${LAB}1`]
  await ok(at(1, 'vm', 'create', 'shelf', ...uefi, '--start'))
  const { id } = await show('shelf')
  await ok(at(1, 'vm', 'stop', 'shelf', '-y'))
  await ok(at(1, 'snapshot', 'create', 'shelf', 'before'))
  const variables = (i: number, folder: string) => readFileSync(join(data(i), 'vms', id, folder, 'state/nvram.fd'))
  const [snapshot] = readdirSync(join(data(1), 'vms', id, 'kept'))
  const kept = `kept/${snapshot}`
  const before = variables(1, kept)
  await ok(at(1, 'vm', 'migrate', 'shelf', ...to(2)))
  expect(variables(2, kept).equals(before)).toBe(true)
  expect(existsSync(join(data(1), 'vms', id))).toBe(false)
  await ok(at(1, 'vm', 'start', 'shelf'))
  await ok(at(1, 'vm', 'migrate', 'shelf', ...to(1), '--max-stall-ms', '5000'))
  expect(variables(1, kept).equals(before)).toBe(true)
  expect(existsSync(join(data(2), 'vms', id))).toBe(false)
  await ok(at(2, 'vm', 'stop', 'shelf', '-y'))
  writeFileSync(join(data(1), 'vms', id, 'state/nvram.fd'), 'of later')
  await ok(at(2, 'snapshot', 'revert', 'shelf', 'before'))
  expect(variables(1, '.').equals(before)).toBe(true)
}, 300_000)
