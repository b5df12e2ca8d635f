/** Binds an endpoint of the contract to a handler: everything that is the same for all of them is here, once. */
import { Readable } from 'node:stream'
import type { Endpoint, StaticOf } from '@wadah/api/endpoint'
import { fail } from '@wadah/api/fault'
import type { Subject } from '@wadah/api/schema/access'
import type { Job } from '@wadah/api/schema/job'
import type { Caller, JobService } from '@wadah/cluster/services'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { TSchema } from 'typebox'
import { digest, parseKey, type Replies, type Reply } from './idempotency.ts'
import { toJson } from './json.ts'
import { BODY_LIMIT_BYTES } from './limits.ts'
import { limited, primed } from './streams.ts'
import { validator } from './validate.ts'

export type Context<P extends TSchema | undefined, Q extends TSchema | undefined, B extends TSchema | undefined> = {
  params: StaticOf<P>
  query: StaticOf<Q>
  body: StaticOf<B>
  /** The body of an upload. */
  data: AsyncIterable<Uint8Array>
  caller: Caller
  /** From `If-Match`. */
  generation: number | undefined
  /** Aborts when the client goes away. */
  signal: AbortSignal
  request: FastifyRequest
  reply: FastifyReply
}
type Result<R extends TSchema | undefined> = R extends TSchema ? StaticOf<R> : AsyncIterable<Uint8Array> | void

export type Binding = { endpoint: Endpoint; handler: (c: Context<undefined, undefined, undefined>) => unknown }

export function bind<
  P extends TSchema | undefined,
  Q extends TSchema | undefined,
  B extends TSchema | undefined,
  R extends TSchema | undefined,
>(endpoint: Endpoint<P, Q, B, R>, handler: (c: Context<P, Q, B>) => Result<R> | Promise<Result<R>>): Binding {
  return { endpoint, handler: handler as Binding['handler'] }
}

export type RouteOptions = {
  jobs: JobService
  replies: Replies
  project: string
  /** Passes the request on to the host that must carry it out; false: it is this one. */
  passOn?: (endpoint: Endpoint, request: FastifyRequest, reply: FastifyReply) => Promise<boolean>
}

/** Without a login nobody needs to send more. */
const ANONYMOUS_LIMIT_BYTES = 8 * 1024
/** Their answers hold a secret, which must not lie about for a day. */
const NOT_KEPT = new Set([
  'access.setup',
  'access.setupCode',
  'access.login',
  'tokens.create',
  'vms.console',
  'system.backup',
  'cluster.token',
])
const NO_FIELDS = { type: 'object', properties: {}, additionalProperties: false }

/** `/v1/vms/{vm}` → `/v1/vms/:vm` */
export const routerPath = (path: string) => path.replaceAll(/\{(\w+)\}/g, ':$1')

export function register(app: FastifyInstance, { endpoint, handler }: Binding, o: RouteOptions): void {
  const { method, accepts } = endpoint
  const takesBody = method !== 'GET'
  app.route({
    method,
    url: routerPath(endpoint.path),
    config: { endpoint },
    // Looking into a stream costs as much as reading it.
    exposeHeadRoute: method === 'GET' && endpoint.answer !== 'stream',
    bodyLimit: endpoint.body_limit_bytes ?? (endpoint.needs === 'none' ? ANONYMOUS_LIMIT_BYTES : BODY_LIMIT_BYTES),
    schema: {
      params: endpoint.params ?? NO_FIELDS,
      querystring: endpoint.query ?? NO_FIELDS,
      ...(takesBody && accepts === undefined && { body: endpoint.body ?? NO_FIELDS }),
    },
    validatorCompiler: ({ schema, httpPart }) =>
      validator(schema as object, httpPart === 'body' ? 'body' : httpPart === 'params' ? 'params' : 'query') as never,
    handler: async (request, reply) => {
      if (o.passOn && (await o.passOn(endpoint, request, reply))) return reply
      const context = makeContext(endpoint, request, reply, o.project)
      const key = endpoint.method === 'GET' ? undefined : parseKey(request.headers['idempotency-key'])
      if (key === undefined) return deliver(await answer(endpoint, handler, context, o), reply)
      const once = { key, digest: digestOf(request, accepts !== undefined) }
      if (endpoint.answer === 'job') {
        context.caller = { ...context.caller, idempotency: once }
        const before = await o.jobs.replay(context.caller)
        if (before) {
          reply.header('idempotency-replayed', 'true')
          const wait_s = (context.query as { wait?: number } | undefined)?.wait ?? 0
          return deliver(await jobAnswer(before, wait_s, context, o), reply)
        }
        return deliver(await answer(endpoint, handler, context, o), reply)
      }
      if (NOT_KEPT.has(endpoint.id)) throw keyRefused(endpoint)
      // PUT, PATCH and DELETE of a thing may be sent twice without a key.
      if (method !== 'POST') return deliver(await answer(endpoint, handler, context, o), reply)
      const act = async () => asReply(await answer(endpoint, handler, context, o))
      const { reply: kept, replayed } = await o.replies.once(context.caller.subject, once, act)
      if (replayed) reply.header('idempotency-replayed', 'true')
      return deliver(kept, reply)
    },
  })
}

