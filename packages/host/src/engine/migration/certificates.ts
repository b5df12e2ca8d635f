/**
 * The identity of one end of one move: a CA made for this move alone, and one certificate of it. Each end makes its own and tells the other
 * its CA on the daemons' mTLS stream; no private key ever leaves its host, the CA's is thrown away at once, and a guest that escapes
 * holds a key that nobody else trusts. A CA of the cluster that signs nothing but moves can be given instead.
 */
// The X.509 library's injection of dependencies wants this first.
import 'reflect-metadata'
import type { webcrypto } from 'node:crypto'
import * as x509 from '@peculiar/x509'

const HOUR_MS = 3_600_000
/** A move of a very large guest through a thin line; TLS looks at the time only when it connects. */
const VALID_MS = 48 * HOUR_MS
/** Two hosts' clocks may differ by this much. */
const BACK_MS = HOUR_MS
const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

export type MoveCa = { cert: x509.X509Certificate; keys: webcrypto.CryptoKeyPair }
/** PEM. */
export type MoveIdentity = { name: string; ca: string; cert: string; key: string }

const keyPair = async () =>
  (await crypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair

/** A CA that signs the certificates of one move. */
export async function makeMoveCa(name: string, now_ms: number): Promise<MoveCa> {
  const keys = await keyPair()
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: [{ CN: [`CA of ${name}`.slice(0, 64)] }],
    notBefore: new Date(now_ms - BACK_MS),
    notAfter: new Date(now_ms + VALID_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
    ],
  })
  return { cert, keys }
}

/**
 * One end's key and certificate. `name` (at most 64 characters) is its common name and its DNS name: QEMU holds a client against the first
 * (`tls-authz`: the whole DN, so there is nothing else in it) and a server against the second (`tls-hostname`).
 */
export async function moveIdentity(
  name: string,
  end: 'source' | 'target',
  now_ms: number,
  ca?: MoveCa,
): Promise<MoveIdentity> {
  const signer = ca ?? (await makeMoveCa(name, now_ms))
  const keys = await keyPair()
  const { serverAuth, clientAuth } = x509.ExtendedKeyUsage
  const { digitalSignature, keyEncipherment } = x509.KeyUsageFlags
  const cert = await x509.X509CertificateGenerator.create({
    subject: [{ CN: [name] }],
    issuer: signer.cert.subject,
    notBefore: new Date(now_ms - BACK_MS),
    notAfter: new Date(now_ms + VALID_MS),
    signingAlgorithm: ALGORITHM,
    publicKey: keys.publicKey,
    signingKey: signer.keys.privateKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      // QEMU wants the second too, whatever the kind of key (crypto/tlscredsx509.c).
      new x509.KeyUsagesExtension(digitalSignature | keyEncipherment, true),
      new x509.ExtendedKeyUsageExtension([end === 'target' ? serverAuth : clientAuth]),
      new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
    ],
  })
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey))
  return {
    name,
    ca: signer.cert.toString('pem'),
    cert: cert.toString('pem'),
    key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY'),
  }
}
