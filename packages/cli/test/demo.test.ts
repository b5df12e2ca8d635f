import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Cli } from '../src/cli.ts'
import { Client } from '../src/demo/clients.ts'
import { check, requireClients } from '../src/demo/check.ts'
import { ensureImage, ensureNetwork, ensureRunning, ensureVm, type Work } from '../src/demo/ensure.ts'
import { DEMO_SERVERS, type DemoState } from '../src/demo/plan.ts'
import { removeFolders, removeThroughApi } from '../src/demo/remove.ts'
import { demoInstance, ensureState, loadState } from '../src/demo/state.ts'
import { type FakeDaemon, fakeDaemon, problem, type Routes, type Seen, wadah } from './support/fake.ts'
import { job, vm } from './support/samples.ts'

let daemon: FakeDaemon
let folder: string
let cli: Cli
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'wadah-demo-test-'))
  const stream = () => new PassThrough().resume()
  const env = {
    HOME: folder,
    // Never the machine's own demo.
    WADAH_DEMO_SOCKET: join(folder, 'run', 'wadahd.sock'),
    WADAH_DEMO_DATA: join(folder, 'demo'),
    PATH: process.env['PATH'],
  }
  cli = new Cli({
    env,
    stdin: stream(),
    stdout: stream(),
    stderr: stream(),
    now: () => Date.now(),
    onInterrupt: () => () => {},
    home: folder,
  })
})
afterEach(async () => {
  await daemon?.close()
  rmSync(folder, { recursive: true, force: true })
})
const work = async (routes: Routes): Promise<Work> => {
  daemon = await fakeDaemon(routes)
  return {
    cli,
    api: await cli.api({ socket: daemon.socket }),
    signal: AbortSignal.timeout(10_000),
    onProgress: () => {},
  }
}
const missing = () => problem('not_found', 404, 'no')
const page = (items: unknown[]) => ({ json: { items } })
const calls = () => daemon.seen.map((s) => `${s.method} ${s.path}`)
const nat = { id: 'net-aaaaaaaaaa', name: 'demo', kind: 'nat', state: 'up', reservations: [] }

