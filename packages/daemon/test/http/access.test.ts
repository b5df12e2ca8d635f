import { isId } from '@wadah/api/ids'
import { FakeClock } from '@wadah/store/testing/clock'
import { describe, expect, it } from 'vitest'
import { delay_ms, LoginLimiter, SOURCE_RULE, sourceKey, USER_RULE } from '../../src/http/access/limiter.ts'
import { hashPassword, NO_PASSWORD, verifyPassword } from '../../src/http/access/password.ts'
import { SESSION_IDLE_MS, SESSION_MAX_MS, SETUP_MAX_MS } from '../../src/http/access/store.ts'
import { sessionKind, setupKind, tokenKind, userKind } from '../../src/http/access/records.ts'
import { COOKIE } from '../../src/http/routes/access.ts'
import { BODIES, every, examplePath, QUERIES, type TestServer, testServer } from './harness.ts'

const SAME = { origin: 'https://localhost' }

async function administrator(server: TestServer) {
  const { code } = await server.access.newSetupCode()
  const answer = await server.ask('POST', '/v1/setup', {
    headers: { ...SAME, authorization: '' },
    payload: { code, user: 'ana', password: 'correct horse' },
  })
  expect(answer.statusCode).toBe(200)
  const cookie = answer.cookies.find((c) => c.name === COOKIE)
  return { code, cookie, secret: cookie?.value ?? '', answer }
}
const login = (server: TestServer, password: string, user = 'ana', remoteAddress = '192.0.2.1') =>
  server.app.inject({
    method: 'POST',
    url: '/v1/login',
    headers: { host: 'localhost', ...SAME },
    payload: { user, password },
    remoteAddress,
  })

/** Without any proof: `undefined` takes away what the harness puts in. */
const nobody = (
  server: TestServer,
  method: string,
  url: string,
  more: Record<string, string> = {},
  payload?: object | string,
) =>
  server.app.inject({
    method: method as 'GET',
    url,
    headers: { host: 'localhost', ...more },
    ...(payload !== undefined && { payload }),
  })

describe.each(every.map((e) => [e.id, e] as const))('%s', (_, e) => {
  it('opens to those it should', async () => {
    const server = await testServer()
    const body = e.accepts ? 'data' : (BODIES[e.id] as object | undefined)
    const type: Record<string, string> = e.accepts ? { 'content-type': e.accepts } : {}
    const ask = async (authorization?: string) => {
      // A stream of events does not end by itself: a resource that there is not ends it after the login was checked.
      const query = e.id === 'system.events' ? '?resource=none' : (QUERIES[e.id] ?? '')
      const url = examplePath(e.path).replace('/tokens/web', '/tokens/read') + query
      const answer = await nobody(
        server,
        e.method,
        url,
        { ...type, ...(authorization !== undefined && { authorization }) },
        body,
      )
      return answer.statusCode === 401 ? 'who' : answer.statusCode === 403 ? 'no' : 'yes'
    }
    // The answers of login and setup are 401 and 403 by themselves.
    if (e.id === 'access.login' || e.id === 'access.setup') return
    const local = e.id === 'access.setupCode'
    expect(await ask()).toBe(e.needs === 'none' ? 'yes' : 'who')
    expect(await ask('Bearer wadah_tok-aaaaaaaaaa_' + 'a'.repeat(43))).toBe(e.needs === 'none' ? 'yes' : 'who')
    expect(await ask(server.read)).toBe(e.needs === 'full' ? 'no' : 'yes')
    expect(await ask(server.full)).toBe(local ? 'no' : 'yes')
    if (e.needs !== 'none') expect(server.calls.length).toBeLessThanOrEqual(2)
  })
})

