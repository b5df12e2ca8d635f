/** The daemon's own certificate: made at first start, renewed before its end, pinned by its fingerprint. */
import { DAY_MS, ISSUED_BY, isAddress, type Pair } from './pair.ts'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { constants } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { hostname, networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { replaceFile } from '@wadah/host/system/files'

export type Certificate = {
  key: string
  cert: string
  /** SHA-256 of the certificate, `AB:CD:…`: what a client pins. */
  fingerprint: string
  expires_ms: number
  /** Whether it was made just now. */
  made: boolean
}

export type CertificateOptions = {
  /** `tls.key` (0600) and `tls.crt` are in it. */
  directory: string
  /** Further names and addresses that clients use. */
  names: readonly string[]
  now_ms: () => number
}

const RENEW_BEFORE_MS = 60 * DAY_MS

/**
 * Reads the certificate, or makes a new one when there is none, or when our own nears its end or lacks a name.
 * @throws WadahError `invalid` when key and certificate are there but cannot be used; nothing is overwritten then
 */
export async function ensureCertificate(options: CertificateOptions): Promise<Certificate> {
  const { directory, now_ms } = options
  const found = await readPair(directory)
  if (found) {
    const known = examine(found, directory)
    const own = known.issuer === known.subject && known.subject.split('\n').includes(`O=${ISSUED_BY}`)
    const lacking = subjectNames(options.names).filter((name) => !covers(known, name))
    const expires_ms = known.validToDate.getTime()
    // One that the administrator put there is never replaced, whatever it lacks.
    if (!own || (lacking.length === 0 && expires_ms - now_ms() > RENEW_BEFORE_MS)) {
      return { ...found, fingerprint: known.fingerprint256, expires_ms, made: false }
    }
  }
  // Loaded only when it is needed: it brings more code than the rest of the HTTPS server.
  const { makePair } = await import('./certificate.ts')
  const made = await makePair(subjectNames(options.names), now_ms())
  await mkdir(directory, { recursive: true, mode: 0o700 })
  // The key first: a certificate is never there without the key it belongs to. Both are flushed: clients pin what they have seen.
  await replaceFile(join(directory, 'tls.key'), made.key, 0o600)
  await replaceFile(join(directory, 'tls.crt'), made.cert, 0o644)
  const cert = new X509Certificate(made.cert)
  return { ...made, fingerprint: cert.fingerprint256, expires_ms: cert.validToDate.getTime(), made: true }
}

async function readPair(directory: string): Promise<Pair | undefined> {
  const key = await read(join(directory, 'tls.key'))
  const cert = await read(join(directory, 'tls.crt'))
  return key === undefined || cert === undefined ? undefined : { key, cert }
}

async function read(path: string): Promise<string | undefined> {
  try {
    await using file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
    return await file.readFile('utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function examine(pair: Pair, directory: string): X509Certificate {
  const remedy = 'put the right pair there, or move tls.crt and tls.key away: a new one is then made'
  try {
    const cert = new X509Certificate(pair.cert)
    if (cert.checkPrivateKey(createPrivateKey(pair.key))) return cert
  } catch (cause) {
    throw fail('invalid', `${join(directory, 'tls.crt')} and tls.key are no certificate and key.`, { remedy, cause })
  }
  throw fail('invalid', `${join(directory, 'tls.key')} does not belong to tls.crt.`, { remedy })
}

const covers = (cert: X509Certificate, name: string) =>
  (isAddress(name) ? cert.checkIP(name) : cert.checkHost(name)) !== undefined

function subjectNames(configured: readonly string[]): string[] {
  return [
    ...new Set([hostname().toLowerCase(), 'localhost', '127.0.0.1', '::1', ...configured.map((n) => n.toLowerCase())]),
  ]
}

/** The addresses of this machine, for a daemon that listens on all of them. */
export function ownAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((list) => list ?? [])
  return all.filter((a) => !a.internal && !a.address.startsWith('fe80:')).map((a) => a.address)
}
