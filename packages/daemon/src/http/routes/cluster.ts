import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.cluster

export function clusterRoutes({ cluster }: Services): Binding[] {
  return [
    bind(e.get, () => cluster.get()),
    bind(e.set, ({ caller, body }) => cluster.set(caller, body)),
    bind(e.token, ({ caller, body }) => cluster.token(caller, body)),
    bind(e.host, ({ caller, params }) => cluster.host(caller, params.host)),
    bind(e.edit, ({ caller, params, body }) => cluster.edit(caller, params.host, body)),
    bind(e.plan, ({ caller, params, query }) => cluster.plan(caller, params.host, query)),
    bind(e.drain, ({ caller, params, body }) => cluster.drain(caller, params.host, body)),
    bind(e.undrain, ({ caller, params, body }) => cluster.undrain(caller, params.host, body)),
    bind(e.remove, ({ caller, params, query }) => cluster.remove(caller, params.host, query)),
  ]
}
