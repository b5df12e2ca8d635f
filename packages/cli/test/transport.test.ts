import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type WebSocket, WebSocketServer } from 'ws'
import { ONE, TWO } from './support/certificates.ts'
import { type FakeDaemon, fakeDaemon, type Routes, wadah } from './support/fake.ts'
import { vm } from './support/samples.ts'

let home: string
let daemons: FakeDaemon[]
let servers: WebSocketServer[]
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'wadah-home-'))
  daemons = []
  servers = []
})
afterEach(async () => {
  for (const s of servers) for (const c of s.clients) c.terminate()
  for (const d of daemons) await d.close()
  rmSync(home, { recursive: true, force: true })
})
const make = async (routes: Routes, tls?: { key: string; cert: string }) => {
  const d = await fakeDaemon(routes, tls)
  daemons.push(d)
  return d
}
const routes: Routes = {
  'GET /v1/vms/*': () => ({ json: vm() }),
  'GET /v1/vms': () => ({ json: { items: [vm()] } }),
  'GET /v1/images': () => ({ json: { items: [] } }),
}

describe('HTTPS', () => {
  it('trusts a certificate on first use, says so once, and refuses another one before it sends a token', async () => {
    const env = { HOME: home, WADAH_TOKEN: 'tok' }
    const first = await make(routes, ONE)
    const show = (url: string, more: string[] = []) =>
      wadah(['--server', url, ...more, 'vm', 'show', 'web', '--quiet'], { env })
    // Two requests side by side: met once all the same.
    const r = await wadah(['--server', first.url, 'vm', 'list'], { env })
    expect(r.code).toBe(0)
    expect(r.stderr.split(ONE.sha256)).toHaveLength(2)
    expect(first.seen[0]!.headers.authorization).toBe('Bearer tok')
    expect((await wadah(['--server', first.url, 'vm', 'show', 'web'], { env })).stderr).toBe('')
    const known = join(home, '.config/wadah/known_servers')
    expect(statSync(known).mode & 0o777).toBe(0o600)

    const other = await make(routes, TWO)
    writeFileSync(known, readFileSync(known, 'utf8').replace(/\S+ /, `127.0.0.1:${new URL(other.url).port} `))
    const refused = await show(other.url)
    expect(refused.code).toBe(5)
    expect(refused.stderr).toContain('has changed')
    expect(other.seen).toHaveLength(0)
  })
  it('takes exactly the pinned certificate', async () => {
    const d = await make(routes, ONE)
    const show = (fingerprint: string) =>
      wadah(['--server', d.url, '--fingerprint', fingerprint, 'vm', 'show', 'web'], { env: { HOME: home } })
    expect((await show(ONE.sha256.toUpperCase().match(/../g)!.join(':'))).code).toBe(0)
    const wrong = await show(TWO.sha256)
    expect([wrong.code, d.seen.length]).toEqual([5, 1])
    expect((await show('zz')).code).toBe(2)
  })
  it('uses tokens from a file, a login and the environment, the nearest first', async () => {
    const d = await make(routes, ONE)
    const file = join(home, 'token')
    writeFileSync(file, 'from-file\n')
    const config = join(home, '.config/wadah')
    const base = ['--server', d.url, '--fingerprint', ONE.sha256]
    await wadah([...base, '--token-file', file, 'vm', 'show', 'web'], { env: { HOME: home, WADAH_TOKEN: 'from-env' } })
    await wadah([...base, '--token', 'given', 'vm', 'show', 'web'], { env: { HOME: home } })
    await wadah([...base, 'vm', 'show', 'web'], { env: { HOME: home } })
    expect(d.seen.map((s) => s.headers.authorization)).toEqual(['Bearer from-file', 'Bearer given', undefined])
    expect((await wadah([...base, '--token', 'a b', 'vm', 'show', 'web'], { env: { HOME: home } })).code).toBe(2)
    void config
  })
  it('log in: trades the password for a token, kept privately', async () => {
    const d = await make(
      {
        ...routes,
        'POST /v1/login': (s) =>
          JSON.parse(s.body).password === 'right-password'
            ? { json: { user: 'ani', scope: 'full' }, headers: { 'set-cookie': 'wadah=abc; HttpOnly' } }
            : { status: 401, json: { code: 'unauthenticated', detail: 'no' } },
        'POST /v1/tokens': () => ({ status: 201, json: { name: 't', secret: 'fresh' } }),
        'POST /v1/logout': () => ({ status: 204 }),
      },
      ONE,
    )
    const env = { HOME: home, WADAH_FINGERPRINT: ONE.sha256 }
    const password = join(home, 'pw')
    writeFileSync(password, 'right-password\n')
    const r = await wadah(['login', d.url, '--user', 'ani', '--password-file', password], { env })
    expect(r.code).toBe(0)
    expect(d.seen[1]!.headers).toMatchObject({ cookie: 'wadah=abc', origin: d.url })
    await wadah(['--server', d.url, 'vm', 'show', 'web'], { env })
    expect(d.seen.at(-1)!.headers.authorization).toBe('Bearer fresh')
    const file = join(home, '.config/wadah/credentials.json')
    expect(statSync(file).mode & 0o777).toBe(0o600)
    chmodSync(file, 0o644)
    expect((await wadah(['--server', d.url, 'vm', 'show', 'web'], { env })).stderr).toContain('others can read it')
    writeFileSync(password, 'wrong')
    expect(
      (
        await wadah(['login', d.url, '--user', 'ani', '--password-file', password], {
          env: { ...env, HOME: join(home, 'x') },
        })
      ).code,
    ).toBe(5)
    expect(
      (await wadah(['login', d.url, '--user', 'ani'], { env: { ...env, HOME: join(home, 'x') } })).stderr,
    ).toContain('no terminal')
  })
  it('says what is the matter with a server that is no TLS server, or none at all', async () => {
    const d = await make(routes, ONE)
    await new Promise((resolve) => d.server.close(resolve))
    const r = await wadah(['--server', d.url, 'vm', 'list'], { env: { HOME: home } })
    expect([r.code, r.stderr.includes('Nothing answers')]).toEqual([6, true])
  })
})

