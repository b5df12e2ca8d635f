import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.networks

export function networkRoutes({ networks }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => networks.list(caller, query)),
    bind(e.create, ({ caller, body }) => networks.create(caller, body)),
    bind(e.get, ({ caller, params }) => networks.get(caller, params.network)),
    bind(e.delete, ({ caller, params, generation }) => networks.delete(caller, params.network, generation)),
  ]
}
