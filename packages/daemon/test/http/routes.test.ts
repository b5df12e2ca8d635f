import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { describe, expect, it } from 'vitest'
import { BODIES, every, examplePath, JOB, QUERIES, testServer } from './harness.ts'

describe('every endpoint', () => {
  it('is bound, with all of its answers as the contract says', async () => {
    const server = await testServer()
    for (const e of every) {
      if (
        [
          'system.events',
          'access.setup',
          'access.login',
          'access.logout',
          'access.setupCode',
          'tokens.delete',
          'tokens.get',
        ].includes(e.id)
      )
        continue
      const body = e.accepts ? 'data' : BODIES[e.id]
      const answer = await server.ask(e.method, examplePath(e.path) + (QUERIES[e.id] ?? ''), {
        ...(body !== undefined && { payload: body as object }),
        ...(e.accepts && { headers: { 'content-type': e.accepts } }),
      })
      const expected = { ok: 200, created: 201, 'no-content': 204, job: 202, stream: 200 }[e.answer]
      expect([e.id, answer.statusCode, answer.statusCode >= 400 ? answer.body : '']).toEqual([e.id, expected, ''])
      expect(answer.headers['x-request-id']).toBeTruthy()
      expect(answer.headers['cache-control']).toBe('no-store')
      if (e.answer === 'job') expect(answer.headers.location).toBe(`/v1/jobs/${JOB.id}`)
    }
  })
})

describe('metrics', () => {
  it('are plain text for whoever may look, and for nobody else', async () => {
    const server = await testServer()
    const got = await server.ask('GET', '/metrics', { headers: { authorization: server.read } })
    expect([got.statusCode, got.body]).toEqual([200, '# TYPE up gauge\nup 1\n'])
    expect(got.headers['content-type']).toBe('text/plain; version=0.0.4; charset=utf-8')
    const refused = await server.app.inject({ method: 'GET', url: '/metrics', headers: { host: 'localhost' } })
    expect(refused.statusCode).toBe(401)
  })
})

describe('jobs', () => {
  it('wait: 200 with the ended job, also when it failed', async () => {
    const failed = { ...JOB, state: 'failed' as const, fault: fail('no_room', 'the pool is full').fault }
    const server = await testServer({ overrides: { 'jobs.wait': async () => failed } })
    const answer = await server.ask('POST', '/v1/vms/web/start?wait=5')
    expect(answer.statusCode).toBe(200)
    expect(answer.json()).toMatchObject({ state: 'failed', fault: { code: 'no_room' } })
    expect(server.calls.find((c) => c.name === 'jobs.wait')?.args.slice(1, 3)).toEqual([JOB.id, 5])
  })

  it('wait: 202 when it still runs', async () => {
    const server = await testServer()
    const answer = await server.ask('POST', '/v1/vms/web/start?wait=1')
    expect(answer.statusCode).toBe(202)
    expect(answer.json().state).toBe('running')
  })

  it('hands Idempotency-Key and digest to the service; the digest does not depend on the order of fields', async () => {
    const server = await testServer()
    const headers = { 'idempotency-key': 'abc' }
    await server.ask('POST', '/v1/vms', { headers, payload: { name: 'web', cpus: 2 } })
    await server.ask('POST', '/v1/vms', { headers, payload: { cpus: 2, name: 'web' } })
    await server.ask('POST', '/v1/vms', { headers, payload: { cpus: 3, name: 'web' } })
    const given = server.calls.map((c) => (c.args[0] as { idempotency: { key: string; digest: string } }).idempotency)
    expect(given.map((g) => g.key)).toEqual(['abc', 'abc', 'abc'])
    expect(given[0]?.digest).toBe(given[1]?.digest)
    expect(given[2]?.digest).not.toBe(given[0]?.digest)
  })
})

describe('the digest of a request', () => {
  const given = (server: Awaited<ReturnType<typeof testServer>>) =>
    server.calls
      .filter((c) => c.name !== 'jobs.wait')
      .map((c) => (c.args[0] as { idempotency?: { digest: string } }).idempotency?.digest)
      .filter((d) => d !== undefined)
  const headers = { 'idempotency-key': 'abc' }

  it('holds the query, in any order, and not how long the client waits', async () => {
    const server = await testServer()
    for (const query of ['', '?force=true', '?keep_disks=true', '?force=true&keep_disks=true']) {
      await server.ask('DELETE', `/v1/vms/web${query}`, { headers })
    }
    expect(new Set(given(server)).size).toBe(4)
    server.calls.length = 0
    for (const query of ['?force=true&keep_disks=true', '?keep_disks=true&force=true']) {
      await server.ask('DELETE', `/v1/vms/web${query}`, { headers })
      await server.ask('DELETE', `/v1/vms/web${query}&wait=1`, { headers })
    }
    expect(given(server)).toHaveLength(4)
    expect(new Set(given(server)).size).toBe(1)
  })

  it('holds the length of an upload', async () => {
    const server = await testServer()
    for (const payload of ['data', 'more data', 'data']) {
      await server.ask('POST', '/v1/volumes/upload?name=v', {
        headers: { ...headers, 'content-type': 'application/octet-stream' },
        payload,
      })
    }
    const [a, b, c] = given(server)
    expect(a).toBe(c)
    expect(a).not.toBe(b)
  })
})

