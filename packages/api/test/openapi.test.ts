import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import Type from 'typebox'
import { expect, it } from 'vitest'
import { endpoint } from '../src/endpoint.ts'
import { allEndpoints } from '../src/endpoints/all.ts'
import { FAULTS } from '../src/fault.ts'
import { openapiDocument } from '../src/openapi.ts'

type Doc = {
  paths: Record<
    string,
    Record<
      string,
      {
        operationId: string
        responses: Record<string, { headers?: object; content?: object }>
        parameters?: { name: string }[]
      }
    >
  >
  components: { schemas: Record<string, object> }
}
const doc = openapiDocument('1.2.3') as unknown as Doc
const operations = Object.values(doc.paths).flatMap((p) => Object.values(p))

it('has every endpoint once, with an id of its own', () => {
  expect(operations).toHaveLength(allEndpoints.length + 1)
  expect(new Set(operations.map((o) => o.operationId)).size).toBe(operations.length)
  for (const e of allEndpoints) {
    const responses = doc.paths[e.path]?.[e.method.toLowerCase()]?.responses ?? {}
    expect([e.id, Object.keys(responses).some((status) => status.startsWith('2'))]).toEqual([e.id, true])
  }
})

it('names each schema once and refers to it', () => {
  const names = Object.keys(doc.components.schemas)
  for (const name of ['Vm', 'VmCreate', 'Job', 'Fault', 'Event', 'VmPage']) expect(names).toContain(name)
  const text = JSON.stringify(doc.paths)
  expect(text).toContain('#/components/schemas/VmCreate')
  expect(text).not.toContain('"title"')
  for (const [, name] of JSON.stringify(doc).matchAll(/#\/components\/schemas\/(\w+)/g)) expect(names).toContain(name)
})

it('refuses two schemas of one title', () => {
  const one = endpoint({
    id: 'a.b',
    method: 'GET',
    path: '/a',
    summary: '',
    tag: 'vms',
    needs: 'read',
    answer: 'ok',
    response: Type.Object({}, { title: 'X' }),
  })
  const two = { ...one, path: '/b', response: Type.Object({ y: Type.String() }, { title: 'X' }) }
  expect(() => openapiDocument('1', [one, two])).toThrow('two different schemas are called X')
})

it('says how long actions, generations and streams are answered', () => {
  const start = doc.paths['/v1/vms/{vm}/start']?.post
  expect(Object.keys(start?.responses ?? {})).toEqual(expect.arrayContaining(['200', '202', '401', '409', '422']))
  expect(start?.responses['202']?.headers).toHaveProperty('Location')
  expect(start?.parameters?.map((p) => p.name)).toEqual(['vm', 'wait', 'Idempotency-Key'])
  expect(doc.paths['/v1/vms/{vm}']?.patch?.parameters?.map((p) => p.name)).toContain('If-Match')
  expect(doc.paths['/v1/events']?.get?.responses['200']?.content).toHaveProperty('text/event-stream')
  expect(doc.paths['/v1/console']?.get?.responses).toHaveProperty('101')
})

it('gives every code of a fault a status that HTTP has', () => {
  for (const { status } of Object.values(FAULTS)) expect(status).toBeGreaterThanOrEqual(400)
})

it('passes redocly lint', { timeout: 60_000 }, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'wadah-openapi-'))
  const root = join(import.meta.dirname, '../../..')
  try {
    const file = join(directory, 'openapi.json')
    await writeFile(file, JSON.stringify(doc))
    const program = join(root, 'node_modules/@redocly/cli/bin/cli.js')
    const args = [
      program,
      'lint',
      file,
      '--config',
      join(root, 'redocly.yaml'),
      '--format',
      'stylish',
      '--max-problems',
      '20',
    ]
    const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true', CI: 'true' }
    const done = await promisify(execFile)(process.execPath, args, { env, cwd: directory }).then(
      () => '',
      (error: { stdout: string; stderr: string }) => error.stdout + error.stderr,
    )
    expect(done).toBe('')
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
})