describe('a client at work', () => {
  it('counts what did not come, or was not the right page', async () => {
    let n = 0
    const server = http.createServer((_, response) => {
      n += 1
      if (n === 4) response.destroy()
      else response.end(n === 6 ? 'another page' : 'the page')
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    try {
      const { port } = server.address() as AddressInfo
      const credentials = { user: 'u', password: 'p' }
      const target = {
        host: '127.0.0.1',
        port,
        vm: 'web',
        credentials,
        api: undefined,
        signal: AbortSignal.timeout(9e3),
      }
      const client = await Client.begin('http', target)
      while (n < 9) await new Promise((resolve) => setTimeout(resolve, 10))
      const used = await client.end()
      expect(used.requests).toBe(n - 1)
      expect(used.errors).toEqual([expect.any(String), 'another page'])
      expect(used.bytes).toBe((n - 3) * 'the page'.length)
    } finally {
      server.closeAllConnections()
      server.close()
    }
  })
  it('that gets nothing at all does not begin', async () => {
    const credentials = { user: 'u', password: 'p' }
    const target = {
      host: '127.0.0.1',
      port: 1,
      vm: 'web',
      credentials,
      api: undefined,
      signal: AbortSignal.timeout(9e3),
    }
    await expect(Client.begin('http', target)).rejects.toThrow('ECONNREFUSED')
  })
})

describe('the network', () => {
  it('is nat where that works', async () => {
    const w = await work({ 'GET /v1/networks/*': missing, 'POST /v1/networks': () => ({ json: nat }) })
    expect(await ensureNetwork(w)).toEqual({ network: nat })
  })
  it('is user where nat is refused, and the reason is kept', async () => {
    const create = (s: Seen) =>
      s.body.includes('nat') ? problem('host_lacks', 409, 'no dnsmasq') : { json: { ...nat, kind: 'user' } }
    const w = await work({ 'GET /v1/networks/*': missing, 'POST /v1/networks': create })
    expect(await ensureNetwork(w)).toMatchObject({ network: { kind: 'user' }, why: 'no dnsmasq' })
  })
  it('is user where a nat network was made but stays down, also by an earlier run', async () => {
    let there = true
    const w = await work({
      'GET /v1/networks/*': () => (there ? { json: { ...nat, state: 'down', reason: 'no tun' } } : missing()),
      'DELETE /v1/networks/*': () => {
        there = false
        return { status: 204 }
      },
      'POST /v1/networks': () => ({ json: { ...nat, kind: 'user' } }),
    })
    expect(await ensureNetwork(w)).toMatchObject({ network: { kind: 'user' }, why: 'no tun' })
  })
  it('does not hide a mistake behind the fall-back', async () => {
    const w = await work({
      'GET /v1/networks/*': missing,
      'POST /v1/networks': () => problem('store_failed', 503, 'disk'),
    })
    await expect(ensureNetwork(w)).rejects.toThrow('disk')
  })
})

describe('images', () => {
  it('that are there are not built again', async () => {
    const w = await work({
      'GET /v1/jobs': () => page([]),
      'GET /v1/images/*': () => ({ json: { name: 'web-server' } }),
    })
    await ensureImage(w, 'web-server')
    expect(calls()).toEqual(['GET /v1/jobs', 'GET /v1/images/web-server'])
  })
  it('whose build an earlier run began are waited for', async () => {
    let ended = false
    const building = job({ kind: 'image.build', target: { kind: 'image', id: 'img-aaaaaaaaaa', name: 'web-server' } })
    const w = await work({
      'GET /v1/jobs': () => page(ended ? [] : [building]),
      'GET /v1/jobs/*': () => {
        ended = true
        return { json: { ...building, state: 'done' } }
      },
      'GET /v1/images/*': () => (ended ? { json: { name: 'web-server' } } : missing()),
    })
    await ensureImage(w, 'web-server')
    expect(calls().filter((c) => c.startsWith('POST'))).toEqual([])
  })
  it('that cannot be built say why', async () => {
    const fault = {
      code: 'build_failed',
      status: 500,
      title: '',
      detail: 'no such package',
      effect: 'none',
      retryable: true,
    }
    const w = await work({
      'GET /v1/jobs': () => page([]),
      'GET /v1/images/*': missing,
      'POST /v1/images/build': () => ({ json: job({ state: 'failed', fault: fault as never }) }),
    })
    await expect(ensureImage(w, 'web-server')).rejects.toThrow('no such package')
  })
})

describe('servers', () => {
  const web = DEMO_SERVERS[2]!
  const state = (): DemoState => ({
    schema: 1,
    listen: '127.0.0.1:1',
    publish_address: '127.0.0.1',
    credentials: { user: 'demo', password: 'p' },
    servers: {},
  })
  it('get the next port when one is taken after all', async () => {
    const asked: number[] = []
    let made: number | undefined
    const w = await work({
      'GET /v1/jobs': () => page([]),
      'GET /v1/vms/*': () => {
        if (made === undefined) return missing()
        const v = vm()
        v.spec.nics[0]!.publish[0]!.port = made
        return { json: v }
      },
      'POST /v1/vms': (s) => {
        const port = JSON.parse(s.body).nics[0].publish[0].port as number
        asked.push(port)
        if (asked.length === 1) return problem('port_taken', 409, 'taken')
        made = port
        return { json: job({ state: 'done' }) }
      },
    })
    const instance = demoInstance(cli)
    mkdirSync(instance.data)
    const s = state()
    await ensureVm(w, instance, s, web)
    expect(asked).toHaveLength(2)
    expect(asked[1]).toBeGreaterThan(asked[0]!)
    expect((await loadState(instance))?.servers['ketoprak']?.port).toBe(asked[1])
  })
  it('that run are not started again; those that do not are, and when is noted', async () => {
    let now = 'running'
    const w = await work({
      'GET /v1/jobs': () => page([]),
      'GET /v1/vms/*': () => ({ json: vm({ status: { ...vm().status, state: now as never } }) }),
      'POST /v1/vms/*/start': () => ({ json: job({ state: 'done' }) }),
    })
    const instance = demoInstance(cli)
    mkdirSync(instance.data)
    const s = state()
    s.servers['ketoprak'] = { ready_ms: 5 }
    await ensureRunning(w, instance, s, web)
    expect(calls()).not.toContain('POST /v1/vms/ketoprak/start')
    expect(s.servers['ketoprak']).toEqual({ ready_ms: 5 })
    now = 'stopped'
    await ensureRunning(w, instance, s, web)
    expect(calls()).toContain('POST /v1/vms/ketoprak/start')
    expect(s.servers['ketoprak']!.ready_ms).toBeUndefined()
    expect(s.servers['ketoprak']!.start_requested_ms).toBeGreaterThan(0)
  })
})

describe('its own file', () => {
  it('is private, has a random password, and survives', async () => {
    daemon = await fakeDaemon({})
    const instance = demoInstance(cli)
    const one = await ensureState(cli, instance)
    expect(one.credentials.password).toMatch(/^[A-Za-z0-9]{16}$/)
    expect(statSync(join(instance.data, 'demo.json')).mode & 0o777).toBe(0o600)
    expect(await ensureState(cli, instance)).toEqual(one)
  })
  it('moves the API when its port was taken while it was down', async () => {
    daemon = await fakeDaemon({})
    const instance = demoInstance(cli)
    const one = await ensureState(cli, instance)
    const squatter = createServer()
    await new Promise<void>((resolve) => squatter.listen(Number(one.listen.split(':')[1]), '127.0.0.1', resolve))
    try {
      expect((await ensureState(cli, instance)).listen).not.toBe(one.listen)
    } finally {
      squatter.close()
    }
  })
})

describe('checks', () => {
  const at = async (listener: http.RequestListener, run: (port: number) => Promise<void>) => {
    const server = http.createServer(listener)
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    try {
      await run((server.address() as AddressInfo).port)
    } finally {
      server.closeAllConnections()
      server.close()
    }
  }
  const target = (port: number, api: Work['api'] | undefined) => ({
    host: '127.0.0.1',
    port,
    vm: 'ketoprak',
    credentials: { user: 'u', password: 'p' },
    api,
    signal: AbortSignal.timeout(5000),
  })
  it('of the web server know its page, also after its owner changed it', async () => {
    const { api } = await work({ 'GET /v1/vms/*/file': () => ({ raw: (r) => void r.end('<p>mine</p>') }) })
    const serve = (text: string, status = 200) =>
      ((_, r) => void r.writeHead(status).end(text)) satisfies http.RequestListener
    await at(serve('made by Wadah'), async (port) =>
      expect((await check('http', target(port, undefined))).ok).toBe(true),
    )
    await at(serve('<p>mine</p>'), async (port) => expect((await check('http', target(port, api))).ok).toBe(true))
    await at(serve('<p>somebody else</p>'), async (port) =>
      expect((await check('http', target(port, api))).ok).toBe(false),
    )
    await at(serve('made by Wadah', 500), async (port) =>
      expect(await check('http', target(port, api))).toEqual({ ok: false, detail: 'HTTP 500' }),
    )
  })
  it('name the packages of clients that are not there', async () => {
    daemon = await fakeDaemon({})
    await expect(requireClients('/nonexistent')).rejects.toMatchObject({
      fault: { code: 'host_lacks', remedy: 'apt-get install -y smbclient cups-client poppler-utils' },
    })
  })
})

describe('removal', () => {
  it('cancels jobs, then VMs, then the youngest image first, then networks; what fails is told, not thrown', async () => {
    const w = await work({
      'GET /v1/jobs': () => page([job(), job({ id: 'job-bbbbbbbbbb', state: 'done' })]),
      'POST /v1/jobs/*/cancel': () => ({ json: job({ state: 'cancelled' }) }),
      'GET /v1/vms': () => page([vm()]),
      'DELETE /v1/vms/*': () => ({ json: job({ state: 'done' }) }),
      'GET /v1/images': () =>
        page([
          { id: 'img-old', name: 'old', created_at: '2026-01-01' },
          { id: 'img-new', name: 'new', created_at: '2026-02-01' },
        ]),
      'DELETE /v1/images/*': (s) =>
        s.path.endsWith('old') ? problem('in_use', 409, 'still used') : { json: job({ state: 'done' }) },
      'GET /v1/networks': () => page([nat]),
      'DELETE /v1/networks/*': () => ({ status: 204 }),
    })
    expect(await removeThroughApi(cli, w.api)).toEqual(['old: still used'])
    expect(calls().filter((c) => !c.startsWith('GET'))).toEqual([
      'POST /v1/jobs/job-aaaaaaaaaa/cancel',
      'DELETE /v1/vms/vm-aaaaaaaaaa',
      'DELETE /v1/images/img-new',
      'DELETE /v1/images/img-old',
      'DELETE /v1/networks/net-aaaaaaaaaa',
    ])
    expect(daemon.seen.find((s) => s.path.startsWith('/v1/vms/'))!.query.get('force')).toBe('true')
  })
  it('takes the folders of a demo and no other', async () => {
    daemon = await fakeDaemon({})
    const instance = demoInstance(cli)
    await ensureState(cli, instance)
    await removeFolders(cli, instance)
    expect(existsSync(instance.data)).toBe(false)
    const other = join(folder, 'precious')
    mkdirSync(other)
    writeFileSync(join(other, 'file'), 'x')
    await expect(removeFolders(cli, { ...instance, data: other })).rejects.toThrow('precious')
    expect(existsSync(join(other, 'file'))).toBe(true)
  })
})

it('status of a demo that is not there is empty and exits 1', async () => {
  daemon = await fakeDaemon({})
  const env = { WADAH_DEMO_DATA: join(folder, 'none'), WADAH_DEMO_SOCKET: join(folder, 'run', 's') }
  const r = await wadah(['demo', 'status', '--json'], { env })
  expect(r).toMatchObject({ code: 1, stdout: '{"servers":[],"hosts":[],"moves":[]}\n', stderr: '' })
})
