/** `$6$` password hashes as crypt(3) makes and every Linux takes them. After Ulrich Drepper, "Unix crypt using SHA-256 and SHA-512". */
import { createHash } from 'node:crypto'

const ALPHABET = './0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
const ROUNDS = 5000
const sha512 = (...parts: Uint8Array[]): Buffer => {
  const hash = createHash('sha512')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

/** A salt of 16 characters from as many random bytes. */
export function cryptSalt(random: Uint8Array): string {
  return [...random.subarray(0, 16)].map((b) => ALPHABET[b & 63]).join('')
}

/** About 20 ms of CPU. `salt`: up to 16 characters of the crypt alphabet. */
export function sha512Crypt(password: string, salt: string, rounds: number = ROUNDS): string {
  const p = Buffer.from(password, 'utf8')
  const s = Buffer.from(salt.slice(0, 16), 'latin1')
  const repeat = (block: Buffer, length: number): Buffer =>
    Buffer.concat(Array.from({ length: Math.ceil(length / 64) }, () => block)).subarray(0, length)

  const b = sha512(p, s, p)
  const parts: Buffer[] = [p, s, repeat(b, p.length)]
  for (let n = p.length; n > 0; n >>= 1) parts.push((n & 1) === 1 ? b : p)
  let digest = sha512(...parts)
  const pSeq = repeat(sha512(...Array.from({ length: p.length }, () => p)), p.length)
  const sSeq = repeat(sha512(...Array.from({ length: 16 + (digest[0] as number) }, () => s)), s.length)
  for (let i = 0; i < rounds; i++) {
    const odd = (i & 1) === 1
    digest = sha512(
      odd ? pSeq : digest,
      ...(i % 3 === 0 ? [] : [sSeq]),
      ...(i % 7 === 0 ? [] : [pSeq]),
      odd ? digest : pSeq,
    )
  }
  return `$6$${rounds === ROUNDS ? '' : `rounds=${rounds}$`}${salt.slice(0, 16)}$${encode(digest)}`
}

/** Three bytes at a time, 21 apart, each triple turned one further; six bits a character, lowest first. */
function encode(digest: Buffer): string {
  let text = ''
  const put = (value: number, characters: number): void => {
    for (let i = 0; i < characters; i++) text += ALPHABET[(value >> (6 * i)) & 63]
  }
  for (let i = 0; i < 21; i++) {
    const three = [i, i + 21, i + 42]
    const turn = i % 3
    const [x, y, z] = [three[turn], three[(turn + 1) % 3], three[(turn + 2) % 3]] as [number, number, number]
    put(((digest[x] as number) << 16) | ((digest[y] as number) << 8) | (digest[z] as number), 4)
  }
  put(digest[63] as number, 2)
  return text
}
