/** A host that wants to join, as the cluster sees it: what it may bring, and whose place it may not take. */
import { randomBytes } from 'node:crypto'
import { X509Certificate } from 'node:crypto'
import type { Deps } from '@wadah/cluster/context'
import { aliveKind, CLUSTER, clusterKind, factsKind, joinTokenKind } from '@wadah/cluster/members/records'
import { hashOf } from '@wadah/cluster/members/service'
import { hostKind, vmKind } from '@wadah/cluster/records'
import { CachedView } from '@wadah/store/cache'
import { systemClock } from '@wadah/store/clock'
import { everything } from '@wadah/store/copy'
import { put, type Store, TXN_BYTES_MAX, type Write } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import type { JoinRequest } from '../../src/cluster/join.ts'
import { AccessStore } from '../../src/http/access/store.ts'
import { admitHost } from '../../src/peers/join-server.ts'
import { A, type Authorities, authorities, B } from '../cluster/kit.ts'

let by: Authorities
beforeAll(async () => {
  by = await authorities()
})
const SECRET = 'token-aaaaaaaaaa.secret'
const hostOf = (id: string, n: number) => ({
  schema: 1 as const,
  id,
  name: `h${n}`,
  created_at: '2026-01-01T00:00:00.000Z',
  address: `192.0.2.${n}`,
  ports: { peer: 7444, etcd_client: 7445, etcd_peer: 7446 },
})
const request = (over: Partial<JoinRequest> = {}): JoinRequest => ({
  version: 1,
  host: hostOf(B, 2),
  wadah: '0.1.0',
  now_ms: Date.now(),
  uids: { base: 5000, count: 100 },
  records: [],
  ...over,
})

let given: { prefix: string; ca: string; client: { key: string; cert: string } } | undefined

async function cluster(...more: Write[]) {
  const store = openMemoryStore()
  const token = {
    schema: 1,
    id: 'token-aaaaaaaaaa',
    hash: hashOf('secret'),
    created_by: 'x',
    expires_ms: Date.now() + 9e5,
  }
  const first = [
    put(hostKind, A, hostOf(A, 1)),
    put(clusterKind, CLUSTER, { schema: 1, id: 'c', created_at: '', level: 1 }),
    put(joinTokenKind, token.id, token as never),
  ]
  await store.txn([], first, 'ground')
  if (more.length > 0) await store.txn([], more, 'more')
  const view = await CachedView.open(store, { clock: systemClock })
  onTestFinished(async () => {
    await view.close()
    await store.close()
  })
  const sizes: number[] = []
  const txn = store.txn.bind(store)
  store.txn = (checks, writes, ...rest) => {
    sizes.push(Buffer.byteLength(JSON.stringify(writes)))
    return txn(checks, writes, ...rest)
  }
  const deps = { store, view, clock: systemClock, randomBytes, hostId: A, log: () => undefined } as unknown as Deps
  const admit = (body: unknown, secret = SECRET) =>
    admitHost(
      {
        deps,
        build: { version: '0.1.0', oldest: 1, newest: 1 },
        authorities: async () => by,
        endpoints: () => ['192.0.2.1:7445'],
        given: () => given,
      },
      secret,
      body,
    )
  return { store, view, admit, sizes }
}
const code = (p: Promise<unknown>) =>
  p.then(
    () => 'let in',
    (e: { fault?: { code: string } }) => e.fault?.code ?? JSON.stringify(e),
  )
const named = (id: string, name: string) => ({ schema: 1, id, name, project: 'default', created_at: '' })
const vm = (id: string, host: string, name = 'web') => [
  { kind: 'vm/spec', id, value: { ...named(id, name), labels: {}, spec: { uid: 5001, nics: [], disks: [] } } },
  { kind: 'vm/placement', id, value: { schema: 1, host, epoch: 1 } },
  { kind: 'index', id: `name/vm/default/${name}`, value: { schema: 1, holder: id } },
]
const writes = (records: { kind: string; id: string; value: unknown }[]) =>
  records.map((r) => put({ name: r.kind }, r.id, r.value))

