/** What the store keeps of users, sessions and tokens. Secrets are kept as hashes only. */
import { createHash } from 'node:crypto'
import type { Scope } from '@wadah/api/schema/access'
import type { Kind } from '@wadah/store/store'

export type UserRecord = { schema: 1; name: string; password: string; scope: Scope; created_ms: number }
export const userKind: Kind<UserRecord> = { name: 'access/user' }
/** name → id, so that a name is given once. */
export const userNameKind: Kind<{ schema: 1; user: string }> = { name: 'access/user-name' }

/** Its id is the SHA-256 of the cookie's secret. */
export type SessionRecord = { schema: 1; user: string; created_ms: number; seen_ms: number }
export const sessionKind: Kind<SessionRecord> = { name: 'access/session' }

export type TokenRecord = {
  schema: 1
  name: string
  scope: Scope
  /** SHA-256 of the secret; it has 256 random bits, so no slow hash is needed. */
  hash: string
  created_ms: number
  created_by: string
  expires_ms?: number
  last_used_ms?: number
}
export const tokenKind: Kind<TokenRecord> = { name: 'access/token' }
export const tokenNameKind: Kind<{ schema: 1; token: string }> = { name: 'access/token-name' }

/** The one-time code for making an administrator; there is at most one, under the id `code`. */
export type SetupRecord = { schema: 1; hash: string; expires_ms: number }
export const setupKind: Kind<SetupRecord> = { name: 'access/setup' }
export const SETUP_ID = 'code'

export const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex')
