/** Names and ids. Ids never change and never contain a host; names are for people. */
import Type from 'typebox'

export const ID_PREFIXES = {
  vm: 'vm',
  image: 'img',
  volume: 'vol',
  pool: 'pool',
  network: 'net',
  'firewall-group': 'grp',
  rule: 'rule',
  job: 'job',
  token: 'tok',
  user: 'usr',
  host: 'host',
  snapshot: 'snap',
} as const
export type IdKind = keyof typeof ID_PREFIXES

const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567'
const ID_LENGTH = 10

/** `vm-k3x9q2m7w4`: 50 random bits. `random` gives that many random bytes (`crypto.randomBytes`). */
export function newId(kind: IdKind, random: (bytes: number) => Uint8Array): string {
  let text = ''
  for (const byte of random(ID_LENGTH)) text += ALPHABET[byte & 31]
  return `${ID_PREFIXES[kind]}-${text}`
}

const ID_PATTERN = /^(vm|img|vol|pool|net|grp|rule|job|tok|usr|host|snap)-[a-z2-7]{10}$/
/** True for a text with the shape of an id; such a text may not be used as a name. */
export function isId(text: string): boolean {
  return ID_PATTERN.test(text)
}

/** RFC 1123 label: it is also the guest's host name and its DNS name. */
export const NAME_PATTERN = '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'
const NAME_REGEXP = new RegExp(NAME_PATTERN)

/** What is wrong with a name, or undefined. */
export function nameProblem(name: string): string | undefined {
  if (!NAME_REGEXP.test(name)) {
    return `"${name.slice(0, 80)}" is not a name: use 1 to 63 small letters, digits and hyphens, beginning with a letter and not ending with a hyphen`
  }
  if (isId(name)) return `"${name}" has the form of an id; choose a name that cannot be mistaken for one`
  return undefined
}

export const NameSchema = Type.String({
  pattern: NAME_PATTERN,
  maxLength: 63,
  description: 'RFC 1123 label: small letters, digits, hyphens',
})
/** A name or an id. */
export const RefSchema = Type.String({
  pattern: '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$',
  maxLength: 63,
  description: 'name or id',
})
export const IdSchema = Type.String({ pattern: '^[a-z]+-[a-z2-7]{10}$', description: 'immutable id' })
