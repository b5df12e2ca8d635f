import Type from 'typebox'
import { endpoint } from '../endpoint.ts'
import { IdSchema, RefSchema } from '../ids.ts'
import {
  AuditSchema,
  LoginSchema,
  SessionSchema,
  SetupCodeSchema,
  SetupSchema,
  TokenCreateSchema,
  TokenSchema,
} from '../schema/access.ts'
import { Closed, PageOf, PageQuerySchema } from '../schema/common.ts'
import { HostDevicesSchema } from '../schema/devices.ts'
import { HostCheckSchema, HostSchema } from '../schema/host.ts'
import { JOB_STATES, JobLogSchema, JobSchema } from '../schema/job.ts'
import { NetworkCreateSchema, NetworkSchema } from '../schema/network.ts'

/** Prometheus' text format. */
export const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

const get = { method: 'GET', needs: 'read', answer: 'ok' } as const

const network = { tag: 'networks', params: Closed({ network: RefSchema }) }
export const networks = {
  list: endpoint({
    ...get,
    id: 'networks.list',
    path: '/v1/networks',
    tag: 'networks',
    summary: 'List networks',
    query: Closed(PageQuerySchema),
    response: PageOf(NetworkSchema, 'NetworkPage'),
  }),
  create: endpoint({
    id: 'networks.create',
    method: 'POST',
    path: '/v1/networks',
    tag: 'networks',
    summary: 'Create a network',
    needs: 'full',
    answer: 'created',
    body: NetworkCreateSchema,
    response: NetworkSchema,
  }),
  get: endpoint({
    ...get,
    ...network,
    id: 'networks.get',
    path: '/v1/networks/{network}',
    summary: 'Show a network',
    response: NetworkSchema,
  }),
  delete: endpoint({
    ...network,
    id: 'networks.delete',
    method: 'DELETE',
    path: '/v1/networks/{network}',
    summary: 'Delete a network that no VM uses',
    needs: 'full',
    answer: 'no-content',
    if_match: true,
  }),
} as const

const job = { tag: 'jobs', params: Closed({ job: IdSchema }) }
export const jobs = {
  list: endpoint({
    ...get,
    id: 'jobs.list',
    path: '/v1/jobs',
    tag: 'jobs',
    summary: 'List jobs, newest first',
    query: Closed({
      ...PageQuerySchema,
      state: Type.Optional(Type.Enum(JOB_STATES)),
      target: Type.Optional(Type.String({ maxLength: 63 })),
    }),
    response: PageOf(JobSchema, 'JobPage'),
  }),
  get: endpoint({
    ...get,
    ...job,
    id: 'jobs.get',
    path: '/v1/jobs/{job}',
    summary: 'Show a job; with `wait`, once it ended',
    query: Closed({ wait: Type.Optional(Type.Integer({ minimum: 0, maximum: 600 })) }),
    response: JobSchema,
  }),
  log: endpoint({
    ...get,
    ...job,
    id: 'jobs.log',
    path: '/v1/jobs/{job}/log',
    summary: 'Log lines of a job',
    query: Closed({ from: Type.Optional(Type.Integer({ minimum: 0 })) }),
    response: JobLogSchema,
  }),
  cancel: endpoint({
    ...job,
    id: 'jobs.cancel',
    method: 'POST',
    path: '/v1/jobs/{job}/cancel',
    summary: 'Cancel: what was done is undone',
    needs: 'full',
    answer: 'ok',
    response: JobSchema,
  }),
} as const

export const access = {
  setup: endpoint({
    id: 'access.setup',
    method: 'POST',
    path: '/v1/setup',
    tag: 'access',
    summary: 'Make the first administrator with the code of the one-time link',
    needs: 'none',
    answer: 'ok',
    body: SetupSchema,
    response: SessionSchema,
  }),
  setupCode: endpoint({
    id: 'access.setupCode',
    method: 'POST',
    path: '/v1/setup/code',
    tag: 'access',
    summary: 'A new one-time link to make an administrator, or to give one a new password; only over the UNIX socket',
    needs: 'full',
    answer: 'created',
    response: SetupCodeSchema,
  }),
  login: endpoint({
    id: 'access.login',
    method: 'POST',
    path: '/v1/login',
    tag: 'access',
    summary: 'Log in; the answer sets a session cookie',
    needs: 'none',
    answer: 'ok',
    body: LoginSchema,
    response: SessionSchema,
  }),
  logout: endpoint({
    id: 'access.logout',
    method: 'POST',
    path: '/v1/logout',
    tag: 'access',
    summary: 'End the session',
    needs: 'read',
    answer: 'no-content',
  }),
  session: endpoint({
    ...get,
    id: 'access.session',
    path: '/v1/session',
    tag: 'access',
    summary: 'Who am I',
    response: SessionSchema,
  }),
  audit: endpoint({
    ...get,
    needs: 'full',
    id: 'access.audit',
    path: '/v1/audit',
    tag: 'access',
    summary: 'Who changed what, newest first',
    query: Closed({ limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 100 })) }),
    response: Type.Object({ items: Type.Array(AuditSchema) }, { title: 'AuditPage' }),
  }),
} as const

