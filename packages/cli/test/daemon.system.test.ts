/** `wadah up`, `down` and `demo down` with a stand-in for wadahd: a real process, a real socket. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { wadah } from './support/fake.ts'
import { lookAt, runProgram } from '../src/local/process.ts'
import { SCRIPTS } from '../src/completion/scripts.ts'

const program = join(import.meta.dirname, 'support', 'bin', 'wadahd.mjs')
let folder: string
let env: Record<string, string>
let base: string[]
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'wadah-up-'))
  env = { WADAH_DAEMON: program, HOME: folder }
  process.env['PATH'] = `${dirname(process.execPath)}:${process.env['PATH']}`
  base = ['--instance', 'test', '--data', join(folder, 'data'), '--socket', join(folder, 'run', 'wadahd.sock')]
})
afterEach(async () => {
  await wadah(['down', ...base], { env })
  rmSync(folder, { recursive: true, force: true })
})
const pidFile = () => join(folder, 'run', 'wadahd.pid')

it('starts the daemon once, says what the host lacks, and stops exactly it', async () => {
  const up = await wadah(['up', ...base], { env })
  expect(up.code, up.stderr).toBe(0)
  expect(up.stdout).toContain('wadahd 9.9.9 was started')
  expect(up.stdout).toContain(join(folder, 'data', 'wadahd.log'))
  expect(up.stderr).toContain('! KVM: hangs')
  const pid = readFileSync(pidFile(), 'utf8')
  const again = await wadah(['up', ...base, '--json'], { env })
  expect(JSON.parse(again.stdout)).toMatchObject({ started: false, instance: 'test', socket: base[5] })
  expect(readFileSync(pidFile(), 'utf8')).toBe(pid)
  expect((await wadah(['down', ...base], { env })).stdout).toBe('wadahd was stopped\n')
  // A child of this process: it may be a zombie until Node has read its end.
  expect(await lookAt(Number(pid))).toBeUndefined()
  expect((await wadah(['down', ...base], { env })).stdout).toBe('wadahd was not running\n')
})

it('two at once leave one daemon', async () => {
  const both = await Promise.all([wadah(['up', ...base], { env }), wadah(['up', ...base], { env })])
  expect(both.map((r) => r.code)).toContain(0)
  expect((await wadah(['vm', 'list', '--json', '--socket', base[5]!], { env })).stdout).toBe('{"items":[]}\n')
})

it('shows why the daemon did not start', async () => {
  process.env['FAKE_FAIL'] = '1'
  try {
    const up = await wadah(['up', ...base], { env })
    expect(up.code).toBe(1)
    expect(up.stderr).toContain('wadahd ended at once (exit code 3)')
    expect(up.stderr).toContain('the port is taken\\x1b[2J')
  } finally {
    delete process.env['FAKE_FAIL']
  }
})

it('never ends a process that a stale pid file names', async () => {
  await wadah(['up', ...base], { env })
  await wadah(['down', ...base], { env })
  const other = spawn('sleep', ['60'])
  try {
    writeFileSync(pidFile(), `${other.pid}\n`)
    expect((await wadah(['down', ...base], { env })).stdout).toBe('wadahd was not running\n')
    expect(other.exitCode).toBeNull()
    expect(other.killed).toBe(false)
    process.kill(other.pid!, 0)
  } finally {
    other.kill('SIGKILL')
    rmSync(pidFile(), { force: true })
  }
})

it('demo down starts a dead daemon to clean up, stops it and removes the folders', async () => {
  const data = join(folder, 'wadah-demo')
  const demo = { ...env, WADAH_DEMO_DATA: data, WADAH_DEMO_SOCKET: join(folder, 'demo-run', 'wadahd.sock') }
  await wadah(['up', '--instance', 'demo', '--data', data, '--socket', demo.WADAH_DEMO_SOCKET], { env })
  writeFileSync(join(data, 'demo.json'), '{}')
  const pid = Number(readFileSync(join(folder, 'demo-run', 'wadahd.pid'), 'utf8'))
  process.kill(pid, 'SIGKILL')
  process.env['FAKE_PURGE_FAIL'] = '1'
  const half = await wadah(['demo', 'down'], { env: demo })
  delete process.env['FAKE_PURGE_FAIL']
  expect([half.code, existsSync(data)]).toEqual([1, true])
  const down = await wadah(['demo', 'down'], { env: demo })
  expect([down.code, down.stdout], down.stderr).toEqual([0, 'The demo is gone; nothing of it is left\n'])
  expect([existsSync(data), existsSync(join(folder, 'demo-run'))]).toEqual([false, false])
  expect((await wadah(['demo', 'down'], { env: demo })).stdout).toContain('There is no demo')
})

it('the bash completion is a script that bash takes, and offers words', async () => {
  const script = `wadah() { printf '%s\\n' start stop; }\n${SCRIPTS['bash']}\nCOMP_WORDS=(wadah vm st); COMP_CWORD=2; compopt() { :; }; _wadah; printf '%s\\n' "\${COMPREPLY[@]}"`
  expect(await runProgram('bash', ['-c', script], { timeout_ms: 10_000 })).toMatchObject({
    code: 0,
    stdout: 'start\nstop\n',
  })
})
