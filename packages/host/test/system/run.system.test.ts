import { execFile, spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { openRegular, pathProblem } from '@wadah/host/system/files'
import { run } from '@wadah/host/system/run'

const timeout_ms = 20_000
let dir = ''
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-run-'))
})
afterEach(async () => {
  await rm(dir, { recursive: true, force: true })
})
/** A process that runs; a zombie does not. */
async function lives(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  return stat !== '' && stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3) !== 'Z'
}

describe('run', () => {
  test('gives stdout, stderr and the code; stdin is what was given, the environment is small', async () => {
    const script = 'cat; echo "$SECRET" >&2; exit 3'
    const result = await run('sh', ['-c', script], { timeout_ms, input: 'in', env: { SECRET: 'x' }, ok_codes: [3] })
    expect(result).toEqual({ stdout: 'in', stderr: 'x\n', code: 3 })
    process.env['WADAH_TEST_LEAK'] = 'leak'
    expect(
      (await run('env', [], { timeout_ms })).stdout
        .split('\n')
        .filter(Boolean)
        .map((l) => l.split('=')[0]),
    ).toEqual(['PATH', 'LC_ALL', 'HOME'])
    delete process.env['WADAH_TEST_LEAK']
    expect((await run('cat', [], { timeout_ms })).stdout).toBe('')
  })

  test('a failure names the program and the end of what it said', async () => {
    const script = 'for i in $(seq 3000); do echo line $i >&2; done; echo the reason >&2; exit 7'
    await expect(run('sh', ['-c', script], { timeout_ms })).rejects.toMatchObject({
      fault: { code: 'tool_failed', detail: expect.stringMatching(/^sh failed with exit code 7: [^]*the reason$/) },
    })
    await expect(run('sh', ['-c', 'kill -9 $$'], { timeout_ms })).rejects.toMatchObject({
      fault: { detail: expect.stringContaining('SIGKILL') },
    })
    await expect(run('qemu-img-missing', [], { timeout_ms })).rejects.toMatchObject({ fault: { code: 'host_lacks' } })
    await expect(run('/nowhere/mformat', [], { timeout_ms, die_with_us: true })).rejects.toMatchObject({
      fault: { code: 'host_lacks', remedy: 'apt-get install mtools' },
    })
  })

  test('output is bounded', async () => {
    await expect(run('yes', [], { timeout_ms, max_output_bytes: 1000 })).rejects.toMatchObject({
      fault: { code: 'tool_failed', detail: expect.stringContaining('1000 bytes') },
    })
  })

  test('deadline and abort end the whole process group, the stubborn too', async () => {
    const script = `trap '' TERM; (trap '' TERM; echo $$; exec sleep 60) & echo $!; wait`
    for (const how of ['deadline', 'abort'] as const) {
      const pids: number[] = []
      const controller = new AbortController()
      const done = run('sh', ['-c', script], {
        timeout_ms: how === 'deadline' ? 300 : timeout_ms,
        signal: controller.signal,
        grace_ms: 100,
        on_stdout: (text) => pids.push(...text.split('\n').filter(Boolean).map(Number)),
      })
      if (how === 'abort') setTimeout(() => controller.abort(), 300)
      await expect(done).rejects.toMatchObject({ fault: { code: how === 'deadline' ? 'timeout' : 'cancelled' } })
      expect(pids.length).toBeGreaterThan(0)
      for (const pid of pids) await vi.waitFor(async () => expect(await lives(pid)).toBe(false))
    }
    await expect(run('touch', [join(dir, 'x')], { timeout_ms, signal: AbortSignal.abort() })).rejects.toMatchObject({
      fault: { code: 'cancelled', effect: 'none' },
    })
    await expect(readFile(join(dir, 'x'))).rejects.toThrow('ENOENT')
  })

  test('a descendant that detached itself does not keep us waiting', async () => {
    const { stdout } = await run('sh', ['-c', 'setsid sleep 5 & echo done'], { timeout_ms })
    expect(stdout).toBe('done\n')
  })

  test('a program that does not read its input is no mistake', async () => {
    await run('true', [], { timeout_ms, input: Buffer.alloc(10 * 1024 * 1024) })
  })

  test('with die_with_us it goes when we are killed, however', async () => {
    const src = resolve(import.meta.dirname, '../../../')
    const script = `
      require('node:module').registerHooks({ resolve: (s, c, next) => {
        const m = /^@wadah\\/([a-z]+)\\/(.+)$/.exec(s)
        return next(m ? 'file://${src}/' + m[1] + '/src/' + m[2] + '.ts' : s, c) } })
      import('file://${src}/host/src/system/run.ts').then(({ run }) =>
        run('sh', ['-c', 'echo $$; exec sleep 60'], { timeout_ms: 60000, die_with_us: true, on_stdout: (t) => console.log(t.trim()) }))`
    const parent = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    const pid = Number(await new Promise((ok) => parent.stdout.once('data', (d: Buffer) => ok(d.toString()))))
    expect(await lives(pid)).toBe(true)
    parent.kill('SIGKILL')
    await vi.waitFor(async () => expect(await lives(pid)).toBe(false), 5000)
  })

  test('as another user', async () => {
    expect((await run('id', ['-u'], { timeout_ms, uid: 65534, gid: 65534 })).stdout.trim()).toBe('65534')
    expect((await run('id', ['-G'], { timeout_ms, uid: 65534, gid: 65534 })).stdout.trim()).toBe('65534')
  })
})

describe('files', () => {
  test('openRegular follows no link and waits for no pipe', async () => {
    await writeFile(join(dir, 'f'), 'x')
    await symlink(join(dir, 'f'), join(dir, 'l'))
    await promisify(execFile)('mkfifo', [join(dir, 'p')])
    await (await openRegular(join(dir, 'f'))).close()
    await expect(openRegular(join(dir, 'l'))).rejects.toThrow('ELOOP')
    await expect(openRegular(join(dir, 'p'))).rejects.toThrow('not a regular file')
    await expect(openRegular(dir)).rejects.toThrow('not a regular file')
    await sleep(0)
  })

  test('pathProblem names the first part that somebody else could swap', async () => {
    const inner = join(dir, 'a/b')
    await mkdir(inner, { recursive: true })
    expect(await pathProblem(inner, 0)).toBeUndefined()
    expect(await pathProblem(tmpdir(), 0)).toContain('may be written to')
    const { chown, chmod } = await import('node:fs/promises')
    await chown(join(dir, 'a'), 65534, 65534)
    expect(await pathProblem(inner, 0)).toContain('belongs to uid 65534')
    await chown(join(dir, 'a'), 0, 0)
    await chmod(join(dir, 'a'), 0o775)
    expect(await pathProblem(inner, 0)).toContain('0775')
  })
})
