/** What happens to every request before and after its handler: who is asking, from where, and what is written down of it. */
import { fail } from '@wadah/api/fault'
import type { Clock } from '@wadah/store/clock'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { authorize } from './access/authorize.ts'
import { sourceKey } from './access/limiter.ts'
import type { AccessStore, Identity } from './access/store.ts'
import type { AuditLog } from './audit.ts'
import { crossSiteProblem, hostProblem } from './guard.ts'
import { LOOKING } from './limits.ts'
import { COOKIE } from './routes/access.ts'
import { Sources } from './sources.ts'
import { overPeer, overSocket } from './types.ts'
import { passedSubject } from './passed.ts'

export type HookOptions = {
  access: AccessStore
  audit: AuditLog
  names: ReadonlySet<string>
  clock: Clock
  project: string
  requestsPerSource: number
}

/** A JSON body that is not there by then comes from somebody who wants to hold the connection. */
const BODY_MS = 30_000
const SOCKET: Identity = { subject: { kind: 'socket', id: 'root', name: 'root', scope: 'full' } }

export function addHooks(app: FastifyInstance, o: HookOptions): void {
  const sources = new Sources(o.requestsPerSource)
  app.decorateRequest('identity', undefined)
  app.decorateRequest('faultCode', undefined)
  app.decorateRequest('source', undefined)

  app.addHook('onRequest', async (request, reply) => {
    reply.header('cache-control', 'no-store').header('x-request-id', request.id)
    const peer = overPeer.get(request.raw.socket)
    const local = overSocket.has(request.raw.socket)
    request.source = peer === undefined ? (local ? 'local' : sourceKey(request.ip ?? '')) : `host ${peer}`
    if (!local && peer === undefined) {
      enter(sources, request, reply)
      const wrong = hostProblem(request.headers.host, o.names, request.raw.socket.localAddress)
      if (wrong) throw wrong
    }
    const { endpoint } = request.routeOptions.config
    if (!endpoint) return
    if (peer !== undefined) {
      // Who it is was proved to the host that passes it on; what they may do is looked at here as well.
      request.identity = { subject: passedSubject(request.headers) }
      authorize(request.identity.subject, endpoint, { project: o.project })
      return
    }
    const secret = request.cookies[COOKIE]
    const { authorization } = request.headers
    if (endpoint.needs !== 'none') request.identity = identify(o.access, authorization, secret, local)
    const byCookie = request.identity?.session !== undefined
    if (!local) refuseCrossSite(request, byCookie)
    authorize(request.identity?.subject, endpoint, { project: o.project })
  })

  app.addHook('preParsing', async (request) => {
    const { endpoint } = request.routeOptions.config
    if (!endpoint || LOOKING.has(request.method)) return
    const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase()
    const wanted = endpoint.accepts ?? 'application/json'
    if (type !== undefined && type !== wanted) {
      throw fail('unsupported_media_type', `A body of the type "${type.slice(0, 80)}" is not taken here; ${wanted} is.`)
    }
    if (endpoint.accepts === undefined) return limitBodyTime(request)
    const length = Number(request.headers['content-length'] ?? 0)
    const limit = endpoint.body_limit_bytes ?? 0
    if (length > limit) throw fail('too_large', `The body has ${length} bytes; ${limit} are the most taken here.`)
  })

  app.addHook('onSend', async (request, reply) => {
    if (LOOKING.has(request.method)) return
    const subject = request.identity?.subject
    await o.audit.append({
      at: new Date(o.clock.now_ms()).toISOString(),
      subject: subject ? `${subject.kind}:${subject.name}` : 'nobody',
      method: request.method,
      path: pathOf(request).slice(0, 500),
      status: reply.statusCode,
      ...(request.faultCode !== undefined && { code: request.faultCode }),
      remote: request.source === 'local' ? 'socket' : request.ip,
      request_id: request.id,
    })
  })

  app.addHook('onResponse', async (request, reply) => {
    const { method, identity } = request
    const took_ms = Math.round(reply.elapsedTime)
    request.log.debug(
      { method, path: pathOf(request), status: reply.statusCode, subject: identity?.subject.name, took_ms },
      'request',
    )
  })
}

/** Without the query: it may hold a ticket. */
const pathOf = (request: FastifyRequest) => request.url.split('?')[0] as string

function enter(sources: Sources, request: FastifyRequest, reply: FastifyReply): void {
  const source = request.source as string
  if (!sources.enter(source)) throw fail('rate_limited', 'Too many requests from this address are under way at once.')
  // Of the answer, not of the request: that is when the work for it has ended.
  reply.raw.once('close', () => sources.leave(source))
}

/** What is shown decides: a token is looked at even over the socket, so that one can act with fewer rights than root's. */
function identify(
  access: AccessStore,
  authorization: string | undefined,
  cookie: string | undefined,
  local: boolean,
): Identity | undefined {
  if (authorization !== undefined) {
    const [scheme = '', bearer = ''] = authorization.split(' ', 2)
    if (scheme.toLowerCase() !== 'bearer') {
      throw fail('unauthenticated', 'Only `Authorization: Bearer wadah_…` is understood.', {
        remedy: 'wadah token create NAME',
      })
    }
    return access.byToken(bearer)
  }
  if (local) return SOCKET
  return cookie === undefined ? undefined : access.bySession(cookie)
}

function refuseCrossSite(request: FastifyRequest, byCookie: boolean): void {
  const { host, origin, 'sec-fetch-site': site } = request.headers
  const came = { method: request.method, host, origin, site: typeof site === 'string' ? site : undefined, byCookie }
  const problem = crossSiteProblem(came)
  if (problem) throw problem
}

function limitBodyTime(request: FastifyRequest): void {
  const { raw } = request
  if (raw.complete) return
  const timer = setTimeout(() => raw.destroy(), BODY_MS)
  timer.unref()
  const clear = () => clearTimeout(timer)
  raw.once('end', clear).once('close', clear)
}
