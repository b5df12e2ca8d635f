/** An etcd that is given: how its addresses are read, what is refused, and that no word of a refusal is a key's. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { canCarry, type Found, judgeGiven, parseEndpoints, readGiven } from '../../src/cluster/given.ts'
import { issue, makeAuthority } from '../../src/cluster/pki.ts'

const faultOf = (work: () => unknown) => {
  try {
    return work()
  } catch (error) {
    return (error as { fault: { detail: string; remedy: string } }).fault
  }
}

test.each([
  ['https://a:2379,https://b:2380', ['a:2379', 'b:2380']],
  ['https://192.0.2.1', ['192.0.2.1:2379']],
  [' https://[2001:db8::1]:2379/ ', ['[2001:db8::1]:2379']],
  ['https://a:443', ['a:443']],
  ['https://a:2379,https://a:2379/', ['a:2379']],
])('%s', (text, found) => {
  expect(parseEndpoints(text)).toEqual(found)
})

test.each([
  '',
  'a:2379',
  'https://',
  'https://a/v3',
  'https://u:p@a',
  'ftp://a',
  'https://a?x=1',
  'https://a,,https://b',
])('no address: "%s"', (text) => {
  expect(faultOf(() => parseEndpoints(text))).toMatchObject({ code: 'invalid', field: '/etcd' })
})

test('one without TLS is refused, with the reason', () => {
  expect(faultOf(() => parseEndpoints('http://a:2379'))).toMatchObject({
    detail: expect.stringContaining('in the clear'),
  })
})

test('whatever is given as an address is read or refused, never anything else', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      const found = faultOf(() => parseEndpoints(text))
      expect(Array.isArray(found) || (found as { code?: string }).code === 'invalid').toBe(true)
    }),
  )
})

const fine: Found = {
  members: [
    { endpoint: 'a:1', version: '3.5.9', cluster: 'c', leader: true },
    { endpoint: 'b:1', version: '3.5.9', cluster: 'c', leader: true },
  ],
  keys: false,
  anonymous: false,
  prefix: '/wadah',
}
const first = fine.members[0] as Found['members'][number]
const dead = { endpoint: 'b:1', why: 'connection refused' }
const NEW = { used: false, all: true }
const JOIN = { used: true, all: false }
test.each<[string, Partial<Found>, typeof NEW, RegExp | undefined]>([
  ['all is well', {}, NEW, undefined],
  ['one is dead at init', { members: [first, dead] }, NEW, /does not answer at b:1 \(connection refused\)/],
  ['one is dead at a join', { members: [first, dead], keys: true }, JOIN, undefined],
  ['all are dead at a join', { members: [dead] }, JOIN, /does not answer/],
  ['old', { members: [{ endpoint: 'a:1', version: '3.3.27', cluster: 'c', leader: true }] }, NEW, /version 3.3.27/],
  [
    'of two',
    { members: [first, { endpoint: 'b:1', version: '3.5.9', cluster: 'd', leader: true }] },
    NEW,
    /two different/,
  ],
  ['no leader', { members: [{ endpoint: 'a:1', version: '3.5.9', cluster: 'c', leader: false }] }, NEW, /no leader/],
  ['no majority', { read: 'timed out' }, NEW, /by a majority of it: timed out/],
  ['open to everybody', { anonymous: true }, NEW, /without a certificate/],
  ['used', { keys: true }, NEW, /something under \/wadah\/ .* already/],
])('%s', (_, over, wanted, why) => {
  const refused = judgeGiven({ ...fine, ...over }, wanted)
  if (!why) return expect(refused).toBeUndefined()
  expect(refused?.detail).toMatch(why)
  expect(refused?.remedy).not.toBe('')
})

test.each([
  ['3.4.0', true],
  ['3.4.23', true],
  ['3.6.1', true],
  ['3.3.9', false],
  ['2.3.8', false],
  ['4.0.0', false],
  ['', false],
])('version "%s": %s', (version, fit) => expect(canCarry(version)).toBe(fit))

let dir = ''
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-given-'))
})
afterAll(() => rm(dir, { recursive: true, force: true }))

test('what is in the files is looked at; a refusal says nothing of it', async () => {
  const authority = await makeAuthority('etcd', Date.now())
  const pair = await issue(authority, { name: 'c', names: ['c'], now_ms: Date.now() })
  const other = await issue(authority, { name: 'd', names: ['d'], now_ms: Date.now() })
  const over = await issue(authority, { name: 'o', names: ['o'], now_ms: Date.now() - 200 * 86_400_000 })
  const files = {
    ca: authority.cert,
    cert: pair.cert + authority.cert,
    key: pair.key,
    other: other.key,
    overCert: over.cert,
    overKey: over.key,
    broken: pair.key.replace(/[A-Za-z0-9]{20}/, 'SECRET'),
  }
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text)
  const o = (over_: Record<string, string> = {}) => ({
    endpoints: 'https://a',
    prefix: '/wadah',
    ca: join(dir, 'ca'),
    cert: join(dir, 'cert'),
    key: join(dir, 'key'),
    ...over_,
  })
  const given = await readGiven(o())
  expect(given.client.cert.split('-----BEGIN').length).toBe(3)
  const refused = async (wrong: Record<string, string>) =>
    await readGiven(o(wrong)).then(
      () => 'taken',
      (e: { fault: { field: string; detail: string } }) => `${e.fault.field} ${e.fault.detail}`,
    )
  expect(await refused({ ca: join(dir, 'nothing') })).toMatch(/^\/etcd-ca .*no such file/)
  expect(await refused({ ca: join(dir, 'key') })).toMatch(/^\/etcd-ca /)
  expect(await refused({ cert: join(dir, 'key') })).toMatch(/^\/etcd-cert /)
  expect(await refused({ key: join(dir, 'cert') })).toMatch(/^\/etcd-key /)
  expect(await refused({ key: join(dir, 'other') })).toMatch(/does not belong/)
  expect(await refused({ cert: join(dir, 'overCert'), key: join(dir, 'overKey') })).toMatch(/ended at/)
  for (const prefix of ['', 'wadah', '/', '/a/', '/a//b', '/a b', '/é'])
    expect(await refused({ prefix })).toMatch(/^\/etcd-prefix/)
  const broken = await refused({ key: join(dir, 'broken') })
  expect(broken).toMatch(/^\/etcd-key/)
  expect(broken).not.toContain('SECRET')
})
