import { appendFile, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { AuditEntry } from '@wadah/api/schema/access'
import { systemClock } from '@wadah/store/clock'
import { FakeClock } from '@wadah/store/testing/clock'
import { expect, it } from 'vitest'
import { AuditLog } from '../../src/http/audit.ts'
import { testServer } from './harness.ts'

const entry = (n: number, subject = 'token:robot'): AuditEntry => ({
  at: '2026-01-01T00:00:00.000Z',
  subject,
  method: 'POST',
  path: `/v1/vms/web${n}/start`,
  status: 202,
  remote: '127.0.0.1',
  request_id: String(n),
})
const onTrouble = (error: unknown) => {
  throw error
}

it('has every write and no reading: who, what, how it ended; no bodies and no queries', async () => {
  const server = await testServer()
  await server.ask('GET', '/v1/vms')
  await server.ask('POST', '/v1/vms', { payload: { name: 'web', seed: { password: 'verysecret' } } })
  await server.ask('POST', '/v1/vms/web/start', { headers: { authorization: server.read } })
  await server.ask('PUT', '/v1/vms/web/file?path=/etc/secret', {
    payload: 'x',
    headers: { 'content-type': 'application/octet-stream' },
  })
  await server.ask('POST', '/v1/login', { payload: { user: 'ana', password: 'wrongpassword' } })
  await server.ask('DELETE', '/v1/nowhere')
  const answer = await server.ask('GET', '/v1/audit?limit=10')
  const seen = answer.json().items.map((e: AuditEntry) => [e.subject, e.method, e.path, e.status, e.code])
  expect(seen).toEqual([
    ['nobody', 'DELETE', '/v1/nowhere', 404, 'not_found'],
    ['nobody', 'POST', '/v1/login', 401, 'unauthenticated'],
    ['token:full', 'PUT', '/v1/vms/web/file', 204, undefined],
    ['token:read', 'POST', '/v1/vms/web/start', 403, 'forbidden'],
    ['token:full', 'POST', '/v1/vms', 202, undefined],
  ])
  const text = await readFile(join(server.directory, 'audit.log'), 'utf8')
  expect(text).not.toMatch(/verysecret|wrongpassword|etc.secret|wadah_tok/)
})

it('keeps the order, rotates by size, and reads across files', async () => {
  const server = await testServer()
  const file = join(server.directory, 'small.log')
  const log = new AuditLog({ file, clock: systemClock, bytesMax: 2000, keep: 3, onTrouble })
  for (let n = 0; n < 100; n++) void log.append(entry(n))
  for (let n = 100; n < 130; n++) await log.append(entry(n))
  const all = (await log.tail(1000)).map((e) => Number(e.request_id))
  expect(all[0]).toBe(129)
  expect(all).toEqual([...all].sort((a, b) => b - a))
  expect((await log.tail(7)).map((e) => e.request_id)).toEqual(['129', '128', '127', '126', '125', '124', '123'])
  const files = (await readdir(server.directory)).filter((f) => f.startsWith('small.log'))
  expect(files.toSorted()).toEqual(['small.log', 'small.log.1', 'small.log.2', 'small.log.3'])
  await log.close()
})

it('goes on after a line that was cut off, and after the file went away', async () => {
  const server = await testServer()
  const file = join(server.directory, 'cut.log')
  const first = new AuditLog({ file, clock: systemClock, onTrouble })
  await first.append(entry(1))
  await first.close()
  await appendFile(file, '{"at": "2026')
  const second = new AuditLog({ file, clock: systemClock, onTrouble })
  await second.append(entry(2))
  expect((await second.tail(10)).map((e) => e.request_id)).toEqual(['2', '1'])
  await second.close()
  await rm(file)
  expect(await second.tail(10)).toEqual([])
})

it('cannot be flooded by those who are nobody', async () => {
  const server = await testServer()
  const clock = new FakeClock()
  const log = new AuditLog({ file: join(server.directory, 'flood.log'), clock, onTrouble })
  for (let n = 0; n < 200; n++) await log.append(entry(n, 'nobody'))
  await log.append(entry(200))
  expect(await log.tail(1000)).toHaveLength(61)
  clock.advance(60_000)
  await log.append(entry(201, 'nobody'))
  expect((await log.tail(1))[0]).toMatchObject({ request_id: '201', suppressed: 140 })
  await log.close()
})

it('that cannot be written stops no work, and is reported', async () => {
  const trouble: unknown[] = []
  const log = new AuditLog({ file: '/etc/hostname/audit.log', clock: systemClock, onTrouble: (e) => trouble.push(e) })
  await log.append(entry(1))
  expect(trouble).toHaveLength(1)
  await log.close()
})
