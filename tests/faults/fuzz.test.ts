/**
 * Random requests (ten thousand by `make faults`, the first 4,000 of them at each landing) against the OpenAPI document that the daemon serves: every answer is one that the document
 * foresees, none is a 500, and the daemon is the same process in the end.
 */
import { hostname } from 'node:os'
import { Ajv2020 } from 'ajv/dist/2020.js'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { endpoints } from '@wadah/api/endpoints/all'
import { Daemon, purgeDead } from '../kit/daemon.ts'
import { ALL_FAULTS } from '../kit/sample.ts'
import { type Operation, type Request, operations, requests } from '../kit/fuzz.ts'

const COUNT = ALL_FAULTS ? 10_000 : 4_000
const SEED = Number(process.env['WADAH_FUZZ_SEED'] ?? 20_261_125)
const AT_ONCE = 8

let d: Daemon
let job: string
beforeAll(async () => {
  purgeDead()
  d = new Daemon()
  await d.start()
  await d.tiny()
  // Of each kind there is something under a name that the requests know, so that they reach what lies within: a VM's snapshots, say.
  await d.create({ name: 'tiny', protected: true, disks: [{ size_mib: 8 }] })
  const taken = await d.done(
    await d.api.call(endpoints.snapshots.create, { params: { vm: 'tiny' }, body: { name: 'default' } }),
  )
  job = taken.id
  await d.api.call(endpoints.firewallGroups.create, { body: { name: 'default', rules: [] } })
})
afterAll(async () => {
  await d.purge()
})

/** What would take the machine rather than the daemon to its end. */
const limits = {
  wait: fc.constantFrom(0, 1),
  timeout_s: fc.constantFrom(1, 2),
  timeout_ms: fc.constantFrom(1000),
  recipe: fc.constantFrom('tiny', 'nowhere'),
  memory_mib: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(96, 128) }, { weight: 1, arbitrary: fc.integer() }),
  start: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.boolean() }),
  wait_ready: fc.constant(false),
  // The one host there is, mostly.
  host: fc.oneof({ weight: 5, arbitrary: fc.constant(hostname()) }, { weight: 1, arbitrary: fc.constant('nowhere') }),
  // A subnet that nobody has: a bridge in one that is in use is refused.
  subnet: fc.integer({ min: 0, max: 40 }).map((n) => `10.231.${n}.0/24`),
  path: fc.constantFrom('/srv', '/etc', '/srv/../etc', '/proc/self', '/nowhere', '/'),
}

const ajv = new Ajv2020({ strict: false, validateFormats: false })
const compiled = new WeakMap<object, (value: unknown) => boolean>()
function fits(schema: object, value: unknown): boolean {
  let check = compiled.get(schema)
  if (!check) compiled.set(schema, (check = ajv.compile(schema) as (value: unknown) => boolean))
  return check(value)
}

type Answer = { status: number; type: string; text: string; location: string | undefined }
async function ask(r: Pick<Request, 'path' | 'headers' | 'body'> & { method: string }): Promise<Answer> {
  const signal = AbortSignal.timeout(60_000)
  const headers = { host: 'localhost', ...r.headers }
  const {
    status,
    headers: h,
    body,
  } = await d.send({
    method: r.method,
    path: r.path,
    headers,
    signal,
    ...(r.body === undefined ? {} : { body: r.body }),
  })
  const parts: Uint8Array[] = []
  const type = String(h['content-type'] ?? '')
  try {
    let bytes = 0
    for await (const part of body) {
      parts.push(part)
      bytes += part.length
      // A disk that another request has made large is not read to its end.
      if (bytes > ENOUGH_BYTES && !type.includes('json')) break
    }
  } catch (error) {
    // A download that another request has ended (its job cancelled, its VM started) can only be cut: its head is out.
    if (status !== 200 || type.includes('json')) throw error
  }
  return {
    status,
    type,
    text: Buffer.concat(parts).toString('utf8'),
    location: h['location'],
  }
}

const ENOUGH_BYTES = 2 ** 20

/** What is wrong with an answer, going by the document. */
function problem({ responses }: Operation, { status, type, text }: Answer): string | undefined {
  const response = responses[String(status)]
  if (status === 500 || !response) return `${status} is not in the document`
  const [media] = Object.values(response.content ?? {})
  if (!media || text === '') return undefined
  if (!type.includes('json')) return undefined
  return fits(media.schema, JSON.parse(text)) ? undefined : `the body does not fit: ${ajv.errorsText()}`
}

describe('random requests', () => {
  test('are all answered as the document says', async () => {
    const { pid } = d
    const document = JSON.parse((await ask({ method: 'GET', path: '/v1/openapi.json', headers: {} })).text)
    const all = operations(document).filter(
      // Streams without an end, and a login that would lock itself.
      ({ path }) => !['/v1/events', '/v1/console', '/v1/setup', '/v1/setup/code', '/v1/login'].includes(path),
    )
    const weight = ({ method, path }: Operation) =>
      method === 'DELETE' || /exec|freeze|thaw|file|guest|health/.test(path)
        ? 1
        : path === '/v1/vms' || path === '/v1/volumes'
          ? 6
          : method === 'POST'
            ? 2
            : 4
    const queue = fc.sample(
      requests(all, { limits: { ...limits, job: fc.constantFrom(job, job, 'job-aaaaaaaaaa') }, weight }),
      { numRuns: COUNT, seed: SEED },
    )
    const wrong: string[] = []
    const known = new Set<string>()
    /** One of each kind is enough to see. */
    const note = (kind: string, text: string) => {
      if (!known.has(kind)) wrong.push(text)
      known.add(kind)
    }
    let good = 0
    const seen = new Map<number, number>()
    const one = async (r: Request) => {
      const { method } = r.operation
      const answer = await ask({ ...r, method }).catch((error: Error) => {
        throw new Error(`${method} ${r.path} ${r.body?.slice(0, 300) ?? ''}: ${error.message}`, { cause: error })
      })
      seen.set(answer.status, (seen.get(answer.status) ?? 0) + 1)
      const said = problem(r.operation, answer)
      if (said !== undefined)
        note(
          `${method} ${r.operation.path} ${answer.status}`,
          `${method} ${r.path} ${r.body?.slice(0, 300) ?? ''} → ${said}: ${answer.text.slice(0, 1500)}`,
        )
      if (answer.status >= 300) return
      good++
      if (method === 'GET') return
      // What was changed is read.
      const path = answer.location ?? r.operation.path.split('/').slice(0, 3).join('/')
      const read = await ask({ method: 'GET', path, headers: {} })
      if (![200, 404].includes(read.status))
        note(`GET ${r.operation.path}`, `GET ${path} → ${read.status}: ${read.text.slice(0, 300)}`)
    }
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let next = queue.pop(); next && wrong.length < 20; next = queue.pop()) await one(next)
      }),
    )
    if (wrong.length > 0) console.log(d.said)
    expect({ seed: SEED, wrong }).toEqual({ seed: SEED, wrong: [] })
    expect(good / COUNT, JSON.stringify([...seen])).toBeGreaterThan(1 / 3)
    await d.api.call(endpoints.system.ping)
    expect(d.pid).toBe(pid)
  }, 900_000)
})
