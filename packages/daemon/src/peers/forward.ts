/** A request that another host must carry out is passed on as it came, and its answer as it comes. */
import https from 'node:https'
import type { IncomingMessage } from 'node:http'
import type { Endpoint } from '@wadah/api/endpoint'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { BODY_LIMIT_BYTES, LOOKING } from '../http/limits.ts'
import { limited } from '../http/streams.ts'
import { passSubject, SUBJECT_HEADER } from '../http/passed.ts'
import { bodyText, overPeer } from '../http/types.ts'
import type { PeerClient } from './client.ts'

/** Hop by hop, or of the connection to the client (RFC 9110, 7.6.1). */
const NOT_PASSED = new Set([
  'authorization',
  'connection',
  'cookie',
  'content-length',
  'expect',
  'host',
  'keep-alive',
  'origin',
  'te',
  'transfer-encoding',
  'upgrade',
  // Who asks this host says, never a client.
  SUBJECT_HEADER,
])
const NOT_BACK = new Set([
  'connection',
  'keep-alive',
  'transfer-encoding',
  'x-request-id',
  'cache-control',
  'set-cookie',
])

export type Where = (endpoint: Endpoint, request: FastifyRequest) => string | undefined | Promise<string | undefined>

/** False: this host carries it out itself. */
export type PassOn = (endpoint: Endpoint, request: FastifyRequest, reply: FastifyReply) => Promise<boolean>

export function passOnTo(peers: PeerClient, own: string, where: Where): PassOn {
  return async (endpoint, request, reply) => {
    // Passed on once already: two hosts that disagree must not send it to and fro.
    if (overPeer.has(request.raw.socket)) return false
    const host = await where(endpoint, request)
    if (host === undefined || host === own) return false
    const answer = await send(peers, host, endpoint, request, reply)
    reply.code(answer.statusCode ?? 502)
    for (const [name, value] of Object.entries(answer.headers))
      if (value !== undefined && !NOT_BACK.has(name)) reply.header(name, value)
    reply.header('wadah-host', peers.nameOf(host))
    reply.send(answer)
    return true
  }
}

function send(
  peers: PeerClient,
  host: string,
  endpoint: Endpoint,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<IncomingMessage> {
  const headers: Record<string, string | string[]> = {}
  for (const [name, value] of Object.entries(request.headers))
    if (value !== undefined && !NOT_PASSED.has(name)) headers[name] = value
  const subject = request.identity?.subject
  if (subject) headers[SUBJECT_HEADER] = passSubject(subject)
  const upload = endpoint.accepts !== undefined
  // As it came: what this release filled in an older one may not know. One that was left out has become an empty object by now.
  const body =
    upload || request.body === undefined || request.body === null ? undefined : (bodyText.get(request.raw) ?? '{}')
  if (body !== undefined) headers['content-type'] = 'application/json'
  // Said also when there is none: without it Node announces a body in pieces.
  const length = upload
    ? request.headers['content-length']
    : LOOKING.has(request.method)
      ? undefined
      : String(Buffer.byteLength(body ?? ''))
  if (length !== undefined) headers['content-length'] = length
  return new Promise((resolve, reject) => {
    const out = https.request({ ...peers.options(host), method: request.method, path: request.url, headers })
    reply.raw.once('close', () => {
      if (!reply.raw.writableFinished) out.destroy()
    })
    out.once('response', resolve)
    out.once('error', (cause) => reject(peers.unreachable(host, cause)))
    if (!upload) return void out.end(body)
    const pump = async () => {
      for await (const part of limited(request.raw, endpoint.body_limit_bytes ?? BODY_LIMIT_BYTES))
        if (!out.write(part)) await new Promise<void>((go) => out.once('drain', go).once('close', go))
      out.end()
    }
    pump().catch((error: unknown) => {
      out.destroy()
      reject(error instanceof Error ? error : new Error(String(error)))
    })
  })
}
