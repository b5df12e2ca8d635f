import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { type FakeDaemon, fakeDaemon, problem, type Routes, wadah } from './support/fake.ts'
import { job, vm } from './support/samples.ts'

let daemon: FakeDaemon
afterEach(async () => await daemon.close())
const start = async (routes: Routes) => {
  daemon = await fakeDaemon(routes)
  return { WADAH_SOCKET: daemon.socket }
}
const page = (items: unknown[], next?: string) => ({ json: { items, ...(next ? { next } : {}) } })

describe('lists', () => {
  const nasty = vm({
    id: 'vm-bbbbbbbbbb',
    name: 'evil\x1b[2J',
    addresses: [],
    status: { state: 'paused', paused_by: 'io-error', reason: 'pool is full', since: '', pending_restart: [] },
  })
  const routes: Routes = {
    'GET /v1/vms': (r) => (r.query.get('cursor') === 'c2' ? page([nasty]) : page([vm()], 'c2')),
    'GET /v1/images': () => page([{ id: 'img-aaaaaaaaaa', name: 'web-server' }]),
  }
  it('are tables that no name can drive, over all pages', async () => {
    const env = await start(routes)
    const r = await wadah(['vm', 'list', '--label', 'team=a'], { env })
    expect(r.code).toBe(0)
    expect(r.stdout).toMatch(/^NAME +STATE +ADDRESSES +PUBLISHED +CPUS +MEMORY +IMAGE +ACCEL +UPTIME\n/)
    expect(r.stdout).toMatch(/^web +running +10\.0\.2\.15 +127\.0\.0\.1:8080→80 +2 +512 MiB +web-server +tcg/m)
    expect(r.stdout).toMatch(/^evil\\x1b\[2J +paused \(io-error: pool is full\)/m)
    expect(r.stdout).not.toContain('\x1b')
    expect(daemon.seen[0]!.query.get('label')).toBe('team=a')
  })
  it('have colours on a terminal only, and never with --no-color', async () => {
    const env = await start(routes)
    expect((await wadah(['vm', 'list'], { env, tty: true })).stdout).toContain('\x1b[32mrunning')
    expect((await wadah(['vm', 'list', '--no-color'], { env, tty: true })).stdout).not.toContain('\x1b')
    expect((await wadah(['vm', 'list'], { env: { ...env, NO_COLOR: '1' }, tty: true })).stdout).not.toContain('\x1b')
  })
  it('are JSON alone with --json, names with --quiet, Indonesian when wanted', async () => {
    const env = await start(routes)
    const r = await wadah(['--json', 'vm', 'list'], { env })
    expect(JSON.parse(r.stdout).items.map((v: { id: string }) => v.id)).toEqual(['vm-aaaaaaaaaa', 'vm-bbbbbbbbbb'])
    expect(r.stderr).toBe('')
    expect((await wadah(['vm', 'ls', '--quiet'], { env })).stdout).toBe('web\nevil\\x1b[2J\n')
    expect((await wadah(['--lang', 'id', 'vm', 'list'], { env })).stdout).toMatch(/^NAMA +KEADAAN/)
  })
})

describe('errors', () => {
  it('of the daemon are shown with their remedy and give the exit code of their class', async () => {
    const env = await start({
      'GET /v1/vms/*': () => problem('not_found', 404, 'There is no VM "nosuch"', { remedy: 'wadah vm list' }),
    })
    const r = await wadah(['vm', 'show', 'nosuch'], { env })
    expect(r).toMatchObject({
      code: 3,
      stdout: '',
      stderr: 'Error: there is no such thing\n  There is no VM "nosuch"\n  next: wadah vm list\n',
    })
    const j = await wadah(['vm', 'show', 'nosuch', '--json'], { env })
    expect(j.stdout).toBe('')
    expect(JSON.parse(j.stderr)).toMatchObject({ code: 'not_found', status: 404 })
    expect((await wadah(['--lang', 'id', 'vm', 'show', 'x'], { env })).stderr).toContain('Galat: tidak ditemukan')
  })
  it('of a daemon that is none', async () => {
    const env = await start({
      'GET /v1/vms/*': () => ({ status: 500, raw: (r) => void r.writeHead(500).end('<html>') }),
    })
    expect((await wadah(['vm', 'show', 'web'], { env })).code).toBe(6)
  })
  it('without a daemon name the next command', async () => {
    await start({})
    const r = await wadah(['vm', 'list'], { env: { WADAH_SOCKET: '/nonexistent/s' } })
    expect(r.code).toBe(6)
    expect(r.stderr).toContain('there is no socket /nonexistent/s')
    expect(r.stderr).toContain('next: wadah up')
  })
  it('of usage exit with 2, in our words', async () => {
    const env = await start({})
    for (const argv of [
      ['vm', 'lsit'],
      ['vm', 'list', '--nme', 'x'],
      ['vm', 'show'],
      ['nosuch'],
      ['vm', 'show', 'a', 'b'],
      ['vm', 'list', '--name'],
      ['--lang', 'xx', 'vm', 'list'],
      ['vm', 'create', 'x', '--memory', '512'],
      ['volume', 'create', 'x'],
    ]) {
      const r = await wadah(argv, { env })
      expect([argv, r.code, r.stdout]).toEqual([argv, 2, ''])
      expect(r.stderr).toContain('Error: a value cannot be used')
    }
    expect((await wadah(['vm', 'lsit'], { env })).stderr).toContain('did you mean list?')
    expect(daemon.seen).toHaveLength(0)
  })
  it('by --timeout exit with 7', async () => {
    const env = await start({ 'GET /v1/vms/*': () => new Promise(() => {}) })
    expect((await wadah(['vm', 'show', 'web', '--timeout', '0.1'], { env })).code).toBe(7)
  })
})

describe('help', () => {
  it('is given in both languages, for groups and verbs', async () => {
    const env = await start({})
    expect((await wadah(['--help'], { env })).stdout).toContain('Servers and what they need:')
    expect((await wadah(['help', 'vm', 'create'], { env })).stdout).toContain('--publish')
    expect((await wadah(['vm', 'create', '--help', '--lang', 'id'], { env })).stdout).toContain('Pemakaian:')
    expect((await wadah(['help', 'exit-codes'], { env })).stdout).toMatch(/^8 +not enough room/m)
    expect((await wadah(['help', 'nosuch'], { env })).code).toBe(2)
    expect((await wadah([], { env })).code).toBe(2)
  })
})

describe('jobs', () => {
  const routes = (ends: object[]): Routes => {
    let n = 0
    return {
      'POST /v1/vms': () => ({ status: 202, json: job() }),
      'GET /v1/jobs/*': () => ({ json: job(ends[Math.min(n++, ends.length - 1)] as never) }),
    }
  }
  const done = { state: 'done', percent: 100, steps: [{ name: 'reserve', state: 'done' }] }
  it('are waited for, a line for each step where there is no terminal', async () => {
    const env = await start(routes([{ percent: 50, steps: [{ name: 'volumes', state: 'running' }] }, done]))
    const r = await wadah(['vm', 'create', 'web', '--image', 'i', '--memory', '512M'], { env })
    expect(r.code).toBe(0)
    expect(r.stdout).toContain('web was created')
    expect(r.stderr).toBe('vm.create web: reserve (0%)\nvm.create web: volumes (50%)\n')
    const post = daemon.seen.find((s) => s.method === 'POST')!
    expect(JSON.parse(post.body)).toEqual({ name: 'web', image: 'i', memory_mib: 512 })
    expect(post.headers['idempotency-key']).toMatch(/^[0-9a-f-]{36}$/)
  })
  it('draw a bar on a terminal and take it away again', async () => {
    const env = await start(routes([{ percent: 50 }, done]))
    const r = await wadah(['vm', 'create', 'web'], { env, tty: true })
    expect(r.stderr).toContain('[##########----------]  50%  reserve')
    expect(r.stderr.endsWith('\r\x1b[K')).toBe(true)
  })
  it('that fail print their fault and exit by its class; --json prints the job too', async () => {
    const failed = {
      state: 'failed',
      fault: { code: 'no_room', status: 507, title: '', detail: 'full', effect: 'none', retryable: false },
    }
    const env = await start(routes([failed]))
    const r = await wadah(['vm', 'create', 'web'], { env })
    expect(r.code).toBe(8)
    expect(r.stderr).toContain('Error: not enough room\n  full')
    const j = await wadah(['vm', 'create', 'web', '--json'], { env })
    expect([j.code, JSON.parse(j.stdout).state, JSON.parse(j.stderr).code]).toEqual([8, 'failed', 'no_room'])
  })
  it('are not waited for with --no-wait', async () => {
    const env = await start(routes([]))
    const r = await wadah(['vm', 'create', 'web', '--no-wait'], { env })
    expect(r.stdout).toContain('wadah job wait job-aaaaaaaaaa')
    expect(daemon.seen).toHaveLength(1)
  })
  it('are let go of by Ctrl-C, which says how to come back', async () => {
    const env = await start({ ...routes([]), 'GET /v1/jobs/*': () => new Promise(() => {}) })
    const r = await wadah(['vm', 'create', 'web'], { env, during: ({ interrupt }) => setTimeout(interrupt, 150) })
    expect(r.code).toBe(130)
    expect(r.stderr).toContain('wadah job wait job-aaaaaaaaaa')
    expect(r.stderr).toContain('wadah job cancel job-aaaaaaaaaa')
  })
  it('log lines are cleaned', async () => {
    const env = await start({
      'GET /v1/jobs/*/log': (s) => ({
        json:
          s.query.get('from') === '0'
            ? { lines: ['a\x1b[0m'], next: 1, ended: true }
            : { lines: [], next: 1, ended: true },
      }),
    })
    expect((await wadah(['job', 'log', 'job-aaaaaaaaaa'], { env })).stdout).toBe('a\\x1b[0m\n')
  })
})

describe('vm exec', () => {
  const b64 = (s: string) => Buffer.from(s).toString('base64')
  it('passes everything on and returns the code of the program', async () => {
    const env = await start({
      'POST /v1/vms/*/exec': () => ({
        json: { exit_code: 42, stdout: b64('out\x1b[1m'), stderr: b64('err'), truncated: false },
      }),
    })
    const r = await wadah(['vm', 'exec', 'web', '--env', 'A=b', '--', 'sh', '-c', 'cat --json'], { env, stdin: 'in' })
    expect(r).toMatchObject({ code: 42, stdout: 'out\x1b[1m', stderr: 'err' })
    expect(JSON.parse(daemon.seen[0]!.body)).toEqual({
      argv: ['sh', '-c', 'cat --json'],
      env: ['A=b'],
      stdin: b64('in'),
      timeout_ms: 60_000,
    })
  })
  it('says 128 + signal, and 125 when it failed itself', async () => {
    const env = await start({
      'POST /v1/vms/*/exec': (s) =>
        s.path.includes('web')
          ? { json: { signal: 9, stdout: '', stderr: '', truncated: false } }
          : problem('not_found', 404, 'no'),
    })
    const killed = await wadah(['vm', 'exec', 'web', '--', 'x'], { env })
    expect([killed.code, killed.stderr]).toEqual([137, 'The program was ended by SIGKILL\n'])
    expect((await wadah(['vm', 'exec', 'other', '--', 'x'], { env })).code).toBe(125)
    expect((await wadah(['vm', 'exec', 'web'], { env })).code).toBe(2)
  })
})

describe('vm cp', () => {
  it('copies in and out, and never leaves half a file', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'wadah-cp-'))
    try {
      const env = await start({
        'PUT /v1/vms/*/file': () => ({ status: 204 }),
        'GET /v1/vms/*/file': (s) =>
          s.query.get('path') === '/broken'
            ? {
                raw: (r) => {
                  r.writeHead(200, { 'content-length': '100' })
                  r.write('part')
                  setTimeout(() => r.destroy(), 20)
                },
              }
            : { raw: (r) => void r.writeHead(200).end(Buffer.from([0, 1, 255])) },
      })
      const local = join(folder, 'a.bin')
      writeFileSync(local, Buffer.from([7, 0, 255]), { mode: 0o640 })
      expect((await wadah(['vm', 'cp', local, 'web:/tmp/'], { env })).code).toBe(0)
      expect(daemon.seen[0]).toMatchObject({
        body: Buffer.from([7, 0, 255]).toString('latin1'),
        headers: { 'content-length': '3' },
      })
      expect(daemon.seen[0]!.query.get('path')).toBe('/tmp/a.bin')

      expect((await wadah(['vm', 'cp', 'web:/broken', local], { env })).code).toBe(6)
      expect([...readFileSync(local)]).toEqual([7, 0, 255])
      expect((await wadah(['vm', 'cp', 'web:/x/y', local], { env })).code).toBe(0)
      expect([...readFileSync(local)]).toEqual([0, 1, 255])
      expect(statSync(local).mode & 0o777).toBe(0o640)
      expect((await wadah(['vm', 'cp', 'web:/x/y', folder], { env })).code).toBe(0)
      expect([...(await wadah(['vm', 'cp', 'web:/x/y', '-'], { env })).bytes]).toEqual([0, 1, 255])
      expect((await wadah(['vm', 'cp', '-', 'web:/tmp/in'], { env, stdin: 'text' })).code).toBe(0)
      expect(daemon.seen.at(-1)!.body).toBe('text')
      expect(readdirSync(folder).sort()).toEqual(['a.bin', 'y'])
      expect((await wadah(['vm', 'cp', 'a', 'b'], { env })).code).toBe(2)
      expect((await wadah(['vm', 'cp', join(folder, 'none'), 'web:/x'], { env })).code).toBe(3)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
})

describe('other verbs', () => {
  it('edit says what needs a restart and sends the generation it saw', async () => {
    const pending = vm({ status: { ...vm().status, pending_restart: ['memory_mib'] } })
    const env = await start({ 'GET /v1/vms/*': () => ({ json: vm() }), 'PATCH /v1/vms/*': () => ({ json: pending }) })
    const r = await wadah(['vm', 'edit', 'web', '--memory', '1G'], { env })
    expect(r.stdout).toBe('web was changed. At its next start takes hold: memory_mib\n')
    expect(daemon.seen.at(-1)).toMatchObject({ body: '{"memory_mib":1024}', headers: { 'if-match': '"3"' } })
  })
  it('token create prints the secret alone on stdout', async () => {
    const env = await start({
      'POST /v1/tokens': (s) =>
        s.headers['idempotency-key']
          ? problem('invalid', 422, 'no key here')
          : { status: 201, json: { id: 't', name: 'ci', scope: 'read', secret: 's3cret' } },
    })
    expect(await wadah(['token', 'create', 'ci'], { env })).toMatchObject({ stdout: 's3cret\n', code: 0 })
  })
  it('events print what comes and remember where they were', async () => {
    const env = await start({
      'GET /v1/events': (s) => ({
        raw: (r) => {
          r.writeHead(200, { 'content-type': 'text/event-stream' })
          if (s.headers['last-event-id'] === undefined)
            r.end('id: s.5\ndata: {"resource":"vm","resource_id":"vm-x","change":"put","state":"running"}\n\n')
          else r.write(': waiting\n\n')
        },
      }),
    })
    const r = await wadah(['events'], { env, during: ({ interrupt }) => setTimeout(interrupt, 1500) })
    expect(r.stdout).toBe('vm  vm-x  put  running\n')
    expect(daemon.seen.at(-1)!.headers['last-event-id']).toBe('s.5')
  })
  it('check exits 1 when the service does not answer', async () => {
    const env = await start({ 'GET /v1/vms/*/health': () => ({ json: { ok: false, detail: 'refused', took_ms: 5 } }) })
    expect(await wadah(['vm', 'check', 'web'], { env })).toMatchObject({
      code: 1,
      stdout: 'web does not serve: refused (5 ms)\n',
    })
  })
  it('image add takes the image back when an upload fails', async () => {
    const file = join(tmpdir(), `wadah-kernel-${process.pid}`)
    writeFileSync(file, 'no kernel')
    try {
      const image = { id: 'img-aaaaaaaaaa', name: 'tiny' }
      const env = await start({
        'POST /v1/images/kernel': () => ({ status: 201, json: image }),
        'PUT /v1/images/*/files/*': () => problem('image_corrupt', 422, 'no Linux kernel'),
        'DELETE /v1/images/*': () => ({ json: job({ state: 'done' }) }),
      })
      const r = await wadah(['image', 'add', 'tiny', '--kernel', file], { env })
      expect(r.code).toBe(1)
      expect(daemon.seen.map((s) => s.method)).toEqual(['POST', 'PUT', 'DELETE'])
    } finally {
      rmSync(file)
    }
  })
})

describe('completion', () => {
  const routes: Routes = {
    'GET /v1/vms': () => page([{ name: 'web' }, { name: 'wiki' }, { name: 'bad name' }]),
    'GET /v1/images': () => page([{ name: 'debian-12' }]),
  }
  it.each([
    [['v'], 'vm\nvolume\nversion\n'],
    [['vm', 'st'], 'start\nstop\n'],
    [['vm', 'start', 'w'], 'web\nwiki\n'],
    [['vm', 'start', 'web', ''], 'wiki\n'],
    [['vm', 'show', 'web', ''], ''],
    [['--lang', 'id', 'vm', 'start', 'we'], 'web\n'],
    [['vm', 'create', 'x', '--image', ''], 'debian-12\n'],
    [['vm', 'create', '--pub'], '--publish\n'],
    [['vm', 'exec', 'web', '--', 'l'], ''],
    [['network', 'create', 'x', '--kind', 'n'], 'nat\n'],
    [['completion', 'z'], 'zsh\n'],
    [['nosuch', ''], ''],
  ])('%j', async (words, expected) => {
    const env = await start(routes)
    expect(await wadah(['__complete', '--', ...words], { env })).toMatchObject({
      code: 0,
      stdout: expected,
      stderr: '',
    })
  })
  it('is silent without a daemon, and prints scripts', async () => {
    await start({})
    expect(
      await wadah(['__complete', '--', 'vm', 'start', ''], { env: { WADAH_SOCKET: '/nonexistent' } }),
    ).toMatchObject({ code: 0, stdout: '', stderr: '' })
    for (const shell of ['bash', 'zsh', 'fish'])
      expect((await wadah(['completion', shell])).stdout).toContain('wadah __complete')
    expect((await wadah(['completion', 'tcsh'])).code).toBe(2)
  })
})
