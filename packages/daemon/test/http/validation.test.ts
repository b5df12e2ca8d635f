/** Bad input for every endpoint, made from its schemas: each is refused by name, none is our fault. */
import type { Endpoint } from '@wadah/api/endpoint'
import { FAULTS } from '@wadah/api/fault'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BODIES, every, examplePath, QUERIES, type TestServer, testServer } from './harness.ts'

type Schema = {
  type?: string
  properties?: Record<string, Schema>
  required?: string[]
  additionalProperties?: boolean
  minimum?: number
  maximum?: number
  minLength?: number
  maxLength?: number
  maxItems?: number
  minItems?: number
  pattern?: string
  enum?: unknown[]
  const?: unknown
  anyOf?: Schema[]
  items?: Schema
  patternProperties?: Record<string, Schema>
}
type Bad = { value: unknown; field: string }

const wrongTypes: Record<string, unknown[]> = {
  string: [5, true, null, [], {}],
  integer: ['five', 1.5, true, null, [], {}, '7'],
  number: ['five', true, null, [], {}],
  boolean: ['yes', 1, null, [], {}],
  object: ['text', 5, true, []],
  array: ['text', 5, true, {}],
}

/** Values that the schema refuses, with the field that is to blame. */
function* bad(schema: Schema, at: string, good: unknown): Generator<Bad> {
  if (schema.anyOf) {
    if (!schema.anyOf.some((s) => s.type === 'object')) yield { value: { no: 1 }, field: at }
    if (schema.anyOf.every((s) => s.const !== undefined)) yield { value: 'no-such-choice', field: at }
    return
  }
  if (schema.type) for (const value of wrongTypes[schema.type] ?? []) yield { value, field: at }
  if (schema.enum) yield { value: 'no-such-choice', field: at }
  if (schema.minimum !== undefined) yield { value: schema.minimum - 1, field: at }
  if (schema.maximum !== undefined) yield { value: schema.maximum + 1, field: at }
  if (schema.minLength) yield { value: '', field: at }
  if (schema.maxLength !== undefined) yield { value: 'a'.repeat(schema.maxLength + 1), field: at }
  if (schema.pattern) yield { value: '\u0000 no!', field: at }
  if (schema.maxItems !== undefined) yield { value: Array(schema.maxItems + 1).fill('a'), field: at }
  if (schema.items)
    for (const inner of bad(schema.items, `${at}/0`, undefined)) yield { ...inner, value: [inner.value] }
  if (schema.patternProperties) yield { value: { 'Not a key!': 'x' }, field: `${at}/Not a key!` }
  if (!schema.properties) return
  const base = (good ?? {}) as Record<string, unknown>
  for (const name of schema.required ?? []) {
    if (!(schema.required ?? []).every((other) => other === name || other in base)) continue
    const { [name]: _, ...rest } = base
    yield { value: rest, field: `${at}/${name}` }
  }
  const complete = (schema.required ?? []).every((name) => name in base)
  if (schema.additionalProperties === false)
    yield { value: { ...base, no_such_field: 1 }, field: `${at}/no_such_field` }
  if (!complete) return
  for (const [name, inner] of Object.entries(schema.properties)) {
    for (const found of bad(inner, `${at}/${name}`, base[name]))
      yield { ...found, value: { ...base, [name]: found.value } }
  }
}

function send(server: TestServer, e: Endpoint, body: unknown) {
  const text = JSON.stringify(body)
  return server.ask(e.method, examplePath(e.path) + (QUERIES[e.id] ?? ''), {
    payload: text,
    headers: { 'content-type': 'application/json' },
  })
}

