import { readFileSync } from 'node:fs'
import https from 'node:https'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead, until } from '../kit/daemon.ts'

let d: Daemon

beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
})
afterAll(async () => {
  await d.purge()
})

/** HTTPS, trusting the daemon's own certificate and no other. */
async function over(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; cookie?: string; body: any }> {
  const ca = readFileSync(`${d.data}/tls/tls.crt`)
  return new Promise((resolve, reject) => {
    const type = body === undefined ? {} : { 'content-type': 'application/json' }
    const req = https.request(
      new URL(path, d.url),
      { method, ca, headers: { ...type, ...headers }, agent: false },
      (res) => {
        let text = ''
        res.on('data', (chunk) => (text += chunk))
        res.on('end', () => {
          const cookie = res.headers['set-cookie']?.[0]?.split(';')[0]
          resolve({
            status: res.statusCode ?? 0,
            ...(cookie ? { cookie } : {}),
            body: text === '' ? undefined : JSON.parse(text),
          })
        })
      },
    )
    req.once('error', reject)
    req.end(body === undefined ? undefined : JSON.stringify(body))
  })
}

describe('the API', () => {
  test('the first administrator by the one-time link, then tokens with and without rights', async () => {
    expect((await over('GET', '/v1/vms')).status).toBe(401)
    const code = readFileSync(`${d.data}/setup-link`, 'utf8').trim().split('#')[1]
    const setup = { code, user: 'admin', password: 'a long enough password' }
    expect((await over('POST', '/v1/setup', setup)).status).toBe(200)
    expect((await over('POST', '/v1/setup', setup)).status).toBeGreaterThanOrEqual(400)
    const login = await over('POST', '/v1/login', { user: 'admin', password: 'a long enough password' })
    expect(login.status).toBe(200)
    const cookie = { cookie: login.cookie ?? '', origin: d.url }
    const made = await over('POST', '/v1/tokens', { name: 'look', scope: 'read' }, cookie)
    expect(made.status).toBe(201)
    const bearer = { authorization: `Bearer ${made.body.secret}` }
    expect((await over('GET', '/v1/vms', undefined, bearer)).status).toBe(200)
    expect((await over('POST', '/v1/vms', { name: 'x' }, bearer)).body).toMatchObject({
      status: 403,
      code: 'forbidden',
    })
    expect((await over('DELETE', '/v1/tokens/look', undefined, cookie)).status).toBe(204)
    expect((await over('GET', '/v1/vms', undefined, bearer)).status).toBe(401)
    const audit = await d.api.call(endpoints.access.audit)
    expect(audit.items.some((a) => a.path === '/v1/tokens' && a.method === 'POST')).toBe(true)
    expect(readFileSync(`${d.data}/audit.log`, 'utf8')).not.toContain('a long enough password')
  })

  test('every refusal names field, what was wrong, and changes nothing', async () => {
    const cases: [string, string, unknown, number, string, string?][] = [
      ['POST', '/v1/vms', { name: 'Bad Name' }, 422, 'invalid', '/name'],
      ['POST', '/v1/vms', { name: 'a', memroy_mib: 1 }, 422, 'invalid', '/memroy_mib'],
      ['POST', '/v1/vms', { name: 'a', memory_mib: 100_000_000 }, 422, 'invalid', '/memory_mib'],
      ['POST', '/v1/vms', { name: 'a', memory_mib: 4_000_000 }, 422, 'invalid', '/memory_mib'],
      ['POST', '/v1/vms', { name: 'a', image: 'none' }, 404, 'not_found', '/image'],
      ['POST', '/v1/vms', { name: 'a', disk_mib: 60_000_000 }, 507, 'no_room', '/disk_mib'],
      ['POST', '/v1/vms', { name: 'a', nics: [{ network: 'nope' }] }, 404, 'not_found', '/nics/0/network'],
      ['POST', '/v1/vms', { name: 'a', nics: [{ address: '9.9.9.9' }] }, 422, 'invalid', '/nics/0/address'],
      ['POST', '/v1/images/build', { recipe: 'web-sever' }, 404, 'not_found', '/recipe'],
      ['POST', '/v1/pools', { name: 'p', path: '/etc' }, 403, 'forbidden', '/path'],
      ['POST', '/v1/pools', { name: 'p', path: '/mnt/../etc' }, 403, 'forbidden', '/path'],
      ['GET', '/v1/vms/none', undefined, 404, 'not_found'],
      ['GET', '/v1/vms?cursor=%00', undefined, 422, 'invalid', '/cursor'],
      ['GET', '/v1/nothing', undefined, 404, 'not_found'],
    ]
    for (const [method, path, body, status, code, field] of cases) {
      const answer = await d.raw(method, path, body)
      expect({ path, body, status: answer.status, code: answer.body.code, field: answer.body.field }).toEqual({
        path,
        body,
        status,
        code,
        field,
      })
      expect(answer.body.effect).toBe('none')
    }
    expect((await d.raw('GET', '/v1/vms')).body.items).toEqual([])
    expect((await d.raw('GET', '/v1/volumes')).body.items).toEqual([])
  })

  test('the same idempotency key makes one VM', async () => {
    const body = { name: 'once', nics: [] }
    const headers = { 'idempotency-key': 'k1' }
    const [a, b] = [await d.raw('POST', '/v1/vms', body, headers), await d.raw('POST', '/v1/vms', body, headers)]
    expect([a.status, b.status, a.body.id === b.body.id]).toEqual([202, 202, true])
    expect((await d.raw('POST', '/v1/vms', { name: 'other', nics: [] }, headers)).body.code).toBe(
      'idempotency_mismatch',
    )
    await d.done(a.body)
  })

  test('If-Match guards an edit', async () => {
    const vm = await d.vm('once')
    const edit = (generation: number) =>
      d.api.call(endpoints.vms.edit, { params: { vm: 'once' }, body: { cpus: 2 }, generation })
    await edit(vm.generation)
    await expect(edit(vm.generation)).rejects.toMatchObject({ fault: { code: 'precondition_failed' } })
  })

  test('events resume after a restart of the daemon', async () => {
    const stop = new AbortController()
    const seen: { id?: string; data: string }[] = []
    const read = async (lastEventId?: string) => {
      const signal = stop.signal
      for await (const event of await d.api.events({ ...(lastEventId ? { lastEventId } : {}), resource: 'vm', signal }))
        seen.push(event)
    }
    const first = read().catch(() => undefined)
    await d.api.call(endpoints.vms.edit, { params: { vm: 'once' }, body: { description: 'one' } })
    const last = await until('an event', () => seen.findLast((e) => e.id !== undefined)?.id)
    await d.kill('SIGTERM')
    await first
    await d.start()
    await d.api.call(endpoints.vms.edit, { params: { vm: 'once' }, body: { description: 'two' } })
    seen.length = 0
    void read(last).catch(() => undefined)
    const event = await until('the event after it', () => seen.find((e) => e.id !== undefined))
    expect(JSON.parse(event.data)).toMatchObject({ resource: 'vm', change: 'put' })
    // Every event says of which generation it is, those of a state too.
    await d.done(await d.api.call(endpoints.vms.start, { params: { vm: 'once' } }))
    await d.done(await d.api.call(endpoints.vms.stop, { params: { vm: 'once' } }))
    const states = await until('the states', () => {
      const all = seen.map((e) => JSON.parse(e.data) as { state?: string; generation?: number })
      return ['running', 'stopped'].every((s) => all.some((e) => e.state === s)) && all
    })
    expect(states.filter((e) => e.state !== undefined && !(Number(e.generation) >= 1))).toEqual([])
    stop.abort()
  })

  test('the document names every route', async () => {
    const { body } = await d.raw('GET', '/v1/openapi.json')
    expect(body.openapi).toMatch(/^3\.1/)
    expect(Object.keys(body.paths)).toContain('/v1/vms/{vm}/start')
  })

  test('the CLI speaks JSON and ends with the documented codes', async () => {
    const list = d.cli(['vm', 'list', '--json'])
    expect([list.code, JSON.parse(list.stdout).items[0].name]).toEqual([0, 'once'])
    expect(d.cli(['vm', 'show', 'none']).code).toBe(3)
    expect(d.cli(['vm', 'create', 'once']).code).toBe(4)
    expect(d.cli(['vm', 'frobnicate']).code).toBe(2)
    expect(d.cli(['vm', 'delete', 'once']).code).toBe(0)
  })
})
