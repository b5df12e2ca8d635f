import { endpoints } from '@wadah/api/endpoints/all'
import { openapiDocument } from '@wadah/api/openapi'
import type { Services } from '@wadah/cluster/services'
import type { EventStreams } from '../events.ts'
import { type Binding, bind } from '../route.ts'

const e = endpoints.system

export function systemRoutes(
  { host, metrics }: Services,
  version: string,
  events: EventStreams,
  backup: () => AsyncIterable<Uint8Array>,
): Binding[] {
  return [
    bind(e.host, () => host.get()),
    bind(e.check, () => host.check()),
    bind(e.devices, () => host.devices()),
    bind(e.stopGuests, ({ caller, body }) => host.stopGuests(caller, body)),
    bind(e.backup, () => backup()),
    bind(e.ping, () => ({ ok: true as const, version })),
    bind(e.openapi, () => openapiDocument(version)),
    bind(e.metrics, () => textOf(metrics)),
    bind(e.events, ({ query, request, signal }) => {
      const lastEventId = request.headers['last-event-id']
      const last = typeof lastEventId === 'string' ? lastEventId : undefined
      return events.open({ identity: request.identity, resource: query.resource, lastEventId: last, signal })
    }),
  ]
}

async function* textOf(metrics: Services['metrics']): AsyncGenerator<Uint8Array> {
  yield Buffer.from(await metrics.text())
}