test('a host is let in as what it is, and is nothing that it says of itself beyond', async () => {
  const { view, admit } = await cluster()
  const host = { ...hostOf(B, 2), member: true, maintenance: true, drained: [{ vm: 'x', to: 'y' }], evil: 1 }
  const answer = await admit(request({ host }))
  expect(view.get(hostKind, B)?.value).toEqual({ ...hostOf(B, 2), build: { version: '0.1.0', oldest: 1, newest: 1 } })
  const shown = new X509Certificate(answer.certificates.host.cert)
  expect(shown.subjectAltName).toBe(`DNS:${B}, IP Address:192.0.2.2`)
})

test.each([
  ['a name of another host in the place of its address', { address: A }],
  ['an address of the loopback', { address: '127.0.0.1' }],
  ['a link-local address', { address: 'fe80::1' }],
  ['an address in another form', { address: '2001:DB8::1' }],
  ['an id that is none', { id: 'host-../../etc' }],
  ['no time', { created_at: 7 as never }],
])('%s is refused', async (_what, over) => {
  const { admit, view } = await cluster()
  expect(await code(admit(request({ host: { ...hostOf(B, 2), ...over } })))).toBe('malformed')
  expect(view.list(hostKind)).toHaveLength(1)
})

test('records that are none are refused, not tripped over', async () => {
  const { admit } = await cluster()
  for (const records of [[null], [{ kind: 'vm/spec', id: 'x', value: null }], [{}], 'x'])
    expect(await code(admit(request({ records: records as never })))).toBe('malformed')
  for (const body of [null, 7, [], {}]) expect(await code(admit(body))).toBe('malformed')
})

test('with a fresh token nobody takes the place of a host that is there, up or down', async () => {
  const facts = put(factsKind, B, { schema: 1, pools: [], networks: [] } as never)
  for (const sign of [facts, put(aliveKind, B, { schema: 1, host: B, since_ms: 0 })]) {
    const { admit, view } = await cluster(put(hostKind, B, { ...hostOf(B, 2), member: true }), sign)
    expect(await code(admit(request({ host: { ...hostOf(B, 9), name: 'mine' } })))).toBe('in_use')
    expect(view.get(hostKind, B)?.value.address).toBe('192.0.2.2')
  }
})

test('one that was cut off while it joined comes again with its token; with that token no other', async () => {
  const { admit } = await cluster()
  const records = vm('vm-aaaaaaaaaa', B)
  await admit(request({ records }))
  expect(await code(admit(request({ records })))).toBe('let in')
  expect(await code(admit(request({ host: hostOf('host-cccccccccc', 3) })))).toBe('unauthenticated')
})

test('records of what the cluster has with another host do not take the place of those', async () => {
  const there = vm('vm-aaaaaaaaaa', A)
  const { admit, view } = await cluster(...writes(there))
  // As from a store that was put back from a copy, or made up.
  const evil = vm('vm-aaaaaaaaaa', B, 'mine')
  expect(await code(admit(request({ records: evil })))).toBe('conflict')
  expect(view.get(vmKind, 'vm-aaaaaaaaaa')?.value.name).toBe('web')
})

test('many and large records are written in parts that etcd takes', async () => {
  const { admit, sizes, view } = await cluster()
  const records = Array.from({ length: 20 }, (_, i) => `vm-${'abcdefghijklmnopqrst'[i]}aaaaaaaaa`).flatMap((id, i) => {
    const [spec, ...rest] = vm(id, B, `web${i}`)
    return [{ ...spec!, value: { ...(spec!.value as object), user_data: 'x'.repeat(150_000) } }, ...rest]
  })
  await admit(request({ records }))
  expect(Math.max(...sizes)).toBeLessThan(TXN_BYTES_MAX)
  expect(view.list(vmKind)).toHaveLength(20)
})

const accessOf = (store: Store, view: CachedView) =>
  new AccessStore({ store, view, clock: systemClock, random: (n) => new Uint8Array(randomBytes(n)) })
/** Makes a user of that name, with that name as its password. */
const makeUser = async (access: AccessStore, name: string) =>
  access.setup((await access.newSetupCode()).code, name, `password of ${name}`)