export const tokens = {
  list: endpoint({
    ...get,
    needs: 'full',
    id: 'tokens.list',
    path: '/v1/tokens',
    tag: 'tokens',
    summary: 'List API tokens',
    response: Type.Object({ items: Type.Array(TokenSchema) }, { title: 'TokenPage' }),
  }),
  create: endpoint({
    id: 'tokens.create',
    method: 'POST',
    path: '/v1/tokens',
    tag: 'tokens',
    summary: 'Make an API token; its secret is shown this once',
    needs: 'full',
    answer: 'created',
    body: TokenCreateSchema,
    response: TokenSchema,
  }),
  get: endpoint({
    ...get,
    needs: 'full',
    id: 'tokens.get',
    path: '/v1/tokens/{token}',
    tag: 'tokens',
    summary: 'Show a token, without its secret',
    params: Closed({ token: RefSchema }),
    response: TokenSchema,
  }),
  delete: endpoint({
    id: 'tokens.delete',
    method: 'DELETE',
    path: '/v1/tokens/{token}',
    tag: 'tokens',
    summary: 'Revoke a token at once',
    needs: 'full',
    answer: 'no-content',
    params: Closed({ token: RefSchema }),
  }),
} as const

/** In a cluster: another host than the one that is asked. */
const hostField = Type.Optional(
  Type.String({
    minLength: 1,
    maxLength: 253,
    description: 'name or id of a host of the cluster; the one that is asked unless said',
  }),
)
const ofHost = Closed({ host: hostField })
export const system = {
  host: endpoint({
    ...get,
    id: 'system.host',
    path: '/v1/host',
    tag: 'system',
    query: ofHost,
    summary: 'This host: what it can do, what needs attention',
    response: HostSchema,
  }),
  check: endpoint({
    ...get,
    id: 'system.check',
    path: '/v1/host/check',
    tag: 'system',
    query: ofHost,
    summary:
      'Look at this host anew: what it can do, what it lacks and how to get it, and which VMs run an outdated QEMU',
    response: HostCheckSchema,
  }),
  devices: endpoint({
    ...get,
    id: 'system.devices',
    path: '/v1/host/devices',
    tag: 'system',
    query: ofHost,
    summary: 'PCI and USB devices of this host: what they are used for, and whether a VM can be given them',
    response: HostDevicesSchema,
  }),
  stopGuests: endpoint({
    id: 'system.stopGuests',
    method: 'POST',
    path: '/v1/host/stop-guests',
    tag: 'system',
    summary:
      'Shut down every guest before the host ends; they are still wanted, so those that start with the host come back',
    needs: 'full',
    answer: 'job',
    query: Closed({ wait: Type.Optional(Type.Integer({ minimum: 0, maximum: 600 })), host: hostField }),
    body: Closed(
      {
        timeout_s: Type.Optional(
          Type.Integer({
            minimum: 1,
            maximum: 3600,
            default: 120,
            description: 'for each guest; then it loses its plug',
          }),
        ),
        total_s: Type.Optional(
          Type.Integer({ minimum: 1, maximum: 7200, default: 300, description: 'for all of them' }),
        ),
      },
      { title: 'StopGuests' },
    ),
    response: JobSchema,
  }),
  backup: endpoint({
    id: 'system.backup',
    method: 'POST',
    path: '/v1/store/backup',
    tag: 'system',
    summary: 'A consistent copy of the record store, for `wadahd --restore`. It holds secrets: keep it safe',
    needs: 'full',
    answer: 'stream',
    produces: 'application/vnd.sqlite3',
  }),
  ping: endpoint({
    ...get,
    needs: 'none',
    id: 'system.ping',
    path: '/v1/ping',
    tag: 'system',
    summary: 'Is anybody there',
    response: Type.Object({ ok: Type.Literal(true), version: Type.String() }, { title: 'Pong' }),
  }),
  openapi: endpoint({
    ...get,
    needs: 'none',
    id: 'system.openapi',
    path: '/v1/openapi.json',
    tag: 'system',
    summary: 'This document',
    response: Type.Object({}, { title: 'OpenApi', additionalProperties: true }),
  }),
  metrics: endpoint({
    ...get,
    answer: 'stream',
    id: 'system.metrics',
    path: '/metrics',
    tag: 'system',
    summary: 'What this host counts and measures, for Prometheus: scrape every host',
    produces: METRICS_TYPE,
  }),
  events: endpoint({
    ...get,
    answer: 'stream',
    id: 'system.events',
    path: '/v1/events',
    tag: 'system',
    summary: 'Server-sent events: every change, resumable with Last-Event-ID; job progress as volatile events',
    query: Closed({
      resource: Type.Optional(Type.String({ maxLength: 200, description: 'comma-separated: vm,job,…' })),
    }),
    produces: 'text/event-stream',
  }),
} as const
