/** A host that is alone does nothing in the place of another. */
import { hostKind } from '@wadah/cluster/records'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Endpoint } from '@wadah/api/endpoint'
import { expect, test } from 'vitest'
import { onlyHere, whereOf } from '../../src/peers/where.ts'
import { A } from '../cluster/kit.ts'

const own = { id: A, value: { schema: 1, id: A, name: 'here', created_at: '' } }
const view = {
  get: (kind: { name: string }, id: string) => (kind.name === hostKind.name && id === A ? own : undefined),
  list: (kind: { name: string }) => (kind.name === hostKind.name ? [own] : []),
}
const deps = { view, clock: { now_ms: () => 0 }, config: { memory_overcommit: 1 }, hostId: A }
const alone = onlyHere(whereOf({ view, deps } as never))
const asked = (endpoint: unknown, request: object) =>
  alone(endpoint as Endpoint, { query: {}, params: {}, ...request } as FastifyRequest, {} as FastifyReply)

test.each([
  ['a new VM', endpoints.vms.create, (host: string) => ({ body: { name: 'web', host } })],
  ['what a host is', endpoints.system.host, (host: string) => ({ query: { host } })],
])('%s, asked of a host that is not there, is refused; of itself it does it', async (_what, endpoint, request) => {
  await expect(asked(endpoint, request('nobody'))).rejects.toMatchObject({
    fault: { code: 'not_found', field: '/host', remedy: 'wadah host list' },
  })
  for (const host of ['here', A]) expect(await asked(endpoint, request(host))).toBe(false)
})

test('what names no host is done here', async () => {
  expect(await asked(endpoints.vms.create, { body: { name: 'web' } })).toBe(false)
  expect(await asked(endpoints.vms.list, {})).toBe(false)
})
