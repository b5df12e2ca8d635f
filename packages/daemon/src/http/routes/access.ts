import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { LoginLimiter } from '../access/limiter.ts'
import type { AccessStore, NewSession } from '../access/store.ts'
import type { AuditLog } from '../audit.ts'
import { type Binding, bind } from '../route.ts'

const e = endpoints.access
/** `__Host-`: the browser takes it only over HTTPS, for this host and the whole of it, and no other host can set it. */
export const COOKIE = '__Host-wadah'
const cookieOptions = { path: '/', secure: true, httpOnly: true, sameSite: 'strict' } as const

export type AccessRoutes = {
  access: AccessStore
  limiter: LoginLimiter
  audit: AuditLog
  setupUrl: (code: string) => string
}

export function accessRoutes({ access, limiter, audit, setupUrl }: AccessRoutes): Binding[] {
  return [
    bind(e.setup, async ({ body, request, reply }) => {
      const attempt = limiter.attempt(request.source ?? 'local')
      const session = await access.setup(body.code, body.user, body.password)
      attempt.succeeded()
      return loggedIn(session, request, reply)
    }),
    bind(e.setupCode, async () => {
      const { code, expires_ms } = await access.newSetupCode()
      return { code, url: setupUrl(code), expires_at: new Date(expires_ms).toISOString() }
    }),
    bind(e.login, async ({ body, request, reply }) => {
      const attempt = limiter.attempt(request.source ?? 'local', body.user)
      const session = await access.login(body.user, body.password)
      attempt.succeeded()
      return loggedIn(session, request, reply)
    }),
    bind(e.logout, async ({ request, reply }) => {
      const session = request.identity?.session
      if (session === undefined) {
        throw fail('wrong_state', 'There is no session to end: you came with an API token or over the UNIX socket.', {
          remedy: 'a token is ended with: wadah token delete NAME',
        })
      }
      await access.logout(session)
      reply.clearCookie(COOKIE, cookieOptions)
    }),
    bind(e.session, ({ caller, request }) => {
      const expires_ms = request.identity?.expires_ms
      const { name, scope } = caller.subject
      return { user: name, scope, ...(expires_ms !== undefined && { expires_at: new Date(expires_ms).toISOString() }) }
    }),
    bind(e.audit, async ({ query }) => ({ items: await audit.tail(query.limit ?? 100) })),
  ]
}

function loggedIn(session: NewSession, request: FastifyRequest, reply: FastifyReply) {
  request.identity = session.identity
  reply.setCookie(COOKIE, session.secret, { ...cookieOptions, maxAge: session.max_age_s })
  const { name, scope } = session.identity.subject
  return { user: name, scope, expires_at: new Date(session.expires_ms).toISOString() }
}