describe.each(
  every.filter((e) => e.method !== 'GET' && !e.accepts && e.id !== 'access.setupCode').map((e) => [e.id, e] as const),
)('%s', (_, e) => {
  it('refuses every bad body, naming the field', async () => {
    const server = await testServer()
    const schema = (e.body ?? { type: 'object', properties: {}, additionalProperties: false }) as Schema
    for (const { value, field } of bad(schema, '', BODIES[e.id])) {
      const answer = await send(server, e, value)
      const problem = answer.json()
      const about = `${JSON.stringify(value).slice(0, 200)} → ${answer.body}`
      // Logging in is limited: that answer is right too.
      if (problem.code === 'rate_limited') continue
      expect(answer.statusCode, about).toBe(422)
      expect(problem.code, about).toBe('invalid')
      expect(problem.field, about).toBe(field)
      expect(problem.detail.length, about).toBeGreaterThan(10)
      expect(problem.detail, about).not.toMatch(/must (be|match|have|NOT)|undefined|\[object/)
    }
    expect(server.calls).toEqual([])
  })

  it('survives anything that is JSON', async () => {
    const server = await testServer()
    await fc.assert(
      fc.asyncProperty(fc.jsonValue({ maxDepth: 4 }), async (value) => {
        const answer = await send(server, e, value)
        expect(answer.statusCode, `${JSON.stringify(value)} → ${answer.body}`).toBeLessThan(500)
      }),
      { numRuns: 40 },
    )
  })
})

describe.each(every.filter((e) => e.query).map((e) => [e.id, e] as const))('query of %s', (_, e) => {
  it('refuses what it does not know and what is out of range', async () => {
    const server = await testServer()
    const properties = (e.query as Schema).properties ?? {}
    const base = QUERIES[e.id]?.slice(1)
    const tries: [string, string][] = [['no_such_parameter=1', '/no_such_parameter']]
    for (const [name, s] of Object.entries(properties)) {
      if (s.minimum !== undefined) tries.push([`${name}=${s.minimum - 1}`, `/${name}`])
      if (s.maximum !== undefined) tries.push([`${name}=${s.maximum + 1}`, `/${name}`])
      if (s.type === 'integer')
        tries.push([`${name}=abc`, `/${name}`], [`${name}=1.5`, `/${name}`], [`${name}=`, `/${name}`])
      if (s.type === 'boolean') tries.push([`${name}=yes`, `/${name}`])
      if (s.enum) tries.push([`${name}=no-such`, `/${name}`])
      tries.push([`${name}=1&${name}=2`, `/${name}`])
      if (s.maxLength !== undefined) tries.push([`${name}=${'a'.repeat(s.maxLength + 1)}`, `/${name}`])
    }
    for (const [text, field] of tries) {
      // What is asked wrongly stands once.
      const name = text.slice(0, text.indexOf('='))
      const query = base === undefined || base.startsWith(`${name}=`) ? text : `${base}&${text}`
      const body = BODIES[e.id]
      const answer = await server.ask(e.method, `${examplePath(e.path)}?${query}`, {
        ...(body !== undefined && { payload: body as object }),
      })
      expect([text, answer.statusCode, answer.json().field]).toEqual([text, 422, field])
      expect(answer.json().detail).toContain(`query parameter ${field.slice(1)}`)
    }
    expect(server.calls).toEqual([])
  })
})

it('says what was wrong and what would be right', async () => {
  const server = await testServer()
  const create = async (body: object) =>
    (await server.ask('POST', '/v1/vms', { payload: body })).json().detail as string
  expect(await create({ name: 'web', memory_mib: 5 })).toBe(
    '/memory_mib: 5 is too small; 16 is the least (guest RAM, MiB)',
  )
  expect(await create({ name: 'web', memory_mb: 512 })).toBe(
    '/memory_mb: there is no field "memory_mb"; did you mean "memory_mib"?',
  )
  expect(await create({ nmae: 'web' })).toBe('/nmae: there is no field "nmae"; did you mean "name"?')
  expect(await create({})).toBe('/name: it is missing (RFC 1123 label: small letters, digits, hyphens)')
  expect(await create({ name: 'Web!' })).toContain('"Web!" is not a name: use 1 to 63 small letters')
  expect(await create({ name: 'web', clone: 'copy' })).toBe('/clone: "copy" is not one of linked, full')
  expect(await create({ name: 'web', cpus: 'two' })).toBe(
    '/cpus: "two" is text; a whole number is needed (virtual CPUs)',
  )
  expect(await create({ name: 'web', cpus: 1.5 })).toBe(
    '/cpus: 1.5 is a number; a whole number is needed (virtual CPUs)',
  )
  expect(await create({ name: 'web', nics: [{ publish: [{ port: 0, to: 80 }] }] })).toContain(
    '/nics/0/publish/0/port: 0 is too small',
  )
  expect(await create({ name: 'web', limits: { cpu_cap_percent: 0 } })).toContain(
    '/limits/cpu_cap_percent: 0 is too small; 1 is the least',
  )
  const edit = await server.ask('PATCH', '/v1/vms/web', { payload: {} })
  expect(edit.json().detail).toBe('the body: give at least one field')
  const list = await server.ask('GET', '/v1/vms?stat=running')
  expect(list.json()).toMatchObject({
    code: 'invalid',
    field: '/stat',
    detail: expect.stringContaining('did you mean "state"?'),
  })
})

it('never repeats a secret', async () => {
  const server = await testServer()
  for (const [path, body] of [
    ['/v1/vms', { name: 'web', seed: { password: 'hunt er2' } }],
    ['/v1/setup', { code: 'x', user: 'ana', password: 'hunter2' }],
    ['/v1/login', { user: 'ana', password: ['hunter2'] }],
    ['/v1/setup', { code: { hunter2: 1 }, user: 'ana', password: 'hunter2hunter2' }],
  ] as const) {
    const answer = await server.ask('POST', path, { payload: body })
    expect(answer.statusCode).toBe(422)
    expect(answer.body).not.toMatch(/hunt ?er2/)
  }
})

describe('bodies', () => {
  const post = async (
    payload: string | Buffer,
    headers: Record<string, string> = { 'content-type': 'application/json' },
  ) => {
    const server = await testServer()
    const answer = await server.ask('POST', '/v1/vms', { payload, headers })
    expect(server.calls).toEqual([])
    return answer
  }
  it.each(
    [
      ['{"name": "web"', 'malformed'],
      ['nonsense', 'malformed'],
      ['{"__proto__": {"x": 1}, "name": "web"}', 'malformed'],
      ['{"constructor": {"prototype": {"x": 1}}, "name": "web"}', 'malformed'],
      ['null', 'invalid'],
      ['[]', 'invalid'],
      [`${'['.repeat(100_000)}`, 'malformed'],
      [`${'['.repeat(100_000)}${']'.repeat(100_000)}`, 'invalid'],
    ].map(([text, code]) => [text?.slice(0, 40), code, text] as const),
  )('refuses %s as %s', async (_, code, text) => {
    const answer = await post(text as string)
    expect(answer.json().code).toBe(code)
    expect(answer.statusCode).toBe(FAULTS[code as 'invalid'].status)
  })

  it('413 for what is too large, 415 for what is not JSON', async () => {
    expect((await post(JSON.stringify({ name: 'x'.repeat(1024 * 1024) }))).json().code).toBe('too_large')
    for (const type of [
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'application/octet-stream',
      'nonsense',
    ]) {
      const answer = await post('name=web', { 'content-type': type })
      expect([type, answer.statusCode, answer.json().code]).toEqual([type, 415, 'unsupported_media_type'])
    }
    expect((await post('{"name":"web"}', {})).statusCode).toBe(415)
  })

  it('an upload takes octets only', async () => {
    const server = await testServer()
    const answer = await server.ask('PUT', '/v1/images/tiny/files/kernel', { payload: {} })
    expect(answer.statusCode).toBe(415)
    const wrong = await server.ask('PUT', '/v1/images/tiny/files/rootfs', {
      payload: 'x',
      headers: { 'content-type': 'application/octet-stream' },
    })
    expect(wrong.json()).toMatchObject({
      code: 'invalid',
      field: '/file',
      detail: expect.stringContaining('kernel, initrd'),
    })
  })

  it('a body may be left out where all of its fields may', async () => {
    const server = await testServer()
    expect((await server.ask('POST', '/v1/vms/web/shutdown')).statusCode).toBe(202)
    expect(server.calls.at(-1)?.args[2]).toEqual({ timeout_s: 120, force: false })
    expect((await server.ask('POST', '/v1/vms/web/start', { payload: {} })).statusCode).toBe(202)
    // How many at a time is the host's to say.
    expect((await server.ask('POST', '/v1/cluster/hosts/h1/drain')).statusCode).toBe(202)
    expect(server.calls.at(-1)?.args[2]).not.toHaveProperty('at_once')
    expect(
      (await server.ask('POST', '/v1/vms', { headers: { 'content-type': 'application/json' } })).json().field,
    ).toBe('/name')
  })
})
