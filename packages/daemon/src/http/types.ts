/** What the HTTP layer hangs onto a request. */
import type { Endpoint } from '@wadah/api/endpoint'
import type { FaultCode } from '@wadah/api/fault'
import type { Identity } from './access/store.ts'

declare module 'fastify' {
  interface FastifyRequest {
    identity: Identity | undefined
    faultCode: FaultCode | undefined
    /** Where it is counted, from arrival to the end of the answer. */
    source: string | undefined
  }
  interface FastifyContextConfig {
    endpoint?: Endpoint
  }
}

/** Set on every connection that came over the UNIX socket. Whoever may open that file is trusted as root is. */
export const overSocket = new WeakSet<object>()

/** The JSON of a request as it came, before defaults were filled in. */
export const bodyText = new WeakMap<object, string>()

/** Connections of other hosts of the cluster, with the host's id: they pass on what was asked of them, and by whom. */
export const overPeer = new WeakMap<object, string>()
