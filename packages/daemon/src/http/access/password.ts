/** Passwords are kept as Argon2id (RFC 9106) in the PHC string form, with the parameters they were made with. */
import { argon2, randomBytes, timingSafeEqual } from 'node:crypto'
import { fail } from '@wadah/api/fault'

type Parameters = { memory_kib: number; passes: number; parallelism: number }
/** The OWASP recommendation for Argon2id with the least memory: 19 MiB, two passes. */
export const PARAMETERS: Parameters = { memory_kib: 19_456, passes: 2, parallelism: 1 }

const HASH_BYTES = 32
/** Each takes 19 MiB and a thread of the pool for some 50 ms; more at once would starve file access. */
const AT_ONCE = 2
const WAITING_MAX = 32

let running = 0
const waiting: (() => void)[] = []

async function derive(password: string, salt: Uint8Array, p: Parameters, length: number): Promise<Buffer> {
  if (running >= AT_ONCE) {
    if (waiting.length >= WAITING_MAX)
      throw fail('rate_limited', 'Too many logins at once; try again in a few seconds.')
    // The one who is done hands its place on: `running` stays as it is.
    await new Promise<void>((resolve) => waiting.push(resolve))
  } else running += 1
  try {
    return await new Promise((resolve, reject) => {
      argon2(
        'argon2id',
        {
          message: Buffer.from(password.normalize('NFKC')),
          nonce: salt,
          parallelism: p.parallelism,
          memory: p.memory_kib,
          passes: p.passes,
          tagLength: length,
        },
        (error, key) => (error ? reject(error) : resolve(key)),
      )
    })
  } finally {
    const next = waiting.shift()
    if (next) next()
    else running -= 1
  }
}

/** `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`. */
export async function hashPassword(password: string, p: Parameters = PARAMETERS): Promise<string> {
  const salt = randomBytes(16)
  const hash = await derive(password, salt, p, HASH_BYTES)
  const b64 = (b: Buffer) => b.toString('base64').replaceAll('=', '')
  return `$argon2id$v=19$m=${p.memory_kib},t=${p.passes},p=${p.parallelism}$${b64(salt)}$${b64(hash)}`
}

const PHC = /^\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)$/

export async function verifyPassword(password: string, stored: string): Promise<boolean> {
  const found = PHC.exec(stored)
  if (!found) return false
  const [, memory_kib, passes, parallelism, salt, hash] = found as unknown as string[]
  const wanted = Buffer.from(hash as string, 'base64')
  const parameters = { memory_kib: Number(memory_kib), passes: Number(passes), parallelism: Number(parallelism) }
  const made = await derive(password, Buffer.from(salt as string, 'base64'), parameters, wanted.length)
  return timingSafeEqual(made, wanted)
}

/** A hash that no password fits, with today's parameters: checking against it takes as long as a real check. */
export const NO_PASSWORD = `$argon2id$v=19$m=${PARAMETERS.memory_kib},t=${PARAMETERS.passes},p=${PARAMETERS.parallelism}$${'A'.repeat(22)}$${'A'.repeat(43)}`
