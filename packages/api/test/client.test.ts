import fc from 'fast-check'
import { describe, expect, expectTypeOf, it } from 'vitest'
import { type ClientRequest, createClient, parseEvents, requestOf, type Transport } from '../src/client.ts'
import { endpoints } from '../src/endpoints/all.ts'
import { fault } from '../src/fault.ts'
import type { Job } from '../src/schema/job.ts'
import type { Vm } from '../src/schema/vm.ts'

async function* chunks(...texts: string[]) {
  for (const text of texts) yield Buffer.from(text)
}
function answering(status: number, body: unknown): { client: ReturnType<typeof createClient>; sent: ClientRequest[] } {
  const sent: ClientRequest[] = []
  const transport: Transport = async (request) => {
    sent.push(request)
    return { status, headers: {}, body: chunks(typeof body === 'string' ? body : JSON.stringify(body)) }
  }
  return { client: createClient(transport), sent }
}
const job = (state: Job['state']) => ({ id: 'job-aaaaaaaaaa', state }) as Job

describe('a call', () => {
  it('sends what the endpoint has', async () => {
    const { client, sent } = answering(200, { id: 'vm-1' })
    await client.call(endpoints.vms.edit, {
      params: { vm: 'web' },
      body: { cpus: 2 },
      generation: 7,
      idempotencyKey: 'k',
      headers: { x: 'y' },
    })
    await client.call(endpoints.vms.delete, { params: { vm: 'web' }, query: { wait: 5, force: true } })
    await client.call(endpoints.vms.list)
    expect(sent).toEqual([
      {
        method: 'PATCH',
        path: '/v1/vms/web',
        headers: {
          accept: 'application/json',
          'content-type': 'application/json',
          'if-match': '"7"',
          'idempotency-key': 'k',
          x: 'y',
        },
        body: '{"cpus":2}',
      },
      { method: 'DELETE', path: '/v1/vms/web?wait=5&force=true', headers: { accept: 'application/json' } },
      { method: 'GET', path: '/v1/vms', headers: { accept: 'application/json' } },
    ])
  })

  it('is typed by the contract', () => {
    const { client } = answering(200, {})
    expectTypeOf(client.call(endpoints.vms.get, { params: { vm: 'x' } })).resolves.toEqualTypeOf<Vm>()
    expectTypeOf(client.call(endpoints.vms.create, { body: { name: 'x' } })).resolves.toEqualTypeOf<Job>()
    expectTypeOf(client.call(endpoints.tokens.delete, { params: { token: 'x' } })).resolves.toEqualTypeOf<undefined>()
    // @ts-expect-error params are missing
    client.call(endpoints.vms.get).catch(() => undefined)
    // @ts-expect-error there is no such field
    client.call(endpoints.vms.create, { body: { name: 'x', nmae: 'y' } }).catch(() => undefined)
    // @ts-expect-error the body is missing
    client.call(endpoints.vms.create, {}).catch(() => undefined)
    // @ts-expect-error no query here
    client.call(endpoints.vms.get, { params: { vm: 'x' }, query: { a: 1 } }).catch(() => undefined)
  })

  it('can never leave its path', () => {
    fc.assert(
      fc.property(fc.string({ minLength: 1 }), (vm) => {
        fc.pre(vm !== '.' && vm !== '..')
        const { path } = requestOf(endpoints.vms.get, { params: { vm } })
        expect(decodeURIComponent(new URL(path, 'https://x').pathname)).toBe(`/v1/vms/${vm}`)
      }),
    )
    expect(() => requestOf(endpoints.vms.get, { params: { vm: '' } })).toThrow(/needs vm/)
    expect(() => requestOf(endpoints.vms.get, { params: { vm: '..' } })).toThrow(/not a vm/)
  })
})

describe('an error', () => {
  it('is the one the daemon sent', async () => {
    const sent = { type: 'urn:x', ...fault('name_taken', 'There is a VM "web".', { field: '/name' }) }
    const { client } = answering(409, sent)
    await expect(client.call(endpoints.vms.list)).rejects.toMatchObject({
      fault: { code: 'name_taken', field: '/name', status: 409 },
    })
    await expect(
      client.stream(endpoints.vms.getFile, { params: { vm: 'x' }, query: { path: '/x' } }),
    ).rejects.toMatchObject({ fault: { code: 'name_taken' } })
  })
  it('of a newer daemon is passed on', async () => {
    const { client } = answering(418, { code: 'brand_new', detail: 'words', effect: 'none' })
    await expect(client.call(endpoints.vms.list)).rejects.toMatchObject({
      fault: { code: 'brand_new', detail: 'words', retryable: false },
    })
  })
  it.each([
    [502, '<html>'],
    [200, '<html>'],
    [500, '{}'],
    [500, 'null'],
    [500, '"x"'],
    [500, 'x'.repeat(200_000)],
  ])('%s %.10s is not ours', async (status, body) => {
    const { client } = answering(status, body)
    await expect(client.call(endpoints.vms.list)).rejects.toMatchObject({ fault: { code: 'unreachable' } })
  })
})

it('waits for a job in steps', async () => {
  const states: Job['state'][] = ['running', 'undoing', 'failed']
  const seen: string[] = []
  const client = createClient(async (request) => {
    expect(request.path).toBe('/v1/jobs/job-aaaaaaaaaa?wait=3')
    return { status: 200, headers: {}, body: chunks(JSON.stringify(job(states.shift() ?? 'done'))) }
  })
  const ended = await client.wait(job('running'), { wait_s: 3, onProgress: (j) => seen.push(j.state) })
  expect(ended.state).toBe('failed')
  expect(seen).toEqual(['running', 'running', 'undoing'])
  expect((await client.wait(job('done'))).state).toBe('done')
})

describe('the event stream', () => {
  const text =
    'retry: 2000\nid: a.1\n\n: comment\n\nid: a.2\nevent: change\ndata: {"x":\ndata: 1}\n\r\nevent: progress\r\ndata:no space\r\n\r\n: still here\nid: a.9\n\ndata: é\n\n'
  const expected = [
    { id: 'a.2', event: 'change', data: '{"x":\n1}' },
    { id: 'a.2', event: 'progress', data: 'no space' },
    { id: 'a.9', event: 'message', data: 'é' },
  ]
  it('is parsed however it is cut', async () => {
    const bytes = Buffer.from(text)
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(bytes.length), { maxLength: 20 }), async (cuts) => {
        const at = [0, ...cuts.toSorted((a, b) => a - b), bytes.length]
        const parts = at.slice(1).map((end, i) => bytes.subarray(at[i], end))
        const body = (async function* () {
          yield* parts
        })()
        const got = []
        for await (const event of parseEvents(body)) got.push(event)
        expect(got).toEqual(expected)
      }),
    )
  })
  it('is asked for with the last id', async () => {
    const { client, sent } = answering(200, text)
    const got = []
    for await (const event of await client.events({ resource: 'vm', lastEventId: 'a.1' })) got.push(event)
    expect(got).toHaveLength(3)
    expect(sent[0]).toMatchObject({
      path: '/v1/events?resource=vm',
      headers: { accept: 'text/event-stream', 'last-event-id': 'a.1' },
    })
  })
})
