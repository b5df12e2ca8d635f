/** Users, sessions, tokens and the first administrator's code: who is asking, and how that is proved. */
import { timingSafeEqual } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import { isId, nameProblem, newId } from '@wadah/api/ids'
import type { Subject, Token } from '@wadah/api/schema/access'
import type { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import {
  absent,
  type Check,
  type Committed,
  type Conflict,
  del,
  exists,
  put,
  type Rec,
  type Store,
  unchanged,
  type Write,
} from '@wadah/store/store'
import { hashPassword, NO_PASSWORD, verifyPassword } from './password.ts'
import {
  SETUP_ID,
  type SessionRecord,
  sessionKind,
  setupKind,
  sha256,
  type TokenRecord,
  tokenKind,
  tokenNameKind,
  type UserRecord,
  userKind,
  userNameKind,
} from './records.ts'

export type AccessOptions = {
  store: Store
  view: CachedView
  clock: Clock
  random: (bytes: number) => Uint8Array
  /** Told of a failed write nobody waits for (when a token was last used). */
  onTrouble?: (error: unknown) => void
}

/** Who was recognised, and by what, so that it can be asked again later whether that still holds. */
export type Identity = { subject: Subject; session?: string; expires_ms?: number }
export type NewSession = { secret: string; identity: Identity; expires_ms: number; max_age_s: number }

const HOUR_MS = 3_600_000
export const SESSION_IDLE_MS = 4 * HOUR_MS
export const SESSION_MAX_MS = 24 * HOUR_MS
export const SETUP_MAX_MS = 24 * HOUR_MS
const SEEN_EVERY_MS = 5 * 60_000
const SESSIONS_PER_USER = 32
const TOKENS_MAX = 1000

const time = (ms: number) => new Date(ms).toISOString()
const equalHex = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))
const refused = (detail: string) => fail('unauthenticated', detail, { remedy: 'log in again, or use another token' })

export class AccessStore {
  #o: AccessOptions
  /** Last write of `seen`/`last_used` per record, so that a burst of requests makes one. */
  #noted = new Map<string, number>()

  constructor(options: AccessOptions) {
    this.#o = options
  }

  // ── Who is asking ──────────────────────────────────────────────────────────────────────────────────────────────

  /** The owner of `Authorization: Bearer wadah_<id>_<secret>`. @throws WadahError `unauthenticated` */
  byToken(bearer: string): Identity {
    const found = /^wadah_(tok-[a-z2-7]{10})_([A-Za-z0-9_-]{43})$/.exec(bearer)
    if (!found) throw refused('That is no API token: it has the form wadah_tok-…_….')
    const [, id, secret] = found as unknown as [string, string, string]
    const rec = this.#o.view.get(tokenKind, id)
    // Compared even if there is no such token: the time taken tells nothing.
    const same = equalHex(sha256(secret), rec?.value.hash ?? sha256(''))
    if (!rec || !same) throw refused('There is no such API token, or it was revoked.')
    const now = this.#o.clock.now_ms()
    const { expires_ms, name, scope, last_used_ms } = rec.value
    if (expires_ms !== undefined && expires_ms <= now)
      throw refused(`The API token "${name}" ended at ${time(expires_ms)}.`)
    if (now - (last_used_ms ?? 0) > SEEN_EVERY_MS) this.#note(tokenKind, rec, { ...rec.value, last_used_ms: now }, now)
    return { subject: { kind: 'token', id, name, scope }, ...(expires_ms !== undefined && { expires_ms }) }
  }

  /** The user of a session cookie, or undefined when the session ended. */
  bySession(secret: string): Identity | undefined {
    const id = sha256(secret)
    const rec = this.#o.view.get(sessionKind, id)
    const user = rec && this.#o.view.get(userKind, rec.value.user)
    const now = this.#o.clock.now_ms()
    if (!rec || !user || sessionEnd(rec.value) <= now) return undefined
    if (now - rec.value.seen_ms > SEEN_EVERY_MS) this.#note(sessionKind, rec, { ...rec.value, seen_ms: now }, now)
    const subject: Subject = { kind: 'user', id: user.id, name: user.value.name, scope: user.value.scope }
    return { subject, session: id, expires_ms: sessionEnd(rec.value) }
  }