test('who could log in on the host that joins can afterwards; its tokens hold, and are found by their names', async () => {
  const alone = openMemoryStore()
  const aloneView = await CachedView.open(alone, { clock: systemClock })
  onTestFinished(async () => {
    await aloneView.close()
    await alone.close()
  })
  const { admit, store, view } = await cluster()
  const [before, access] = [accessOf(alone, aloneView), accessOf(store, view)]
  await makeUser(access, 'ann')
  const { identity } = await makeUser(before, 'bob')
  const token = await before.createToken(identity.subject, { name: 'ci', scope: 'read' })
  await access.createToken(identity.subject, { name: 'ci', scope: 'read' })
  const records = []
  for await (const { kind, id, value } of everything(alone)) records.push({ kind, id, value })
  // Also when a first try was cut off.
  for (let i = 0; i < 2; i++)
    expect((await admit(request({ records }))).changes).toEqual([
      'the user "bob" of h2 may do all there is in the cluster from now on',
      expect.stringMatching(/is called "ci-h2"/),
      'the token "ci-h2" of h2 may look at all of the cluster from now on',
    ])
  for (const name of ['ann', 'bob'])
    expect((await access.login(name, `password of ${name}`)).identity.subject).toMatchObject({ name })
  expect(access.byToken(token.secret ?? '').subject).toMatchObject({ name: 'ci-h2' })
  await access.deleteToken('ci-h2')
  expect(() => access.byToken(token.secret ?? '')).toThrow()
  expect(access.listTokens().map((t) => t.name)).toEqual(['ci'])
})

test('where the etcd is given, a host gets what it shows there, and no key of a member', async () => {
  given = { prefix: '/theirs', ca: 'their authority', client: { key: 'k', cert: 'c' } }
  onTestFinished(() => {
    given = undefined
  })
  const { admit } = await cluster()
  const { certificates, etcd } = await admit(request())
  expect(etcd).toEqual({ prefix: '/theirs' })
  expect(certificates).toMatchObject({ etcd_ca: 'their authority', etcd_client: { key: 'k', cert: 'c' } })
  expect(certificates.etcd_member).toBeUndefined()
})

const runs = (version: string, newest = 1) => ({ build: { version, oldest: 1, newest } })

test('a release two from any host of the cluster is refused with both versions, and nothing is written', async () => {
  const upgraded = put(hostKind, 'host-cccccccccc', { ...hostOf('host-cccccccccc', 3), ...runs('0.2.0') })
  const { admit, store } = await cluster(put(hostKind, A, { ...hostOf(A, 1), ...runs('0.1.0') }), upgraded)
  const before = await store.current()
  const refused = admit(request({ wadah: '0.3.0', levels: { oldest: 1, newest: 1 }, records: vm('vm-aaaaaaaaaa', B) }))
  await expect(refused).rejects.toMatchObject({
    fault: {
      code: 'wrong_state',
      effect: 'none',
      detail: 'h2 has wadahd 0.3.0, and h1 0.1.0: hosts of one cluster may be one release apart, not more.',
      remedy: expect.stringMatching(/install wadahd 0\.1 or 0\.2 on h2.*the token still holds/),
    },
  })
  expect(await store.current()).toBe(before)
  expect(await code(admit(request({ wadah: '0.2.0' })))).toBe('let in')
})

test('a host that does not know the level of the records is refused; one that says none knows the first', async () => {
  const level = (n: number) => put(clusterKind, CLUSTER, { schema: 1, id: 'c', created_at: '', level: n })
  const second = await cluster(level(2))
  expect(await code(second.admit(request()))).toBe('wrong_state')
  expect(await code(second.admit(request({ levels: { oldest: 2, newest: 3 } })))).toBe('let in')
  expect(second.view.get(hostKind, B)?.value.build).toEqual({ version: '0.1.0', oldest: 2, newest: 3 })
  const first = await cluster(level(1))
  expect(await code(first.admit(request({ levels: { oldest: 2, newest: 2 } })))).toBe('wrong_state')
  expect(await code(first.admit(request({ levels: { oldest: 'x', newest: 2 } as never })))).toBe('malformed')
  expect(await code(first.admit(request()))).toBe('let in')
})

test('a clock that is five minutes off is named with the remedy, whichever way', async () => {
  const { admit, view } = await cluster()
  for (const [off_ms, words] of [
    [300_000, '5 min ahead of that of h1'],
    [-300_000, '5 min behind that of h1'],
  ] as const)
    await expect(admit(request({ now_ms: Date.now() + off_ms }))).rejects.toMatchObject({
      fault: { detail: `The clock of h2 is ${words}.`, remedy: expect.stringContaining('timedatectl set-ntp true') },
    })
  expect(view.list(hostKind)).toHaveLength(1)
})
