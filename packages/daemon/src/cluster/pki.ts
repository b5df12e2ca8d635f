/**
 * The cluster's own certificates. Two authorities, because etcd takes whatever its authority signed: one for hosts, one for etcd. A
 * move of a VM makes one of its own. ECDSA P-256 throughout (RFC 5280, RFC 5480).
 */
// The X.509 library's injection of dependencies wants this first.
import 'reflect-metadata'
import { createPrivateKey, randomBytes, type webcrypto, X509Certificate } from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { CLOCK_REMEDY } from '@wadah/cluster/members/way'
import { DAY_MS, ISSUED_BY, isAddress, type Pair } from '../http/pair.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const AUTHORITY_MS = 20 * 365 * DAY_MS
/** Renewed by the hosts themselves when a third of it is left. */
const LEAF_MS = 90 * DAY_MS

/** An authority that may sign certificates of ends, and no other authority. */
export async function makeAuthority(purpose: string, now_ms: number): Promise<Pair> {
  const keys = await newKeys()
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: [{ O: [ISSUED_BY] }, { CN: [`${ISSUED_BY} ${purpose}`] }],
    notBefore: new Date(now_ms - DAY_MS),
    notAfter: new Date(now_ms + AUTHORITY_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { key: await pem(keys.privateKey), cert: cert.toString('pem') }
}

/** A certificate for client and server, for these names and addresses. */
export async function issue(
  authority: Pair,
  o: { name: string; names: readonly string[]; now_ms: number; valid_ms?: number },
): Promise<Pair> {
  const keys = await newKeys()
  const issuer = new x509.X509Certificate(authority.cert)
  const signingKey = (await crypto.subtle.importKey(
    'pkcs8',
    createPrivateKey(authority.key).export({ format: 'der', type: 'pkcs8' }),
    ALGORITHM,
    false,
    ['sign'],
  )) as webcrypto.CryptoKey
  const cert = await x509.X509CertificateGenerator.create({
    serialNumber: serial(),
    issuer: issuer.subject,
    // X.520 ends a common name at 64 characters; the names that count are in the extension.
    subject: [{ O: [ISSUED_BY] }, { CN: [o.name.slice(0, 64)] }],
    // A day back: a host whose clock is a little behind trusts it too.
    notBefore: new Date(o.now_ms - DAY_MS),
    notAfter: new Date(o.now_ms + (o.valid_ms ?? LEAF_MS)),
    signingAlgorithm: ALGORITHM,
    publicKey: keys.publicKey,
    signingKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension(
        o.names.map((value) => ({ type: isAddress(value) ? ('ip' as const) : ('dns' as const), value })),
      ),
      await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  })
  return { key: await pem(keys.privateKey), cert: cert.toString('pem') }
}

/** Whether a third or less of its time is left, or it lacks one of these names. */
export function nearsItsEnd(cert: string, names: readonly string[], now_ms: number): boolean {
  const known = new X509Certificate(cert)
  const [from, to] = [known.validFromDate.getTime(), known.validToDate.getTime()]
  const lacks = names.some((n) => (isAddress(n) ? known.checkIP(n) : known.checkHost(n)) === undefined)
  return lacks || to - now_ms < (to - from) / 3
}

/** Of a certificate of this host: what is wrong when it does not hold now, by this host's clock. */
export function outOfTime(cert: string, now_ms: number): string | undefined {
  const known = new X509Certificate(cert)
  const [from, to] = [known.validFromDate, known.validToDate]
  if (now_ms >= from.getTime() && now_ms <= to.getTime()) return undefined
  const span = `${from.toISOString()} to ${to.toISOString()}`
  return `by this host's clock it is ${new Date(now_ms).toISOString()}, and its certificates hold from ${span}: set the clock right (${CLOCK_REMEDY}) and it goes on; if it is right, take this host out and let it join anew`
}

export const endOf = (cert: string): Date => new X509Certificate(cert).validToDate

/** SHA-256 over the DER form, lower-case hex: what a token carries of the hosts' authority. */
export const fingerprintOf = (cert: string): string =>
  new X509Certificate(cert).fingerprint256.replaceAll(':', '').toLowerCase()

const newKeys = async () =>
  (await crypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair

/** Positive, 20 octets at most (RFC 5280, 4.1.2.2). */
const serial = () => `00${randomBytes(16).toString('hex')}`

async function pem(key: webcrypto.CryptoKey): Promise<string> {
  return x509.PemConverter.encode(Buffer.from(await crypto.subtle.exportKey('pkcs8', key)), 'PRIVATE KEY')
}
