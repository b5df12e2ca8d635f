/** What a host of a cluster keeps on its disk: who may read it, and what is made of it when something is wrong. */
import { mkdtemp, mkdir, readFile, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import {
  type Certificates,
  dropUnfinished,
  type Identity,
  onlyCertificate,
  readCertificates,
  readIdentity,
  writeCertificates,
  writeIdentity,
} from '../../src/cluster/identity.ts'
import { A, authorities, B, certificatesOf } from './kit.ts'

let data = ''
let own: Certificates
let other: Certificates
beforeAll(async () => {
  const by = await authorities()
  own = await certificatesOf(by, A)
  other = await certificatesOf(by, B)
})
const umask = process.umask()
beforeEach(async () => {
  data = await mkdtemp(join(tmpdir(), 'wadah-identity-'))
})
afterEach(async () => {
  process.umask(umask)
  await rm(data, { recursive: true, force: true })
})
const modes = async () => {
  const dir = join(data, 'cluster')
  const names = ['.', ...(await readdir(dir))]
  const of = async (name: string) => ((await stat(join(dir, name))).mode & 0o777).toString(8)
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await of(name)])))
}
const IDENTITY: Identity = {
  schema: 1,
  cluster: 'c',
  host: A,
  name: 'a',
  address: '192.0.2.1',
  ports: { peer: 1, etcd_client: 2, etcd_peer: 3 },
  endpoints: ['192.0.2.1:2'],
}

test.each([0o000, 0o022, 0o077, 0o177])('modes are what they are to be, whatever the umask (%o)', async (mask) => {
  process.umask(mask)
  await writeCertificates(data, own, null)
  await writeIdentity(data, IDENTITY)
  process.umask(umask)
  expect(await modes()).toEqual({
    '.': '711',
    'cluster.json': '600',
    'etcd-ca.crt': '644',
    'etcd-client.pem': '600',
    'etcd-member.pem': '600',
    'host.pem': '600',
    'hosts-ca.crt': '644',
  })
  expect(await readCertificates(data)).toEqual({
    ...own,
    hosts_ca: onlyCertificate(own.hosts_ca),
    etcd_ca: onlyCertificate(own.etcd_ca),
    host: { key: expect.any(String), cert: expect.any(String) },
    etcd_client: { key: expect.any(String), cert: expect.any(String) },
    etcd_member: { key: expect.any(String), cert: expect.any(String) },
  })
  expect(await readIdentity(data)).toEqual(IDENTITY)
})

test.runIf(process.getuid?.() === 0)('the member of etcd reads its own key, and changes nothing', async () => {
  await writeCertificates(data, own, 23_456)
  const member = await stat(join(data, 'cluster/etcd-member.pem'))
  expect([member.uid, member.gid, member.mode & 0o777]).toEqual([0, 23_456, 0o640])
  for (const name of ['host.pem', 'etcd-client.pem', 'etcd-ca.crt']) {
    const { uid, gid } = await stat(join(data, 'cluster', name))
    expect([name, uid, gid]).toEqual([name, 0, 0])
  }
})

test('what lies in the way is replaced, not followed', async () => {
  await mkdir(join(data, 'cluster'))
  const victim = join(data, 'victim')
  await writeFile(victim, 'untouched')
  for (const name of ['host.pem', 'host.pem.new']) await symlink(victim, join(data, 'cluster', name))
  await writeCertificates(data, own, null)
  expect(await readFile(victim, 'utf8')).toBe('untouched')
  expect((await readCertificates(data)).host.cert.trim()).toBe(own.host.cert.trim())
  await rm(join(data, 'cluster/host.pem'))
  await symlink(victim, join(data, 'cluster/host.pem'))
  await expect(readCertificates(data)).rejects.toMatchObject({ fault: { code: 'invalid' } })
})

test('a key of another certificate and an authority that is two are refused by name', async () => {
  await writeCertificates(data, own, null)
  await writeFile(join(data, 'cluster/host.pem'), `${own.host.key.trim()}\n${other.host.cert.trim()}\n`)
  await expect(readCertificates(data)).rejects.toMatchObject({
    fault: { code: 'invalid', detail: expect.stringMatching(/host\.pem .*does not belong/) },
  })
  await writeCertificates(data, { ...own, etcd_ca: `${own.etcd_ca.trim()}\n${own.hosts_ca}` }, null)
  await expect(readCertificates(data)).rejects.toMatchObject({
    fault: { detail: expect.stringContaining('it holds 2 things') },
  })
})

test('what was left unfinished goes, and with it what says that the host is of a cluster', async () => {
  await writeCertificates(data, own, null)
  await writeIdentity(data, IDENTITY)
  await dropUnfinished(data)
  expect(await readIdentity(data)).toBeUndefined()
  expect(await readdir(data)).toEqual([])
})
