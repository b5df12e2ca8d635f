/** Certificates that were accepted, one `HOST:PORT SHA256` a line: a server whose certificate changes is refused. */
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { randomBytes } from 'node:crypto'
import { fail } from '@wadah/api/fault'

/** 64 small hex digits; takes `AA:BB:…`, `sha256:…` and `SHA256:…` as well. */
export function parseFingerprint(text: string): string {
  const hex = text
    .trim()
    .replace(/^sha-?256[:=]/i, '')
    .replaceAll(':', '')
    .toLowerCase()
  if (!/^[0-9a-f]{64}$/.test(hex)) {
    throw fail('invalid', `"${text}" is not a SHA-256 fingerprint: 64 hex digits, as \`wadah up\` prints it`, {
      field: '--fingerprint',
    })
  }
  return hex
}

export function parseKnownServers(text: string): Map<string, string> {
  const known = new Map<string, string>()
  for (const line of text.split('\n')) {
    const match = /^(\S+)\s+([0-9a-f]{64})\s*$/.exec(line)
    if (match) known.set(match[1]!, match[2]!)
  }
  return known
}

export class KnownServers {
  readonly file: string
  readonly #adding = new Map<string, string>()
  constructor(file: string) {
    this.file = file
  }
  async get(server: string): Promise<string | undefined> {
    return parseKnownServers(await readIfThere(this.file)).get(server)
  }
  /** Remembers a certificate. False when another request of this command has just done so. @throws WadahError when it met a different one */
  async add(server: string, fingerprint: string): Promise<boolean> {
    const before = this.#adding.get(server)
    if (before === fingerprint) return false
    if (before !== undefined) throw fail('unauthenticated', `${server} shows two different certificates`)
    this.#adding.set(server, fingerprint)
    const known = parseKnownServers(await readIfThere(this.file))
    known.set(server, fingerprint)
    await mkdir(dirname(this.file), { recursive: true, mode: 0o700 })
    await replaceFile(this.file, [...known].map(([s, f]) => `${s} ${f}\n`).join(''))
    return true
  }
}

async function readIfThere(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ''
    throw error
  }
}

/** Writes a private file (0600) whole or not at all. */
export async function replaceFile(file: string, text: string): Promise<void> {
  const temporary = `${file}.${randomBytes(6).toString('hex')}`
  await writeFile(temporary, text, { mode: 0o600, flag: 'wx' })
  await rename(temporary, file)
}