describe('generation', () => {
  it('comes as ETag and is taken as If-Match', async () => {
    const server = await testServer()
    expect((await server.ask('GET', '/v1/vms/web')).headers.etag).toBe('"3"')
    await server.ask('PATCH', '/v1/vms/web', { headers: { 'if-match': '"7"' }, payload: { cpus: 2 } })
    expect(server.calls.at(-1)?.args[3]).toBe(7)
    await server.ask('PATCH', '/v1/vms/web', { headers: { 'if-match': '*' }, payload: { cpus: 2 } })
    expect(server.calls.at(-1)?.args[3]).toBeUndefined()
  })

  it.each(['7', '"x"', 'W/"7"', '"7", "8"', '""'])('refuses If-Match: %s', async (header) => {
    const server = await testServer()
    const answer = await server.ask('DELETE', '/v1/vms/web', { headers: { 'if-match': header } })
    expect(answer.statusCode).toBe(400)
    expect(answer.json()).toMatchObject({ code: 'malformed', field: '/If-Match' })
    expect(server.calls).toEqual([])
  })

  it('refuses If-Match where it would be passed over', async () => {
    const server = await testServer()
    const answer = await server.ask('POST', '/v1/vms/web/start', { headers: { 'if-match': '"7"' } })
    expect(answer.json()).toMatchObject({ code: 'invalid', field: '/If-Match' })
  })
})

describe('Idempotency-Key of answers that are no jobs', () => {
  const pool = { name: 'fast', path: '/srv/fast' }

  it('carries the request out once and gives the answer again', async () => {
    let made = 0
    const server = await testServer({
      overrides: { 'storage.createPool': async () => ({ id: 'pool-aaaaaaaaaa', generation: 1, made: ++made }) },
    })
    const headers = { 'idempotency-key': 'k1' }
    const first = await server.ask('POST', '/v1/pools', { headers, payload: pool })
    const again = await server.ask('POST', '/v1/pools', { headers, payload: pool })
    expect([first.statusCode, again.statusCode]).toEqual([201, 201])
    expect(again.json()).toEqual(first.json())
    expect(again.headers['idempotency-replayed']).toBe('true')
    expect(again.headers.location).toBe('/v1/pools/pool-aaaaaaaaaa')
    expect(made).toBe(1)
    const other = await server.ask('POST', '/v1/pools', { headers, payload: { ...pool, name: 'slow' } })
    expect(other.json().code).toBe('idempotency_mismatch')
    const reader = await server.ask('POST', '/v1/pools', {
      headers: { ...headers, authorization: server.read },
      payload: pool,
    })
    expect(reader.json().code).toBe('forbidden')
  })

  it('says busy while the first is under way', async () => {
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    const server = await testServer({ overrides: { 'storage.createPool': () => held.then(() => ({ id: 'x' })) } })
    const headers = { 'idempotency-key': 'k1' }
    const first = server.ask('POST', '/v1/pools', { headers, payload: pool })
    await expect.poll(() => server.calls.length).toBe(1)
    const second = await server.ask('POST', '/v1/pools', { headers, payload: pool })
    expect(second.json()).toMatchObject({ code: 'busy', retryable: true })
    release()
    expect((await first).statusCode).toBe(201)
  })

  it('keeps no failure and no secret', async () => {
    let tries = 0
    const server = await testServer({
      overrides: {
        'storage.createPool': () => {
          if (tries++ === 0) throw fail('host_lacks', 'no such folder')
          return { id: 'x' }
        },
      },
    })
    const headers = { 'idempotency-key': 'k1' }
    expect((await server.ask('POST', '/v1/pools', { headers, payload: pool })).statusCode).toBe(409)
    expect((await server.ask('POST', '/v1/pools', { headers, payload: pool })).statusCode).toBe(201)
    const token = await server.ask('POST', '/v1/tokens', { headers, payload: { name: 'x', scope: 'read' } })
    expect(token.json()).toMatchObject({ code: 'invalid', field: '/Idempotency-Key' })
  })

  it.each(['', 'a b', 'ä', 'x'.repeat(129)])('refuses the key "%s"', async (key) => {
    const server = await testServer()
    const answer = await server.ask('POST', '/v1/vms/web/start', { headers: { 'idempotency-key': key } })
    expect(answer.json().code).toBe('malformed')
  })
})

