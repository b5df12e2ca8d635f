/** The endpoint table as an OpenAPI 3.1 document. Pure: the same table and version give the same document. */
import type { Endpoint } from './endpoint.ts'
import { allEndpoints } from './endpoints/all.ts'
import { FAULTS, type FaultCode, FaultSchema } from './fault.ts'
import { RefSchema } from './ids.ts'
import { EventSchema } from './schema/host.ts'

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
type JsonObject = { [key: string]: Json }

const TAGS: Record<string, string> = {
  vms: 'Virtual servers: what is wanted of them, what was observed, and what can be done with them.',
  images: 'Read-only disks that VMs are made from, and the recipes they are built by.',
  pools: 'Places that store disks.',
  volumes: 'Disks.',
  networks: 'What a NIC is attached to.',
  firewall: 'Security groups: firewall rules that VMs share.',
  rules: 'Which VMs are kept on one host, on different hosts, on certain hosts.',
  jobs: 'Long actions: steps, progress, log, cancel.',
  access: 'Logging in, and who changed what.',
  tokens: 'API tokens for programs.',
  system: 'This host, its events, and this document.',
  cluster: 'Many hosts that work as one: who is in it, who may join.',
}

const DESCRIPTION = `One daemon per host; every error is problem+json (RFC 9457) with a stable \`code\`.

A long action answers 202 with a Job and its \`Location\`; with \`?wait=SECONDS\` it answers 200 once the job ended, whether it
is done or failed (see \`state\` and \`fault\`), or 202 when it still runs. Unknown fields and parameters are refused, not dropped.
See docs/api.md.`

