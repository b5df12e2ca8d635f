/**
 * One entry for each thing the API can do. Routes, the OpenAPI document and the typed client are all made from these
 * entries, so they cannot disagree.
 */
import type Type from 'typebox'
import type { TSchema } from 'typebox'

export type Method = 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE'
/** `read` is enough for looking; `full` is needed to change anything; `none` needs no login. */
export type Needs = 'none' | 'read' | 'full'
/** `job`: answers 202 with a Job (or, with `?wait=`, 200 with the ended Job). `stream`: the body is not JSON. */
export type Answer = 'ok' | 'created' | 'no-content' | 'job' | 'stream'

export type Endpoint<
  P extends TSchema | undefined = TSchema | undefined,
  Q extends TSchema | undefined = TSchema | undefined,
  B extends TSchema | undefined = TSchema | undefined,
  R extends TSchema | undefined = TSchema | undefined,
> = {
  id: string
  method: Method
  /** With `{param}` as OpenAPI writes it. */
  path: string
  summary: string
  tag: string
  needs: Needs
  answer: Answer
  params: P
  query: Q
  body: B
  response: R
  /** For `stream` bodies. */
  accepts?: string
  produces?: string
  /** The largest body taken, bytes; 1 MiB unless said. */
  body_limit_bytes?: number
  /** For PATCH and DELETE: an `If-Match` header with the generation is honoured. */
  if_match?: boolean
}

export type StaticOf<T extends TSchema | undefined> = T extends TSchema ? Type.Static<T> : undefined

export function endpoint<
  P extends TSchema | undefined = undefined,
  Q extends TSchema | undefined = undefined,
  B extends TSchema | undefined = undefined,
  R extends TSchema | undefined = undefined,
>(
  e: Omit<Endpoint, 'params' | 'query' | 'body' | 'response'> & { params?: P; query?: Q; body?: B; response?: R },
): Endpoint<P, Q, B, R> {
  return {
    ...e,
    params: e.params as P,
    query: e.query as Q,
    body: e.body as B,
    response: e.response as R,
  }
}