describe('paths and methods', () => {
  it.each([
    ['/v1/vm', 'did you mean /v1/vms?'],
    ['/v1/vms/web/strat', 'did you mean /v1/vms/web/start?'],
    ['/nothing/at/all/here', 'see /v1/openapi.json for all that there is'],
  ])('404 with a hint: %s', async (path, remedy) => {
    const server = await testServer()
    const answer = await server.ask('GET', path)
    expect(answer.statusCode).toBe(404)
    expect(answer.headers['content-type']).toContain('application/problem+json')
    expect(answer.json()).toMatchObject({ code: 'not_found', remedy, type: 'urn:wadah:fault:not_found' })
  })

  it('405 names the methods', async () => {
    const server = await testServer()
    const answer = await server.ask('DELETE', '/v1/vms')
    expect(answer.statusCode).toBe(405)
    expect(answer.headers.allow).toBe('GET, HEAD, POST, OPTIONS')
    expect(answer.json().code).toBe('method_not_allowed')
  })

  it('OPTIONS names the methods and grants no other site anything', async () => {
    const server = await testServer()
    const answer = await server.ask('OPTIONS', '/v1/vms/web', { headers: { origin: 'https://evil.example' } })
    expect(answer.statusCode).toBe(204)
    expect(answer.headers.allow).toBe('DELETE, GET, HEAD, PATCH, OPTIONS')
    expect(Object.keys(answer.headers).filter((h) => h.startsWith('access-control'))).toEqual([])
  })

  it('HEAD is GET without the body', async () => {
    const server = await testServer()
    const answer = await server.ask('HEAD', '/v1/vms/web')
    expect([answer.statusCode, answer.body, answer.headers.etag]).toEqual([200, '', '"3"'])
    expect((await server.ask('HEAD', '/v1/vms/web/file?path=/x')).statusCode).toBe(405)
  })

  it.each([
    '/v1/vms/%',
    '/v1/vms/%ff',
    '/v1/vms/..%2f..%2fetc',
    '/v1/vms/web%00',
    `/v1/vms/${'a'.repeat(500)}`,
    '/v1/vms/WEB',
  ])('a bad path is refused: %s', async (path) => {
    const server = await testServer()
    const answer = await server.ask('GET', path)
    expect([400, 422]).toContain(answer.statusCode)
    expect(answer.headers['content-type']).toContain('application/problem+json')
    expect(server.calls).toEqual([])
  })
})

describe('failures', () => {
  it('of ours come as they are; others are internal, without their text', async () => {
    const server = await testServer({
      overrides: {
        'vms.get': () => {
          throw fail('not_found', 'There is no VM "web".', { remedy: 'wadah vm list' })
        },
        'images.get': () => {
          throw new Error('secret detail')
        },
      },
      level: 'error',
    })
    const known = await server.ask('GET', '/v1/vms/web')
    expect(known.statusCode).toBe(404)
    expect(known.json()).toEqual({
      type: 'urn:wadah:fault:not_found',
      code: 'not_found',
      status: 404,
      title: 'There is no such thing',
      detail: 'There is no VM "web".',
      remedy: 'wadah vm list',
      effect: 'none',
      retryable: false,
    })
    const unknown = await server.ask('GET', '/v1/images/web')
    expect(unknown.statusCode).toBe(500)
    expect(unknown.body).not.toContain('secret detail')
    expect(server.logged.join('')).toContain('secret detail')
    expect(server.logged.join('')).not.toContain(server.full.slice(7))
  })
})

it('logs no secrets and no queries', async () => {
  const server = await testServer({ level: 'trace' })
  await server.ask('GET', '/v1/vms/web/file?path=/etc/passwd')
  const text = server.logged.join('')
  expect(text).toContain('/v1/vms/web/file')
  expect(text).not.toContain('passwd')
  expect(text).not.toContain(server.full.slice(7))
})

it('serves the OpenAPI document', async () => {
  const server = await testServer()
  const answer = await server.ask('GET', endpoints.system.openapi.path, { headers: { authorization: '' } })
  expect(answer.json().info.version).toBe('0.0.0-test')
})