  /** Whether what was recognised still holds; long streams ask this now and then. */
  stillHolds(identity: Identity): boolean {
    const now = this.#o.clock.now_ms()
    const { subject, session } = identity
    if (subject.kind === 'socket') return true
    if (subject.kind === 'token') {
      const token = this.#o.view.get(tokenKind, subject.id)?.value
      return token !== undefined && (token.expires_ms === undefined || token.expires_ms > now)
    }
    const rec = session === undefined ? undefined : this.#o.view.get(sessionKind, session)
    return rec !== undefined && sessionEnd(rec.value) > now
  }

  #note<T>(kind: { name: string }, rec: Rec<T>, value: T, now: number): void {
    if (now - (this.#noted.get(rec.id) ?? 0) < SEEN_EVERY_MS) return
    if (this.#noted.size > 10_000) this.#noted.clear()
    this.#noted.set(rec.id, now)
    // Bound to what was read: it can't bring back a record that was deleted meanwhile.
    this.#commit([unchanged(rec)], [put(kind, rec.id, value)]).catch(this.#o.onTrouble ?? (() => undefined))
  }

  // ── The first administrator ────────────────────────────────────────────────────────────────────────────────────

  hasUsers(): boolean {
    return this.#o.view.list(userKind).length > 0
  }

  /** A new one-time code; the one before is void. It is shown once and kept as a hash. */
  async newSetupCode(): Promise<{ code: string; expires_ms: number }> {
    const code = this.#secret(24)
    const expires_ms = this.#o.clock.now_ms() + SETUP_MAX_MS
    await this.#commit([], [put(setupKind, SETUP_ID, { schema: 1, hash: sha256(code), expires_ms })])
    return { code, expires_ms }
  }

  /**
   * Makes an administrator with the code, and logs it in. An existing one gets the new password and its sessions end.
   * @throws WadahError `forbidden` (wrong, used or old code), `invalid` (name)
   */
  async setup(code: string, name: string, password: string): Promise<NewSession> {
    const wrong = nameProblem(name)
    if (wrong) throw fail('invalid', `/user: ${wrong}`, { field: '/user' })
    const setup = this.#o.view.get(setupKind, SETUP_ID)
    const fits = equalHex(sha256(code), setup?.value.hash ?? sha256(''))
    const void_ = () =>
      fail('forbidden', 'This link is not valid: it was used, replaced by a newer one, or is older than 24 hours.', {
        field: '/code',
        remedy: 'make a new one on the host: wadah setup-link',
      })
    if (!setup || !fits || setup.value.expires_ms <= this.#o.clock.now_ms()) throw void_()
    const hash = await hashPassword(password)
    const known = this.#o.view.get(userNameKind, name)
    const id = known?.value.user ?? newId('user', this.#o.random)
    const old = this.#o.view.get(userKind, id)
    const now = this.#o.clock.now_ms()
    const user: UserRecord = {
      schema: 1,
      name,
      password: hash,
      scope: 'full',
      created_ms: old?.value.created_ms ?? now,
    }
    const done = await this.#commit(
      // The code goes in the same transaction: of two that use it at once, one wins.
      [unchanged(setup), known ? unchanged(known) : absent(userNameKind, name)],
      [del(setupKind, SETUP_ID), put(userKind, id, user), put(userNameKind, name, { schema: 1, user: id })],
    )
    if (!done.ok) throw void_()
    await this.#endSessions(id, 0)
    return await this.#newSession(id, user)
  }

  // ── Sessions ───────────────────────────────────────────────────────────────────────────────────────────────────

  /** @throws WadahError `unauthenticated`, the same for a wrong name and a wrong password, after the same time */
  async login(name: string, password: string): Promise<NewSession> {
    const index = this.#o.view.get(userNameKind, name)
    const user = index && this.#o.view.get(userKind, index.value.user)
    const fits = await verifyPassword(password, user?.value.password ?? NO_PASSWORD)
    if (!user || !fits) throw fail('unauthenticated', 'The user or the password is wrong.')
    await this.#endSessions(user.id, SESSIONS_PER_USER - 1)
    return await this.#newSession(user.id, user.value)
  }

  async logout(session: string): Promise<void> {
    await this.#commit([], [del(sessionKind, session)])
  }

  async #newSession(user: string, { name, scope }: UserRecord): Promise<NewSession> {
    const secret = this.#secret(32)
    const now = this.#o.clock.now_ms()
    const value: SessionRecord = { schema: 1, user, created_ms: now, seen_ms: now }
    const session = sha256(secret)
    await this.#commit([], [put(sessionKind, session, value)])
    const expires_ms = sessionEnd(value)
    const identity: Identity = { subject: { kind: 'user', id: user, name, scope }, session, expires_ms }
    return { secret, identity, expires_ms, max_age_s: SESSION_MAX_MS / 1000 }
  }

  /** Ends the user's sessions but the `keep` youngest, and everybody's that are over. */
  async #endSessions(user: string, keep: number): Promise<void> {
    const now = this.#o.clock.now_ms()
    const all = this.#o.view.list(sessionKind)
    const own = all.filter((s) => s.value.user === user).toSorted((a, b) => b.value.seen_ms - a.value.seen_ms)
    const ending = new Set([...own.slice(keep), ...all.filter((s) => sessionEnd(s.value) <= now)].map((s) => s.id))
    const writes = [...ending].slice(0, 100).map((id) => del(sessionKind, id))
    if (writes.length > 0) await this.#commit([], writes)
  }

  // ── Tokens ─────────────────────────────────────────────────────────────────────────────────────────────────────

  listTokens(): Token[] {
    return this.#o.view.list(tokenKind).map(shown)
  }

  /** The answer holds the secret, this once. @throws WadahError `name_taken`, `invalid` */
  async createToken(by: Subject, body: { name: string; scope: Token['scope']; days?: number }): Promise<Token> {
    const wrong = nameProblem(body.name)
    if (wrong) throw fail('invalid', `/name: ${wrong}`, { field: '/name' })
    if (this.#o.view.list(tokenKind).length >= TOKENS_MAX) {
      throw fail('no_room', `There are ${TOKENS_MAX} API tokens already; revoke what is not used.`, {
        remedy: 'wadah token list',
      })
    }
    const id = newId('token', this.#o.random)
    const secret = this.#secret(32)
    const now = this.#o.clock.now_ms()
    const value: TokenRecord = {
      schema: 1,
      name: body.name,
      scope: body.scope,
      hash: sha256(secret),
      created_ms: now,
      created_by: by.name,
      ...(body.days !== undefined && { expires_ms: now + body.days * 24 * HOUR_MS }),
    }
    const writes = [put(tokenKind, id, value), put(tokenNameKind, body.name, { schema: 1, token: id })]
    const done = await this.#commit([absent(tokenKind, id), absent(tokenNameKind, body.name)], writes)
    if (!done.ok) {
      throw fail('name_taken', `There is a token called "${body.name}" already.`, {
        field: '/name',
        remedy: 'wadah token list',
      })
    }
    return { ...shown({ id, value }), secret: `wadah_${id}_${secret}` }
  }

  /** By name or id; it is refused from now on. @throws WadahError `not_found` */
  async deleteToken(ref: string): Promise<void> {
    const rec = this.#token(ref)
    // Its name may be another's by the time that a second revocation arrives.
    const done = await this.#commit(
      [exists(tokenKind, rec.id)],
      [del(tokenKind, rec.id), del(tokenNameKind, rec.value.name)],
    )
    if (!done.ok) this.#token(ref)
  }

  /** By name or id. @throws WadahError `not_found` */
  getToken(ref: string): Token {
    return shown(this.#token(ref))
  }

  #token(ref: string): Rec<TokenRecord> {
    const id = isId(ref) ? ref : this.#o.view.get(tokenNameKind, ref)?.value.token
    const rec = id === undefined ? undefined : this.#o.view.get(tokenKind, id)
    if (!rec) throw fail('not_found', `There is no token "${ref}".`, { remedy: 'wadah token list' })
    return rec
  }

  // ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

  #secret(bytes: number): string {
    return Buffer.from(this.#o.random(bytes)).toString('base64url')
  }

  /** Commits, and waits until the copy we read from has it. */
  async #commit(checks: Check[], writes: Write[]): Promise<Committed | Conflict> {
    const done = await this.#o.store.txn(checks, writes, this.#secret(24))
    await this.#o.view.waitFor(done.revision)
    return done
  }
}

function sessionEnd(s: SessionRecord): number {
  return Math.min(s.seen_ms + SESSION_IDLE_MS, s.created_ms + SESSION_MAX_MS)
}

function shown(rec: { id: string; value: TokenRecord }): Token {
  const { name, scope, created_ms, created_by, expires_ms, last_used_ms } = rec.value
  return {
    id: rec.id,
    name,
    scope,
    created_at: time(created_ms),
    created_by,
    ...(expires_ms !== undefined && { expires_at: time(expires_ms) }),
    ...(last_used_ms !== undefined && { last_used_at: time(last_used_ms) }),
  }
}
