/** Everything that can go wrong on the way to a handler or in it, as problem+json (RFC 9457). */
import { STATUS_CODES } from 'node:http'
import type { Duplex } from 'node:stream'
import { allEndpoints } from '@wadah/api/endpoints/all'
import { type Fault, type FaultCode, fail, toFault, WadahError } from '@wadah/api/fault'
import { StoreError } from '@wadah/store/errors'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { nearest } from '@wadah/api/nearest'

/** Carries how long to wait before the next try. */
export class RateLimited extends WadahError {
  readonly retryAfter_s: number
  constructor(fault: Fault, retryAfter_s: number) {
    super(fault)
    this.retryAfter_s = retryAfter_s
  }
}

const STORE_CODES: Partial<Record<StoreError['kind'], FaultCode>> = { no_room: 'no_room', too_large: 'too_large' }

/** What Fastify and Node refuse by themselves, by their stable codes. */
function frameworkFault(error: { code?: string; statusCode?: number; message?: string }): WadahError | undefined {
  switch (error.code) {
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return fail('unsupported_media_type', 'The body has a content type that is not taken here.', {
        remedy: 'send JSON with `Content-Type: application/json`',
      })
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return fail('too_large', 'The body is larger than what is taken here; see the limits in docs/api.md.')
    case 'FST_ERR_CTP_INVALID_CONTENT_LENGTH':
      return fail('malformed', 'The body does not have the length that Content-Length says.')
    case 'FST_ERR_BAD_URL':
      return fail('malformed', 'The path has a "%" that is not followed by two hexadecimal digits of valid UTF-8.')
  }
  if (typeof error.statusCode === 'number' && error.statusCode >= 400 && error.statusCode < 500) {
    return fail('malformed', 'The request could not be read.')
  }
  return undefined
}

/** Any thrown value as a fault that may be shown. */
export function publicFault(error: unknown): Fault {
  if (error instanceof WadahError) return error.fault
  if (error instanceof StoreError) {
    const { kind, effect, retryable, remedy } = error
    const code = STORE_CODES[kind] ?? 'store_failed'
    return fail(code, `The record store could not do it: ${error.message}`, { effect, retryable, remedy }).fault
  }
  if (typeof error === 'object' && error !== null) {
    const known = frameworkFault(error)
    if (known) return known.fault
  }
  return toFault(error)
}

/** The body of an error answer. */
export function problem(fault: Fault): Fault & { type: string } {
  return { type: `urn:wadah:fault:${fault.code}`, ...fault }
}

export function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const fault = publicFault(error)
  if (fault.code === 'internal')
    request.log.error({ err: error, request_id: request.id }, 'a request failed unforeseen')
  else if (fault.status >= 500) request.log.warn({ err: error, request_id: request.id }, 'a request failed')
  if (error instanceof RateLimited) reply.header('retry-after', String(error.retryAfter_s))
  if (fault.status === 401) reply.header('www-authenticate', 'Bearer realm="wadah"')
  request.faultCode = fault.code
  return reply
    .code(fault.status)
    .header('content-type', 'application/problem+json')
    .send(JSON.stringify(problem(fault)))
}

const templates = allEndpoints.map((e) => ({ ...e, parts: e.path.split('/') }))

/** The methods that a path takes; empty when there is no such path. */
export function methodsOf(path: string): string[] {
  const parts = path.split('/')
  const fits = templates.filter(
    (t) =>
      t.parts.length === parts.length &&
      t.parts.every((p, i) => (p.startsWith('{') ? parts[i] !== '' : p === parts[i])),
  )
  const methods = new Set<string>(fits.map((t) => t.method))
  if (fits.some((t) => t.method === 'GET' && t.answer !== 'stream')) methods.add('HEAD')
  return [...methods].toSorted()
}

/** For a path that nothing answers: 405 with the methods it has, or 404 with the route that may have been meant. */
export function notFound(request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const path = request.url.split('?')[0] ?? ''
  const methods = methodsOf(path)
  if (methods.length > 0) {
    reply.header('allow', [...methods, 'OPTIONS'].join(', '))
    if (request.method === 'OPTIONS') return reply.code(204).send()
    const refused = fail(
      'method_not_allowed',
      `${request.method} is not possible on ${path}; ${methods.join(', ')} is.`,
    )
    return sendProblem(refused, request, reply)
  }
  const remedy = hint(path)
  return sendProblem(fail('not_found', `There is nothing at ${path.slice(0, 200)}.`, { remedy }), request, reply)
}

/** Compares word by word against the fixed words of each route of the same length. */
function hint(path: string): string {
  const parts = path.replace(/\/+$/, '').split('/')
  const tries = templates.map((t) => t.parts.map((p, i) => (p.startsWith('{') ? (parts[i] ?? p) : p)).join('/'))
  const near = nearest(parts.join('/'), tries)
  return near ? `did you mean ${near}?` : 'see /v1/openapi.json for all that there is'
}

/** To a socket that no answer object belongs to: of an Upgrade that is refused, of what could not be read as HTTP. */
export function answerRaw(socket: Duplex, f: Fault): void {
  if (!socket.writable) return void socket.destroy()
  const body = JSON.stringify(problem(f))
  socket.end(
    `HTTP/1.1 ${f.status} ${STATUS_CODES[f.status] ?? 'Error'}\r\nContent-Type: application/problem+json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
}
