/** Puts the HTTP layer together. One Fastify application serves both the HTTPS port and the UNIX socket. */
import http from 'node:http'
import cookie from '@fastify/cookie'
import helmet from '@fastify/helmet'
import { fail, type WadahError } from '@wadah/api/fault'
import type { Services } from '@wadah/cluster/services'
import type { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import type { Store } from '@wadah/store/store'
import Fastify, { type FastifyInstance, LogController } from 'fastify'
import type { Logger } from 'pino'
import { LoginLimiter } from './access/limiter.ts'
import { AccessStore } from './access/store.ts'
import { AuditLog } from './audit.ts'
import { Consoles } from './console.ts'
import { EventStreams, type MapEvent } from './events.ts'
import { ownNames } from './guard.ts'
import { addHooks } from './hooks.ts'
import { Replies } from './idempotency.ts'
import { ASSETS } from './pages/pages.ts'
import { notFound, sendProblem } from './problems.ts'
import { register, type RouteOptions } from './route.ts'
import { bodyText } from './types.ts'
import { accessRoutes } from './routes/access.ts'
import { clusterRoutes } from './routes/cluster.ts'
import { imageRoutes } from './routes/images.ts'
import { jobRoutes } from './routes/jobs.ts'
import { firewallRoutes } from './routes/firewall.ts'
import { ruleRoutes } from './routes/rules.ts'
import { networkRoutes } from './routes/networks.ts'
import { poolRoutes } from './routes/pools.ts'
import { systemRoutes } from './routes/system.ts'
import { tokenRoutes } from './routes/tokens.ts'
import { snapshotRoutes } from './routes/snapshots.ts'
import { vmRoutes } from './routes/vms.ts'
import { volumeRoutes } from './routes/volumes.ts'

export type ServerOptions = {
  services: Services
  store: Store
  /** Of everything in the store. */
  view: CachedView
  mapEvent: MapEvent
  clock: Clock
  /** Cryptographically random bytes. */
  random: (bytes: number) => Uint8Array
  log: Logger
  version: string
  /** Append-only file of who changed what. */
  auditFile: string
  /** Names, beside its own and its addresses, under which clients reach this daemon. */
  names?: readonly string[]
  /** What the one-time link begins with: `https://localhost:8443`. */
  publicUrl?: string
  limits?: Partial<Limits>
  /** A copy of the store. */
  backup: () => AsyncIterable<Uint8Array>
  /** In a cluster: what belongs to another host goes there. */
  passOn?: RouteOptions['passOn']
  /** And progress of its jobs comes from there. */
  progress?: Pick<Services['jobs'], 'subscribe'>
  /** And consoles are opened where their VM runs. */
  consoles?: Pick<Services['vms'], 'console'>
}

export type Limits = {
  /** Requests of one source under way at once. */
  requestsPerSource: number
  connections: number
  connectionsPerSource: number
  eventStreams: number
  consoles: number
  consolesPerVm: number
}

export const LIMITS: Limits = {
  requestsPerSource: 256,
  connections: 2048,
  connectionsPerSource: 512,
  eventStreams: 64,
  consoles: 256,
  consolesPerVm: 16,
}

export type Built = {
  app: FastifyInstance
  access: AccessStore
  audit: AuditLog
  consoles: Consoles
  events: EventStreams
  /** Names that the Host header may have. */
  names: ReadonlySet<string>
  limits: Limits
  /** Known once the daemon listens. */
  setPublicUrl(url: string): void
}

const PROJECT = 'default'

export async function buildServer(o: ServerOptions): Promise<Built> {
  const limits = { ...LIMITS, ...o.limits }
  const onTrouble = (error: unknown) =>
    o.log.error({ err: error }, 'the HTTP layer met a failure that no request waits for')
  const { store, view, clock, random, services } = o
  const access = new AccessStore({ store, view, clock, random, onTrouble })
  const audit = new AuditLog({ file: o.auditFile, clock, onTrouble })
  const stillHolds = access.stillHolds.bind(access)
  const consoles = new Consoles({
    vms: o.consoles ?? services.vms,
    clock,
    random,
    stillHolds,
    onTrouble,
    most: limits.consoles,
    mostOfVm: limits.consolesPerVm,
  })
  const events = new EventStreams({
    store,
    view,
    mapEvent: o.mapEvent,
    jobs: o.progress ?? services.jobs,
    clock,
    stillHolds,
    onTrouble,
    most: limits.eventStreams,
  })
  const names = ownNames(o.names ?? [])
  let publicUrl = o.publicUrl ?? 'https://localhost'

  const app = Fastify({
    // Listening is ours (listen.ts): two kinds of socket lead into one application.
    serverFactory: (handler) => http.createServer(handler),
    loggerInstance: o.log as never,
    logController: new LogController({ disableRequestLogging: true }),
    requestIdHeader: false,
    genReqId: requestIds(random),
    trustProxy: false,
    routerOptions: { maxParamLength: 1024 },
    // What the router itself refuses (a path that can't be decoded) passes no hook.
    frameworkErrors: (error, request, reply) => void sendProblem(error, request as never, reply as never),
  }) as unknown as FastifyInstance

  await app.register(cookie)
  await app.register(helmet, {
    contentSecurityPolicy: {
      useDefaults: false,
      directives: {
        defaultSrc: ["'none'"],
        scriptSrc: ["'self'"],
        styleSrc: ["'self'"],
        connectSrc: ["'self'"],
        formAction: ["'self'"],
        baseUri: ["'none'"],
        frameAncestors: ["'none'"],
      },
    },
    referrerPolicy: { policy: 'no-referrer' },
    // The certificate is self-signed: a browser that remembers HSTS would not let its user past the warning.
    strictTransportSecurity: false,
  })
  addParsers(app)
  app.setErrorHandler(sendProblem)
  app.setNotFoundHandler(notFound)
  addHooks(app, { access, audit, names, clock, project: PROJECT, requestsPerSource: limits.requestsPerSource })

  const replies = new Replies({ store, view, clock, onTrouble })
  const limiter = new LoginLimiter(() => clock.monotonic_ms())
  const bindings = [
    vmRoutes(services, consoles),
    snapshotRoutes(services),
    imageRoutes(services),
    poolRoutes(services),
    volumeRoutes(services),
    networkRoutes(services),
    firewallRoutes(services),
    ruleRoutes(services),
    jobRoutes(services),
    accessRoutes({ access, limiter, audit, setupUrl: (code) => `${publicUrl}/setup#${code}` }),
    tokenRoutes(access),
    clusterRoutes(services),
    systemRoutes(services, o.version, events, o.backup),
  ].flat()
  const routing = { jobs: services.jobs, replies, project: PROJECT, ...(o.passOn ? { passOn: o.passOn } : {}) }
  for (const binding of bindings) register(app, binding, routing)
  for (const [url, { type, text }] of Object.entries(ASSETS)) {
    app.get(url, (_, reply) => reply.header('content-type', type).send(text))
  }
  await app.ready()
  return {
    app,
    access,
    audit,
    consoles,
    events,
    names,
    limits,
    setPublicUrl(url) {
      publicUrl = url
    },
  }
}

function addParsers(app: FastifyInstance): void {
  const json = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, text, done) => {
    if (text === '') return done(null, undefined)
    void json(request, text as string, (error, value) => {
      if (error !== null) return done(unreadable(error))
      // Told apart here from a body that was left out.
      if (value === null) return done(fail('invalid', 'the body: null is null; an object is needed', { field: '' }))
      bodyText.set(request.raw, text as string)
      done(null, value)
    })
  })
  // Read by the handler, piece by piece.
  app.addContentTypeParser('application/octet-stream', (_request, _body, done) => done(null, undefined))
}

/** secure-json-parse and V8 say where the text goes wrong; that much is for the client. */
function unreadable(error: Error): WadahError {
  const where = /position \d+|line \d+ column \d+/.exec(error.message)?.[0]
  const poisoned = /prototype/i.test(error.message)
  return fail(
    'malformed',
    poisoned
      ? 'The body has a field called __proto__ or constructor.prototype.'
      : `The body is not JSON${where ? ` (${where})` : ''}.`,
  )
}

/** Unique within the daemon's life, and unlike those of the last one. */
function requestIds(random: (bytes: number) => Uint8Array): () => string {
  const life = Buffer.from(random(4)).toString('hex')
  let count = 0
  return () => `${life}-${(++count).toString(36)}`
}