describe('the first administrator', () => {
  it('is made once with the code; the answer logs in', async () => {
    const server = await testServer()
    expect(server.access.hasUsers()).toBe(false)
    const { code, cookie, secret } = await administrator(server)
    expect(server.access.hasUsers()).toBe(true)
    expect(cookie).toMatchObject({ path: '/', httpOnly: true, secure: true, sameSite: 'Strict' })
    expect(COOKIE.startsWith('__Host-')).toBe(true)
    const session = await nobody(server, 'GET', '/v1/session', { cookie: `${COOKIE}=${secret}` })
    expect(session.json()).toMatchObject({ user: 'ana', scope: 'full' })
    const again = await nobody(server, 'POST', '/v1/setup', {}, { code, user: 'eve', password: 'correct horse' })
    expect(again.json()).toMatchObject({ code: 'forbidden', field: '/code' })
    expect(server.view.list(userKind)).toHaveLength(1)
  })

  it('cannot be made with a wrong, replaced or old code, nor twice at once', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    const old = (await server.access.newSetupCode()).code
    const { code } = await server.access.newSetupCode()
    for (const wrong of ['', 'x', old, code.slice(1)]) {
      await expect(server.access.setup(wrong, 'ana', 'correct horse')).rejects.toMatchObject({
        fault: { code: 'forbidden' },
      })
    }
    clock.advance(SETUP_MAX_MS)
    await expect(server.access.setup(code, 'ana', 'correct horse')).rejects.toMatchObject({
      fault: { code: 'forbidden' },
    })
    const fresh = (await server.access.newSetupCode()).code
    const both = await Promise.allSettled([
      server.access.setup(fresh, 'ana', 'correct horse'),
      server.access.setup(fresh, 'eve', 'correct horse'),
    ])
    expect(both.map((b) => b.status).toSorted()).toEqual(['fulfilled', 'rejected'])
    expect(server.view.list(userKind)).toHaveLength(1)
  })

  it('who has the machine can give a known user a new password; the sessions of the old one end', async () => {
    const server = await testServer()
    const { secret } = await administrator(server)
    const { code } = await server.access.newSetupCode()
    await server.access.setup(code, 'ana', 'another horse')
    expect(server.access.bySession(secret)).toBeUndefined()
    await expect(server.access.login('ana', 'correct horse')).rejects.toMatchObject({
      fault: { code: 'unauthenticated' },
    })
    await server.access.login('ana', 'another horse')
    expect(server.view.list(userKind)).toHaveLength(1)
  })

  it('keeps no secret in the clear', async () => {
    const server = await testServer()
    const { code } = await server.access.newSetupCode()
    const { secret } = await administrator(server)
    await server.ask('POST', '/v1/tokens', { payload: { name: 'robot', scope: 'read' } })
    const page = await server.store.range('', { limit: 1000 })
    const text = JSON.stringify(page)
    for (const kept of [code, secret, 'correct horse', server.full.slice(-43)]) expect(text).not.toContain(kept)
    expect(text).toContain('$argon2id$v=19$m=19456,t=2,p=1$')
    expect(server.view.get(setupKind, 'code')).toBeUndefined()
  })
})

describe('sessions', () => {
  it('end when unused, and in any case after a day', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    const { secret } = await administrator(server)
    clock.advance(SESSION_IDLE_MS - 1)
    expect(server.access.bySession(secret)?.subject.name).toBe('ana')
    await expect.poll(() => server.view.list(sessionKind)[0]?.value.seen_ms).toBe(clock.now_ms())
    for (let h = 0; h < 7; h++) {
      clock.advance(SESSION_IDLE_MS / 2)
      server.access.bySession(secret)
      await expect.poll(() => server.view.list(sessionKind)[0]?.value.seen_ms).toBe(clock.now_ms())
    }
    clock.advance(SESSION_MAX_MS - 4.5 * SESSION_IDLE_MS)
    expect(server.access.bySession(secret)).toBeUndefined()
  })

  it('end unused', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    const { secret } = await administrator(server)
    clock.advance(SESSION_IDLE_MS)
    expect(server.access.bySession(secret)).toBeUndefined()
    await server.access.login('ana', 'correct horse')
    expect(server.view.list(sessionKind)).toHaveLength(1)
  })

  it('end with a logout, on the server too', async () => {
    const server = await testServer()
    const { secret } = await administrator(server)
    const cookie = `${COOKIE}=${secret}`
    const out = await nobody(server, 'POST', '/v1/logout', { cookie, ...SAME })
    expect(out.statusCode).toBe(204)
    expect(out.cookies.find((c) => c.name === COOKIE)?.value).toBe('')
    expect((await nobody(server, 'GET', '/v1/session', { cookie })).statusCode).toBe(401)
    expect((await server.ask('POST', '/v1/logout')).json().code).toBe('wrong_state')
  })
})

describe('login', () => {
  it('tells nothing of why it failed', async () => {
    const server = await testServer()
    await administrator(server)
    const wrong = await login(server, 'wrong')
    const unknown = await login(server, 'wrong', 'bob')
    expect(wrong.statusCode).toBe(401)
    expect(wrong.json()).toEqual(unknown.json())
    expect((await login(server, 'correct horse')).statusCode).toBe(200)
  })

  it('is slowed down where it fails, and not from elsewhere', async () => {
    const server = await testServer()
    await administrator(server)
    const codes = []
    for (let i = 0; i < 7; i++) codes.push((await login(server, 'wrong')).statusCode)
    expect(codes).toEqual([401, 401, 401, 401, 401, 429, 429])
    const refused = await login(server, 'correct horse')
    expect(refused.statusCode).toBe(429)
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0)
    expect((await login(server, 'correct horse', 'ana', '192.0.2.2')).statusCode).toBe(200)
  })

  it('limits the guesses of a setup code', async () => {
    const server = await testServer()
    const codes = []
    for (let i = 0; i < 7; i++) {
      const answer = await server.app.inject({
        method: 'POST',
        url: '/v1/setup',
        headers: { host: 'localhost' },
        payload: { code: 'guess', user: 'eve', password: 'correct horse' },
        remoteAddress: '192.0.2.1',
      })
      codes.push(answer.statusCode)
    }
    expect(codes).toEqual([403, 403, 403, 403, 403, 429, 429])
  })
})

