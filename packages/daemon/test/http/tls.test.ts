import 'reflect-metadata'
import { createPrivateKey, generateKeyPairSync, type webcrypto, X509Certificate } from 'node:crypto'
import { mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { X509CertificateGenerator } from '@peculiar/x509'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ensureCertificate } from '../../src/http/tls.ts'

const DAY_MS = 24 * 3_600_000
let directory = ''
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'wadah-tls-'))
})
afterEach(() => rm(directory, { recursive: true, force: true }))
const ensure = (now_ms = Date.now(), names: string[] = ['box.example', '192.0.2.7']) =>
  ensureCertificate({ directory: join(directory, 'tls'), names, now_ms: () => now_ms })

it('makes a certificate for all names, with a key that only its owner reads', async () => {
  const made = await ensure()
  expect(made.made).toBe(true)
  const cert = new X509Certificate(made.cert)
  for (const name of ['localhost', 'box.example']) expect(cert.checkHost(name)).toBe(name)
  for (const address of ['127.0.0.1', '::1', '192.0.2.7']) expect(cert.checkIP(address)).toBe(address)
  expect(cert.checkHost('evil.example')).toBeUndefined()
  expect(cert.publicKey.asymmetricKeyDetails?.namedCurve).toBe('prime256v1')
  expect(cert.verify(cert.publicKey)).toBe(true)
  expect(cert.ca).toBe(false)
  expect(made.fingerprint).toMatch(/^([0-9A-F]{2}:){31}[0-9A-F]{2}$/)
  expect((await stat(join(directory, 'tls/tls.key'))).mode & 0o777).toBe(0o600)
  expect(made.expires_ms - Date.now()).toBeGreaterThan(729 * DAY_MS)
})

it('keeps it, until it nears its end or lacks a name', async () => {
  const first = await ensure()
  const again = await ensure()
  expect([again.made, again.fingerprint]).toEqual([false, first.fingerprint])
  expect((await ensure(Date.now() + 600 * DAY_MS)).made).toBe(false)
  expect((await ensure(Date.now() + 680 * DAY_MS)).made).toBe(true)
  expect((await ensure(Date.now(), ['other.example'])).made).toBe(true)
})

it('overwrites nothing that it does not understand, and follows no link', async () => {
  await ensure()
  const path = join(directory, 'tls/tls.crt')
  await writeFile(path, 'nonsense')
  await expect(ensure()).rejects.toMatchObject({
    fault: { code: 'invalid', detail: expect.stringContaining('tls.crt') },
  })
  expect(await readFile(path, 'utf8')).toBe('nonsense')
  await rm(path)
  await symlink('/etc/hostname', path)
  await expect(ensure()).rejects.toMatchObject({ code: 'ELOOP' })
})

it('leaves a pair alone that the administrator put there, and refuses one that does not fit together', async () => {
  await ensure()
  const key = join(directory, 'tls/tls.key')
  const crt = join(directory, 'tls/tls.crt')
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const pair = (await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair
  const other = await X509CertificateGenerator.createSelfSigned({
    name: 'CN=other',
    notAfter: new Date(Date.now() + DAY_MS),
    signingAlgorithm: algorithm,
    keys: pair,
  })
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', pair.privateKey))
  await writeFile(
    key,
    createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' }).export({ type: 'pkcs8', format: 'pem' }),
  )
  await writeFile(crt, other.toString('pem'))
  const text = await readFile(crt, 'utf8')
  const found = await ensure()
  expect([found.made, found.cert]).toEqual([false, text])
  const another = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
  await writeFile(key, another.export({ type: 'pkcs8', format: 'pem' }))
  await expect(ensure()).rejects.toMatchObject({
    fault: { code: 'invalid', detail: expect.stringContaining('does not belong') },
  })
  expect(await readFile(crt, 'utf8')).toBe(text)
})