/** @throws Error when two different schemas have the same title */
export function openapiDocument(version: string, endpoints: readonly Endpoint[] = allEndpoints): JsonObject {
  const schemas = new Map<string, JsonObject>()
  const schema = (source: object) => referenced(plain(source), schemas)
  const paths: { [path: string]: JsonObject } = {}
  for (const endpoint of endpoints) {
    const path = (paths[endpoint.path] ??= {})
    path[endpoint.method.toLowerCase()] = operation(endpoint, schema)
  }
  paths['/v1/console'] = { get: consoleOperation() }
  schema(FaultSchema)
  return {
    openapi: '3.1.0',
    info: {
      title: 'Wadah',
      version,
      summary: 'Virtual servers on this host',
      description: DESCRIPTION,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/', description: 'the daemon this document came from' }],
    tags: Object.entries(TAGS).map(([name, description]) => ({ name, description })),
    security: [{ token: [] }, { session: [] }],
    paths,
    components: {
      securitySchemes: {
        token: {
          type: 'http',
          scheme: 'bearer',
          bearerFormat: 'wadah_<id>_<secret>',
          description: 'An API token; scope read or full.',
        },
        session: {
          type: 'apiKey',
          in: 'cookie',
          name: '__Host-wadah',
          description:
            'Set by a login; changes must come from a page of the daemon itself. On the UNIX socket neither is needed.',
        },
      },
      headers: {
        RequestId: { description: 'Also in the audit log and the log of the daemon.', schema: { type: 'string' } },
        ETag: {
          description: 'The generation in double quotes, for If-Match.',
          schema: { type: 'string', examples: ['"7"'] },
        },
        JobLocation: { description: 'URL of the job.', schema: { type: 'string' } },
        NewLocation: { description: 'URL of what was made.', schema: { type: 'string' } },
        RetryAfter: { description: 'Seconds until the next try.', schema: { type: 'integer' } },
        Replayed: {
          description: 'The request was carried out before; this is its answer.',
          schema: { type: 'string', const: 'true' },
        },
      },
      schemas: Object.fromEntries([...schemas].toSorted(([a], [b]) => (a < b ? -1 : 1))),
    },
  }
}

/** JSON alone: without what the schema library keeps beside it. */
const plain = (source: object): JsonObject => JSON.parse(JSON.stringify(source)) as JsonObject

/** Puts every schema with a title under `components.schemas`, and a reference in its place. */
function referenced(source: JsonObject, schemas: Map<string, JsonObject>): JsonObject {
  const inner = (value: Json): Json => {
    if (Array.isArray(value)) return value.map(inner)
    return typeof value === 'object' && value !== null ? referenced(value, schemas) : value
  }
  const copy = Object.fromEntries(Object.entries(source).map(([key, value]) => [key, inner(value)]))
  const { title, type } = copy
  if (typeof title !== 'string' || typeof type !== 'string') return copy
  const known = schemas.get(title)
  if (known && JSON.stringify(known) !== JSON.stringify(copy))
    throw new Error(`two different schemas are called ${title}`)
  schemas.set(title, copy)
  return { $ref: `#/components/schemas/${title}` }
}

type ToSchema = (source: object) => JsonObject

function operation(e: Endpoint, schema: ToSchema): JsonObject {
  const parameters = [
    ...parametersOf(e.params, 'path', schema),
    ...parametersOf(e.query, 'query', schema),
    ...headersOf(e),
  ]
  return {
    operationId: e.id.replace('.', '_'),
    summary: e.summary,
    tags: [e.tag],
    'x-needs': e.needs,
    ...(e.needs === 'none' && { security: [] }),
    ...(parameters.length > 0 && { parameters }),
    ...requestBody(e, schema),
    responses: { ...success(e, schema), ...failures(e) },
  }
}

function parametersOf(source: object | undefined, place: 'path' | 'query', schema: ToSchema): JsonObject[] {
  if (!source) return []
  const { properties = {}, required = [] } = source as { properties?: Record<string, object>; required?: string[] }
  return Object.entries(properties).map(([name, value]) => {
    const { description, ...rest } = schema(value)
    return {
      name,
      in: place,
      required: place === 'path' || required.includes(name),
      ...(typeof description === 'string' && { description }),
      schema: rest,
    }
  })
}

function headersOf(e: Endpoint): JsonObject[] {
  const header = (name: string, description: string, schema: JsonObject) => ({
    name,
    in: 'header',
    required: false,
    description,
    schema,
  })
  const headers: JsonObject[] = []
  if (e.if_match) {
    const text =
      'The generation in double quotes, as in the ETag: refused with `precondition_failed` when it is another by now.'
    headers.push(header('If-Match', text, { type: 'string', pattern: '^(\\*|"[0-9]+")$' }))
  }
  if (e.answer === 'job' || (e.method === 'POST' && e.needs !== 'none')) {
    const text = 'Sent again within 24 hours with the same request, the request is not carried out again.'
    headers.push(header('Idempotency-Key', text, { type: 'string', pattern: '^[!-~]{1,128}$' }))
  }
  if (e.produces === 'text/event-stream') {
    headers.push(header('Last-Event-ID', 'Go on after this event.', { type: 'string' }))
  }
  return headers
}

function requestBody(e: Endpoint, schema: ToSchema): JsonObject {
  if (e.accepts !== undefined) {
    const limit = `At most ${e.body_limit_bytes ?? 1024 * 1024} bytes.`
    return {
      requestBody: {
        required: true,
        description: limit,
        content: { [e.accepts]: { schema: { type: 'string', format: 'binary' } } },
      },
    }
  }
  if (!e.body) return {}
  const needed = ((e.body as { required?: string[] }).required ?? []).length > 0
  return { requestBody: { required: needed, content: { 'application/json': { schema: schema(e.body) } } } }
}

const REQUEST_ID: JsonObject = { 'X-Request-Id': { $ref: '#/components/headers/RequestId' } }
const header = (name: string): JsonObject => ({ $ref: `#/components/headers/${name}` })

function success(e: Endpoint, schema: ToSchema): JsonObject {
  const json: JsonObject = e.response ? { content: { 'application/json': { schema: schema(e.response) } } } : {}
  const replayed: JsonObject =
    e.method === 'POST' && e.needs !== 'none' && e.answer !== 'job'
      ? { 'Idempotency-Replayed': header('Replayed') }
      : {}
  switch (e.answer) {
    case 'no-content':
      return { 204: { description: 'Done.', headers: REQUEST_ID } }
    case 'created':
      return {
        201: {
          description: 'Made.',
          headers: { ...REQUEST_ID, ...replayed, Location: header('NewLocation') },
          ...json,
        },
      }
    case 'job': {
      const headers = { ...REQUEST_ID, Location: header('JobLocation') }
      return {
        200: { description: 'With `wait`: the job ended, as its `state` says.', headers, ...json },
        202: { description: 'The job runs.', headers, ...json },
      }
    }
    case 'stream':
      return {
        200: {
          description: streamText(e),
          headers: REQUEST_ID,
          content: { [e.produces ?? 'application/octet-stream']: streamSchema(e, schema) },
        },
      }
    default: {
      const properties = (e.response as { properties?: object } | undefined)?.properties ?? {}
      const etag: JsonObject = 'generation' in properties ? { ETag: header('ETag') } : {}
      return { 200: { description: 'OK.', headers: { ...REQUEST_ID, ...replayed, ...etag }, ...json } }
    }
  }
}

function streamText(e: Endpoint): string {
  if (e.produces !== 'text/event-stream') return 'The content, as a stream.'
  return (
    'Events: `change` (data: Event; its id resumes), `progress` (data: {job, step, percent}; no id, may be lost), ' +
    '`reset` (changes were missed: list again). A comment every 15 s shows that the connection lives.'
  )
}

function streamSchema(e: Endpoint, schema: ToSchema): JsonObject {
  if (e.produces?.startsWith('text/plain')) return { schema: { type: 'string' } }
  if (e.produces !== 'text/event-stream') return { schema: { type: 'string', format: 'binary' } }
  const description = 'Server-sent events; `contentSchema` is that of the data of a `change`.'
  return { schema: { type: 'string', description, contentSchema: schema(EventSchema) } }
}

/** Whether something that is there already is named in it: by a reference, or a recipe or a host by its name. */
function refersTo(source: object | undefined): boolean {
  const text = JSON.stringify(source ?? {})
  return text.includes(JSON.stringify(RefSchema)) || text.includes('"recipe":') || text.includes('"host":{')
}

/** Which refusals a client should expect, besides `internal`. */
function codesOf(e: Endpoint): FaultCode[] {
  const codes = new Set<FaultCode>(['invalid', 'malformed', 'forbidden', 'rate_limited', 'store_failed', 'unavailable'])
  const add = (...more: FaultCode[]) => more.forEach((code) => codes.add(code))
  if (e.needs !== 'none' || e.id === 'access.login') add('unauthenticated')
  if (e.params || refersTo(e.query) || refersTo(e.body)) add('not_found')
  if (e.if_match) add('precondition_failed')
  if (e.body || e.accepts) add('too_large', 'unsupported_media_type')
  if (e.method !== 'GET' && e.needs !== 'none') add('idempotency_mismatch', 'busy', 'conflict', 'wrong_state', 'in_use')
  if (e.answer === 'job' || e.answer === 'created') add('name_taken', 'no_room', 'host_lacks')
  if (e.answer === 'created') add('gone')
  if (e.answer === 'job' || e.id === 'vms.edit') add('address_taken', 'port_taken')
  if (/^vms\.(exec|guest|freeze|thaw|getFile|putFile|health)$/.test(e.id))
    add('agent_silent', 'agent_failed', 'wrong_state', 'timeout')
  if (/^vms\.(reset|pause|resume|edit|screenshot|insert|eject)$/.test(e.id)) add('qemu_failed', 'monitor_silent')
  if (/^(images\.export|volumes\.download)$/.test(e.id))
    add('wrong_state', 'busy', 'in_use', 'no_room', 'host_lacks', 'tool_failed', 'cancelled', 'timeout')
  if (e.id === 'vms.screenshot') add('wrong_state', 'busy', 'host_lacks')
  if (e.id === 'jobs.cancel') add('too_late')
  return [...codes]
}

function failures(e: Endpoint): JsonObject {
  const byStatus = Map.groupBy(codesOf(e), (code) => FAULTS[code].status)
  const answers = [...byStatus].map(([status, codes]): [string, JsonObject] => [
    String(status),
    {
      description: codes.map((code) => `\`${code}\`: ${FAULTS[code].title}.`).join(' '),
      headers: { ...REQUEST_ID, ...(status === 429 && { 'Retry-After': header('RetryAfter') }) },
      content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Fault' } } },
    },
  ])
  return Object.fromEntries(answers)
}

function consoleOperation(): JsonObject {
  return {
    operationId: 'console_open',
    summary: 'The console of a VM as a WebSocket with binary frames both ways',
    description:
      'The ticket comes from `POST /v1/vms/{vm}/console`, is good once and for a minute. Close codes: 1000 the console ended, ' +
      '1001 the daemon stops, 1003 a text frame was sent, 1009 a message over 1 MiB, 1011 the console failed, 4401 ticket unknown, ' +
      'used or old, 4403 login ended, 4408 client too slow, 4429 too many consoles, 4504 guest too slow.',
    tags: ['vms'],
    security: [],
    parameters: [{ name: 'ticket', in: 'query', required: true, schema: { type: 'string' } }],
    responses: {
      101: { description: 'Switching to WebSocket.' },
      403: {
        description: 'It comes from a page of another site, or to a name that is not ours.',
        content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Fault' } } },
      },
    },
  }
}
