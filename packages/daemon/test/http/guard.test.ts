import { Script } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { crossSiteProblem, hostName, hostProblem } from '../../src/http/guard.ts'
import { COOKIE } from '../../src/http/routes/access.ts'
import { testServer } from './harness.ts'

describe('the Host header', () => {
  const names = new Set(['localhost', '127.0.0.1', '::1', 'box'])
  it.each(['localhost', 'localhost:8443', 'LOCALHOST:1', 'localhost.', '127.0.0.1:8443', '[::1]:8443', 'box'])(
    '%s is ours',
    (host) => {
      expect(hostProblem(host, names)).toBeUndefined()
    },
  )
  it.each([
    'evil.example',
    'localhost.evil.example',
    'localhost:8443@evil.example',
    '',
    ' ',
    '::1',
    '127.0.0.1.nip.io',
    '10.0.0.9',
  ])('%s is not', (host) => {
    expect(hostProblem(host, names)?.fault.code).toBe('forbidden')
  })
  it('may be the address the connection was made to', () => {
    expect(hostProblem('10.0.0.9:1', names, '10.0.0.9')).toBeUndefined()
    expect(hostProblem('10.0.0.9:1', names, '::ffff:10.0.0.9')).toBeUndefined()
    expect(hostName(undefined)).toBeUndefined()
  })

  it('keeps rebound names out of everything, the pages and the logins too', async () => {
    const server = await testServer()
    for (const [method, path] of [
      ['GET', '/'],
      ['GET', '/v1/ping'],
      ['POST', '/v1/login'],
      ['GET', '/v1/vms'],
      ['GET', '/nowhere'],
    ] as const) {
      const answer = await server.ask(method, path, { headers: { host: 'evil.example:8443' } })
      expect([path, answer.statusCode]).toEqual([path, 403])
    }
  })
})

describe('other sites', () => {
  const came = { method: 'POST', host: 'box:8443', origin: undefined, site: undefined, byCookie: false }
  it.each([
    ['a program', {}, true],
    ['a program with a cookie and no origin', { byCookie: true }, false],
    ['our page', { byCookie: true, origin: 'https://box:8443', site: 'same-origin' }, true],
    ['our page, older browser', { byCookie: true, origin: 'https://box:8443' }, true],
    ['our page over http', { byCookie: true, origin: 'http://box:8443' }, false],
    ['another port', { byCookie: true, origin: 'https://box:9', site: 'same-site' }, false],
    ['another site', { byCookie: true, origin: 'https://evil.example', site: 'cross-site' }, false],
    ['another site that logs in', { origin: 'https://evil.example' }, false],
    ['a sandboxed page', { origin: 'null' }, false],
    ['a page that reads with the cookie', { method: 'GET', byCookie: true, site: 'cross-site' }, false],
    ['a link to a page', { method: 'GET', site: 'cross-site' }, true],
    ['the address bar', { method: 'GET', byCookie: true, site: 'none' }, true],
  ])('%s', (_, more, allowed) => {
    expect(crossSiteProblem({ ...came, ...more }) === undefined).toBe(allowed)
  })

  it('cannot use a session', async () => {
    const server = await testServer()
    const { code } = await server.access.newSetupCode()
    const { secret } = await server.access.setup(code, 'ana', 'correct horse')
    const ask = (headers: Record<string, string>) =>
      server.app.inject({
        method: 'POST',
        url: '/v1/vms/web/start',
        headers: { host: 'localhost', cookie: `${COOKIE}=${secret}`, ...headers },
      })
    expect((await ask({ origin: 'https://localhost', 'sec-fetch-site': 'same-origin' })).statusCode).toBe(202)
    expect((await ask({ origin: 'https://evil.example', 'sec-fetch-site': 'cross-site' })).statusCode).toBe(403)
    expect((await ask({})).statusCode).toBe(403)
    expect((await ask({ origin: 'https://localhost', 'sec-fetch-site': 'cross-site' })).statusCode).toBe(403)
  })
})

describe('the pages', () => {
  it.each(['/', '/setup'])('%s holds nothing inline and allows nothing from elsewhere', async (path) => {
    const server = await testServer()
    const answer = await server.app.inject({
      url: path,
      headers: { host: 'localhost', 'sec-fetch-site': 'cross-site' },
    })
    expect(answer.statusCode).toBe(200)
    expect(answer.headers['content-security-policy']).toBe(
      "default-src 'none';script-src 'self';style-src 'self';connect-src 'self';form-action 'self';base-uri 'none';frame-ancestors 'none'",
    )
    expect(answer.headers['x-content-type-options']).toBe('nosniff')
    expect(answer.headers['referrer-policy']).toBe('no-referrer')
    expect(answer.body).not.toMatch(/<script(?![^>]*src=)|<style| style=| on\w+=/)
    for (const [, url] of answer.body.matchAll(/(?:src|href)="(\/assets[^"]+)"/g)) {
      const asset = await server.app.inject({ url: url as string, headers: { host: 'localhost' } })
      expect(asset.statusCode).toBe(200)
      if (url?.endsWith('.js')) expect(() => new Script(asset.body)).not.toThrow()
    }
  })

  it('have every text in both languages', async () => {
    const server = await testServer()
    const get = async (url: string) => (await server.app.inject({ url, headers: { host: 'localhost' } })).body
    const script = await get('/assets/page.js')
    const pages = (await get('/')) + (await get('/setup'))
    const keys = new Set([...pages.matchAll(/data-text="(\w+)"/g)].map((m) => m[1] as string))
    expect(keys.size).toBeGreaterThan(10)
    const indonesian = script.slice(script.indexOf('id: {'), script.indexOf('en: {'))
    for (const key of keys) expect(indonesian).toContain(`${key}:`)
  })
})