const keyRefused = (endpoint: Endpoint) =>
  fail('invalid', `${endpoint.id} takes no Idempotency-Key: its answer holds a secret, which is not kept.`, {
    field: '/Idempotency-Key',
  })

type Answered = { status: number; headers: Record<string, string>; value?: unknown; stream?: AsyncIterable<Uint8Array> }

/** Calls the handler and says what its result means in HTTP. */
async function answer(
  endpoint: Endpoint,
  handler: Binding['handler'],
  c: Parameters<Binding['handler']>[0],
  o: RouteOptions,
): Promise<Answered> {
  const result = await handler(c)
  switch (endpoint.answer) {
    case 'no-content':
      return { status: 204, headers: {} }
    case 'stream':
      return {
        status: 200,
        headers: { 'content-type': endpoint.produces ?? 'application/octet-stream' },
        stream: await primed(result as AsyncIterable<Uint8Array>),
      }
    case 'job':
      return await jobAnswer(result as Job, (c.query as { wait?: number } | undefined)?.wait ?? 0, c, o)
    default: {
      const headers: Record<string, string> = {}
      const generation = (result as { generation?: unknown } | null)?.generation
      if (typeof generation === 'number') headers.etag = `"${generation}"`
      const id = (result as { id?: unknown } | null)?.id
      if (endpoint.answer === 'created' && typeof id === 'string') headers.location = locationOf(endpoint, id)
      return { status: endpoint.answer === 'created' ? 201 : 200, headers, value: result }
    }
  }
}

const ENDED = new Set<Job['state']>(['done', 'failed', 'cancelled'])

async function jobAnswer(
  made: Job,
  wait_s: number,
  c: { caller: Caller; signal: AbortSignal },
  o: RouteOptions,
): Promise<Answered> {
  const job = wait_s > 0 && !ENDED.has(made.state) ? await o.jobs.wait(c.caller, made.id, wait_s, c.signal) : made
  const ended = wait_s > 0 && ENDED.has(job.state)
  return { status: ended ? 200 : 202, headers: { location: `/v1/jobs/${job.id}` }, value: job }
}

/** `/v1/images/kernel` makes `/v1/images/img-…`. */
const locationOf = (endpoint: Endpoint, id: string) => `${endpoint.path.split('/').slice(0, 3).join('/')}/${id}`

function asReply({ status, headers, value }: Answered): Reply {
  return { status, headers, body: value === undefined ? null : toJson(value) }
}

function deliver(a: Answered | Reply, reply: FastifyReply): FastifyReply {
  reply.code(a.status).headers(a.headers)
  if ('stream' in a && a.stream) return reply.send(Readable.from(a.stream, { objectMode: false }))
  const text = 'body' in a ? a.body : (a as Answered).value === undefined ? null : toJson((a as Answered).value)
  if (text === null) return reply.send()
  return reply.header('content-type', 'application/json; charset=utf-8').send(text)
}

function makeContext(
  endpoint: Endpoint,
  request: FastifyRequest,
  reply: FastifyReply,
  project: string,
): Context<undefined, undefined, undefined> {
  const subject: Subject = request.identity?.subject ?? { kind: 'user', id: 'nobody', name: 'nobody', scope: 'read' }
  let controller: AbortController | undefined
  const limit = endpoint.body_limit_bytes ?? BODY_LIMIT_BYTES
  return {
    params: request.params as undefined,
    query: request.query as undefined,
    body: request.body as undefined,
    get data() {
      return limited(request.raw, limit)
    },
    caller: { subject, project },
    generation: ifMatch(endpoint, request.headers['if-match']),
    get signal() {
      if (!controller) {
        const c = new AbortController()
        controller = c
        reply.raw.once('close', () => {
          if (!reply.raw.writableFinished) c.abort(fail('cancelled', 'The client went away.', { effect: 'unknown' }))
        })
      }
      return controller.signal
    },
    request,
    reply,
  }
}

/** `"7"` → 7; `*` and an absent header → undefined. @throws WadahError `malformed`, `invalid` */
export function ifMatch(endpoint: Pick<Endpoint, 'if_match' | 'id'>, header: string | undefined): number | undefined {
  if (header === undefined) return undefined
  if (!endpoint.if_match) {
    throw fail('invalid', `${endpoint.id} does not honour If-Match; it is refused rather than passed over.`, {
      field: '/If-Match',
    })
  }
  if (header.trim() === '*') return undefined
  const found = /^\s*"(\d{1,15})"\s*$/.exec(header)
  if (!found) {
    throw fail(
      'malformed',
      'If-Match must hold one generation in double quotes, as the ETag of the answer has it: If-Match: "7".',
      {
        field: '/If-Match',
      },
    )
  }
  return Number(found[1])
}

/** What makes a request this one and no other. Not how long the client waits for its job: who asks again may wait longer. */
function digestOf(request: FastifyRequest, upload: boolean): string {
  const { wait: _, ...query } = (request.query ?? {}) as Record<string, unknown>
  // The body of an upload is not read yet: its length is known, and its sha256 stands in the query.
  const body = upload ? request.headers['content-length'] : request.body
  return digest(request.method, request.url.split('?')[0] as string, query, body)
}