describe('the limiter', () => {
  it('doubles the wait up to a ceiling', () => {
    expect([0, 4, 5, 6, 7, 100].map((n) => delay_ms(n, SOURCE_RULE))).toEqual([0, 0, 1000, 2000, 4000, 900_000])
    expect(delay_ms(1000, USER_RULE)).toBe(5000)
  })
  it('counts tries before they are decided, and forgets them with success', () => {
    let now = 0
    const limiter = new LoginLimiter(() => now)
    const tries = Array.from({ length: 5 }, () => limiter.attempt('192.0.2.1', 'ana'))
    expect(() => limiter.attempt('192.0.2.1', 'ana')).toThrow(/1 s/)
    now = 1000
    limiter.attempt('192.0.2.1', 'ana').succeeded()
    tries[0]?.succeeded()
    for (let i = 0; i < 5; i++) limiter.attempt('192.0.2.1', 'ana')
    expect(() => limiter.attempt('192.0.2.1', 'ana')).toThrow()
  })
  it('delays an account attacked from many sources by seconds only', () => {
    let now = 0
    const limiter = new LoginLimiter(() => now)
    let refused = 0
    for (let i = 0; i < 200; i++) {
      try {
        limiter.attempt(`192.0.2.${i}`, 'ana')
      } catch {
        refused += 1
      }
    }
    expect(refused).toBe(190)
    now = 5000
    limiter.attempt('198.51.100.1', 'ana').succeeded()
  })
  it.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8:1:2::6', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::1', '::1'],
  ])('counts %s as %s', (address, key) => expect(sourceKey(address)).toBe(key))
})

describe('tokens', () => {
  it('are shown once, work at once, and end at once', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    const made = await server.ask('POST', '/v1/tokens', { payload: { name: 'robot', scope: 'read', days: 1 } })
    expect(made.statusCode).toBe(201)
    const { id, secret, expires_at } = made.json()
    expect(isId(id)).toBe(true)
    expect(secret).toMatch(/^wadah_tok-[a-z2-7]{10}_[A-Za-z0-9_-]{43}$/)
    expect(expires_at).toBe('2026-01-02T00:00:00.000Z')
    const use = () => nobody(server, 'GET', '/v1/session', { authorization: `Bearer ${secret}` })
    expect((await use()).json()).toMatchObject({ user: 'robot', scope: 'read', expires_at })
    const list = await server.ask('GET', '/v1/tokens')
    expect(
      list
        .json()
        .items.map((t: { name: string }) => t.name)
        .toSorted(),
    ).toEqual(['full', 'read', 'robot'])
    expect(list.body).not.toContain(secret.slice(-43))
    expect((await server.ask('POST', '/v1/tokens', { payload: { name: 'robot', scope: 'full' } })).json().code).toBe(
      'name_taken',
    )
    expect((await server.ask('DELETE', '/v1/tokens/robot')).statusCode).toBe(204)
    expect((await use()).statusCode).toBe(401)
    expect((await server.ask('DELETE', `/v1/tokens/${id}`)).statusCode).toBe(404)
    expect((await server.ask('POST', '/v1/tokens', { payload: { name: 'robot', scope: 'full' } })).statusCode).toBe(201)
  })

  it('end on their day', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    const { secret } = (
      await server.ask('POST', '/v1/tokens', { payload: { name: 'robot', scope: 'read', days: 1 } })
    ).json()
    const authorization = `Bearer ${secret}`
    clock.advance(24 * 3_600_000 - 1)
    expect((await nobody(server, 'GET', '/v1/session', { authorization })).statusCode).toBe(200)
    clock.advance(1)
    expect((await nobody(server, 'GET', '/v1/session', { authorization })).json().detail).toContain(
      'ended at 2026-01-02',
    )
  })

  it('remember when they were used, with few writes', async () => {
    const clock = new FakeClock()
    const server = await testServer({ clock })
    for (let i = 0; i < 20; i++) await server.ask('GET', '/v1/vms')
    const token = () => server.view.list(tokenKind).find((t) => t.value.name === 'full')
    await expect.poll(() => token()?.value.last_used_ms).toBe(clock.now_ms())
    expect(token()?.version).toBe(2)
  })

  it.each(['Basic YTpi', 'Bearer', 'Bearer ', 'Bearer nonsense', 'wadah_x', 'Bearer wadah_tok-aaaaaaaaaa_x'])(
    'refuses "%s"',
    async (authorization) => {
      const server = await testServer()
      const answer = await nobody(server, 'GET', '/v1/vms', { authorization })
      expect(answer.statusCode).toBe(401)
      expect(answer.headers['www-authenticate']).toContain('Bearer')
    },
  )
})

it('passwords are checked with the parameters they were made with', async () => {
  const stored = await hashPassword('secret', { memory_kib: 64, passes: 1, parallelism: 1 })
  expect(stored).toContain('$m=64,t=1,p=1$')
  expect(await verifyPassword('secret', stored)).toBe(true)
  expect(await verifyPassword('Secret', stored)).toBe(false)
  // The same letters, composed otherwise.
  expect(await verifyPassword('caf\u00e9', await hashPassword('cafe\u0301'))).toBe(true)
  expect(await verifyPassword('secret', 'nonsense')).toBe(false)
  expect(await verifyPassword('', NO_PASSWORD)).toBe(false)
})
