/** A disk goes from one pool to another while its VM writes to it, by the CLI; and the daemon is killed at each step of it. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

const { vms, volumes, pools, jobs } = endpoints
let d: Daemon
/** Pool → where it lies. */
const paths: Record<string, string> = {}
const mounts: string[] = []

async function pool(name: string, mib: number): Promise<void> {
  const path = `/mnt/wadah-${d.instance}-${name}`
  mkdirSync(path, { recursive: true })
  mounts.push(path)
  const done = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${mib}m,mode=0755`, 'wadah-test', path])
  if (done.status !== 0) throw new Error(String(done.stderr))
  paths[name] = path
  await d.api.call(pools.create, { body: { name, path, overcommit: 10 } })
}
const files = () =>
  Object.fromEntries(
    Object.entries(paths).map(([name, path]) => [
      name,
      ['volumes', 'tmp'].flatMap((f) => readdirSync(join(path, 'wadah', f)).map((file) => `${f}/${file}`)),
    ]),
  )
const sh = async (script: string) => {
  const { code, out } = await d.exec('writer', '/bin/sh', '-c', script)
  if (code !== 0) throw new Error(`${script}: ${out}`)
  return out.trim()
}
const SUM = 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=24 2>/dev/null | md5sum'
/** A line for each write that the guest was told is on the disk; the writes go on from daemon to daemon. */
const WRITER = `(i=0; while :; do i=$((i+1)); printf '%-511s\\n' "block $i" | dd of=/dev/vda bs=512 seek=$((65536+i%512)) conv=notrunc,fsync 2>/dev/null; echo $i >/last; done) >/dev/null 2>&1 &`
async function noGap(): Promise<void> {
  await sh('echo 3 >/proc/sys/vm/drop_caches')
  const last = Number(await sh('cat /last'))
  const text = await sh("dd if=/dev/vda bs=512 skip=65536 count=512 2>/dev/null | grep -ao 'block [0-9]*'")
  const blocks = new Set(text.split('\n').map((l) => Number(l.slice(6))))
  const expected = Array.from({ length: Math.min(last, 500) }, (_, i) => last - i).filter((n) => n > 0)
  expect(expected.filter((n) => !blocks.has(n) && !blocks.has(n + 512))).toEqual([])
}
const disk = async () => {
  const id = (await d.vm('writer')).spec.disks[0]?.volume ?? ''
  return d.api.call(volumes.get, { params: { volume: id } })
}
const poolName = async () => {
  const { pool: id } = await disk()
  return (await d.api.call(pools.list)).items.find((p) => p.id === id)?.name
}

let sum: string
let points: string
beforeAll(async () => {
  purgeDead()
  points = mkdtempSync(join(tmpdir(), 'wadah-points-'))
  process.env['WADAH_PAUSE_POINTS'] = points
  d = new Daemon()
  await d.start()
  await d.tiny()
  await pool('slow', 200)
  await pool('fast', 200)
  await pool('small', 8)
  await d.create({ name: 'writer', start: true, disks: [{ name: 'data', size_mib: 64, pool: 'slow' }] })
  await d.booted('writer')
  await sh('dd if=/dev/urandom of=/dev/vda bs=1M count=24 conv=fsync 2>/dev/null')
  sum = await sh(SUM)
  await sh(WRITER)
}, 240_000)
afterAll(async () => {
  delete process.env['WADAH_PAUSE_POINTS']
  await d.purge()
  rmSync(points, { recursive: true, force: true })
  for (const path of mounts) {
    spawnSync('umount', ['-l', path])
    rmSync(path, { recursive: true, force: true })
  }
}, 120_000)

test('there, while the guest writes: nothing is lost, nothing is left, and it says how long the guest stood still', async () => {
  const { id, name } = await disk()
  const pid = (await d.vm('writer')).status.pid
  const moved = d.cli(['volume', 'move', name, 'fast'])
  expect([moved.code, moved.stderr]).toEqual([0, expect.any(String)])
  expect(moved.stdout).toMatch(/lies in the pool fast now.*stood still for \d+(\.\d+)? ms/s)
  expect(await poolName()).toBe('fast')
  expect(files()).toEqual({ slow: [], fast: [`volumes/${id}.qcow2`], small: [] })
  expect((await d.vm('writer')).status).toMatchObject({ state: 'running', pid })
  expect(await sh(SUM)).toBe(sum)
  await noGap()
  // Told in the other language too.
  const again = spawnSync(join(import.meta.dirname, '../../bin/wadah'), ['volume', 'move', name, 'slow'], {
    env: { ...process.env, WADAH_SOCKET: d.socket, WADAH_LANG: 'id' },
    encoding: 'utf8',
  })
  expect(again.stdout).toMatch(/sekarang ada di pool slow.*berhenti selama/s)
}, 120_000)

test('into a pool that is too small: refused or undone, with the numbers; the guest writes on', async () => {
  const { id, name } = await disk()
  const moved = d.cli(['volume', 'move', name, 'small'])
  expect(moved.code).not.toBe(0)
  expect(moved.stderr).toMatch(/The disk takes .* and (7\.\d|8) MiB are free|small.* is full/)
  expect(files()).toEqual({ slow: [`volumes/${id}.qcow2`], fast: [], small: [] })
  expect(await poolName()).toBe('slow')
  expect(await sh(SUM)).toBe(sum)
}, 60_000)

/** Held there, the daemon is killed, and QEMU with it where that is said; then the next one takes over. */
async function killAt(point: string, qemuToo: boolean): Promise<{ ended: string; from: string; to: string }> {
  const { name } = await disk()
  const from = (await poolName()) ?? ''
  const to = from === 'slow' ? 'fast' : 'slow'
  const { pid } = (await d.vm('writer')).status
  writeFileSync(join(points, `${point}.stop`), '')
  const job = await d.api.call(volumes.move, { params: { volume: name }, body: { pool: to } })
  await until(`the daemon to be at ${point}`, () => existsSync(join(points, `${point}.here`)))
  // The guest writes on meanwhile, also to what the record does not say yet.
  const last = Number(await sh('cat /last'))
  await until('the guest to write on', async () => Number(await sh('cat /last')) > last)
  if (qemuToo) {
    // What it is told is on the disk, must be.
    await sh(`echo killed at ${point} | dd of=/dev/vda bs=512 seek=60000 conv=notrunc,sync,fsync 2>/dev/null`)
    await d.kill('SIGKILL')
    if (pid !== undefined) process.kill(pid, 'SIGKILL')
  } else await d.kill('SIGKILL')
  for (const file of readdirSync(points)) rmSync(join(points, file))
  await d.start()
  const { state } = await d.ended(await d.api.call(jobs.get, { params: { job: job.id } }))
  return { ended: state, from, to }
}

test.each([
  ['volume-copy', false, 'done'],
  ['volume-switch', false, 'done'],
  ['volume-switched', false, 'done'],
  ['volume-drop', false, 'done'],
  ['volume-copy', true, 'failed'],
  ['volume-switch', true, 'failed'],
  ['volume-switched', true, 'done'],
] as const)(
  'killed at %s, QEMU too: %s',
  async (point, qemuToo, wanted) => {
    const { ended, from, to } = await killAt(point, qemuToo)
    expect(ended).toBe(wanted)
    const at = wanted === 'done' ? to : from
    const { id } = await disk()
    expect(await poolName()).toBe(at)
    expect(files()).toEqual({ slow: [], fast: [], small: [], [at]: [`volumes/${id}.qcow2`] })
    if (qemuToo) {
      await until('its end to be known', async () => (await d.vm('writer')).status.state === 'stopped')
      await d.done(await d.api.call(vms.start, { params: { vm: 'writer' } }))
      await d.booted('writer')
      expect(await sh('dd if=/dev/vda bs=512 skip=60000 count=1 2>/dev/null | head -n 1')).toBe(`killed at ${point}`)
      await sh(WRITER)
    } else {
      await until('it to run', async () => (await d.vm('writer')).status.state === 'running')
      await d.booted('writer')
      await noGap()
    }
    expect(await sh(SUM)).toBe(sum)
  },
  120_000,
)
