/** Makes a self-signed certificate. Apart from tls.ts, which needs it once in two years. */
// The X.509 library's injection of dependencies wants this first.
import 'reflect-metadata'
import type { webcrypto } from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { DAY_MS, ISSUED_BY, isAddress, type Pair } from './pair.ts'

const VALID_MS = 2 * 365 * DAY_MS

/** ECDSA P-256, for these DNS names and addresses, from now for two years. */
export async function makePair(names: readonly string[], now_ms: number): Promise<Pair> {
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = (await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    // X.520 ends a common name at 64 characters; the names that count are in the extension.
    name: [{ O: [ISSUED_BY] }, { CN: [(names[0] ?? 'wadah').slice(0, 64)] }],
    // A day back: a client whose clock is a little behind trusts it too.
    notBefore: new Date(now_ms - DAY_MS),
    notAfter: new Date(now_ms + VALID_MS),
    signingAlgorithm: algorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension(
        names.map((value) => ({ type: isAddress(value) ? ('ip' as const) : ('dns' as const), value })),
      ),
    ],
  })
  const pkcs8 = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey))
  return { key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY'), cert: cert.toString('pem') }
}