describe('consoles', () => {
  const open = async (serve: (ws: WebSocket) => void) => {
    const d = await make({
      'POST /v1/vms/*/console': () => ({ json: { ticket: 't', path: '/v1/console?ticket=t', expires_at: '' } }),
    })
    const wss = new WebSocketServer({ server: d.server, path: '/v1/console' })
    wss.on('connection', serve)
    servers.push(wss)
    return { WADAH_SOCKET: d.socket }
  }
  it('joins a terminal to the serial port until Ctrl-]', async () => {
    const env = await open((ws) =>
      ws.on('message', (data: Buffer) => ws.send(Buffer.concat([Buffer.from('echo:'), data]))),
    )
    const r = await wadah(['vm', 'console', 'web'], {
      env,
      tty: true,
      during: ({ stdin, stdout }) => {
        const timer = setInterval(() => {
          if (stdout().includes('echo:ls')) {
            clearInterval(timer)
            stdin.write('\x1d')
          } else if (stdout() === '') stdin.write('ls')
        }, 100)
      },
    })
    expect(r.code).toBe(0)
    expect(r.stdout).toContain('echo:ls')
    expect(r.stderr).toContain('Left the console')
  })
  it('works in a pipe, raw, and tells why the console ended', async () => {
    const env = await open((ws) =>
      ws.on('message', (data: Buffer) => {
        ws.send(Buffer.concat([Buffer.from('\x1b[1m'), data]))
        ws.close(4408, 'the client took nothing for too long')
      }),
    )
    const r = await wadah(['vm', 'console', 'web'], { env, stdin: 'x\x1d' })
    expect(r).toMatchObject({ code: 6, stdout: '\x1b[1mx\x1d' })
    expect(r.stderr).toContain('the client took nothing for too long')
  })
  it('says what is the matter when it cannot be opened', async () => {
    const d = await make({
      'POST /v1/vms/*/console': () => ({ json: { ticket: 't', path: '/v1/console?ticket=t', expires_at: '' } }),
    })
    const r = await wadah(['vm', 'console', 'web'], { env: { WADAH_SOCKET: d.socket }, stdin: '' })
    expect(r.code).toBe(6)
    expect(r.stderr).toContain('The console could not be opened')
  })
  it('lends a port to a VNC viewer', async () => {
    const env = await open((ws) => ws.send(Buffer.from('RFB 003.008\n')))
    const r = await wadah(['vm', 'console', 'web', '--vnc', '0'], {
      env,
      during: ({ interrupt, stdout }) => {
        const timer = setInterval(() => {
          const port = /127\.0\.0\.1:(\d+)/.exec(stdout())?.[1]
          if (!port) return
          clearInterval(timer)
          const viewer = createConnection(Number(port), '127.0.0.1')
          viewer.once('data', (d: Buffer) => {
            seen = d.toString()
            viewer.destroy()
            interrupt()
          })
        }, 20)
      },
    })
    expect([r.code, seen]).toEqual([0, 'RFB 003.008\n'])
  })
  let seen = ''
})
