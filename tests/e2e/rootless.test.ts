/** wadahd as an ordinary user: VMs on `user` networks, from kernels and from disks; what is missing is said. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { chownSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { ROOT, until } from '../kit/daemon.ts'

/** Nobody else's on this machine. */
const UID = 64_900
let dir: string
let child: ChildProcess
const env = () => ({
  PATH: process.env['PATH'] ?? '',
  HOME: dir,
  XDG_RUNTIME_DIR: join(dir, 'run'),
  WADAH_LANG: 'en',
})
const as = [
  'setpriv',
  `--reuid=${UID}`,
  `--regid=${UID}`,
  '--clear-groups',
  '--inh-caps=-all',
  '--bounding-set=-all',
  '--',
]
const wadah = (...argv: string[]) => {
  const [program, ...words] = [...as, join(ROOT, 'bin/wadah'), ...argv]
  const done = spawnSync(program as string, words, { env: env(), encoding: 'utf8', timeout: 240_000 })
  return { status: done.status, out: done.stdout, err: done.stderr }
}
const must = (...argv: string[]) => {
  const done = wadah(...argv)
  expect([argv.join(' '), done.status, done.err]).toEqual([argv.join(' '), 0, expect.anything()])
  return done.out
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-rootless-'))
  for (const folder of ['', 'run', 'run/wadah', 'data']) {
    mkdirSync(join(dir, folder), { recursive: true })
    chownSync(join(dir, folder), UID, UID)
  }
  const socket = join(dir, 'run/wadah/wadahd.sock')
  const words = [...as.slice(1), join(ROOT, 'bin/wadahd'), '--data', join(dir, 'data'), '--socket', socket]
  child = spawn(as[0] as string, [...words, '--listen', '127.0.0.1:0'], {
    env: env(),
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  await until('wadahd to answer', () => wadah('host', 'show').status === 0)
})
afterAll(() => {
  wadah('vm', 'delete', 'kernel', '--force')
  wadah('vm', 'delete', 'disk', '--force')
  child.kill('SIGKILL')
  rmSync(dir, { recursive: true, force: true })
})

test('says what it lacks without root', () => {
  const said = wadah('host', 'check', '--json')
  expect(said.err).toBe('')
  const { items } = JSON.parse(said.out) as { items: { name: string; state: string }[] }
  const state = (name: string) => items.find((i) => i.name === name)?.state
  expect([state('root'), state('networks'), state('cgroup')]).toEqual(['warn', 'warn', 'warn'])
  const nat = wadah('network', 'create', 'n', '--kind', 'nat')
  expect([nat.status, nat.err]).toEqual([9, expect.stringContaining('as root')])
})

test('a VM with a kernel serves by a published port; one with a disk runs; both go', async () => {
  const port = await freePort()
  must('image', 'build', 'tiny')
  const low = wadah('vm', 'create', 'kernel', '--image', 'tiny', '--publish', '81:80')
  expect([low.status, low.err]).toEqual([5, expect.stringContaining('Port 81 can be taken by root only')])
  must('vm', 'create', 'kernel', '--image', 'tiny', '--start', '--publish', `${port}:80`)
  const vm = JSON.parse(must('vm', 'show', 'kernel', '--json')) as {
    status: { pid: number }
  }
  await until('its page', () =>
    fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(2_000) }).then(
      async (r) => (await r.text()).includes('kernel'),
      () => false,
    ),
  )
  expect(spawnSync('ps', ['-o', 'uid=', '-p', String(vm.status.pid)], { encoding: 'utf8' }).stdout.trim()).toBe(
    String(UID),
  )
  must('vm', 'create', 'disk', '--disk', '64M', '--memory', '64M', '--start')
  must('volume', 'resize', 'disk-root', '96M')
  must('vm', 'screenshot', 'disk', join(dir, 'run/disk.png'))
  for (const name of ['kernel', 'disk']) must('vm', 'delete', name, '--force')
  expect(JSON.parse(must('volume', 'list', '--json')).items).toEqual([])
})
