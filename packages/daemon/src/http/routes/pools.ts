import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.pools

export function poolRoutes({ storage }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => storage.listPools(caller, query)),
    bind(e.create, ({ caller, body }) => storage.createPool(caller, body)),
    bind(e.get, ({ caller, params }) => storage.getPool(caller, params.pool)),
    bind(e.edit, ({ caller, params, body, generation }) => storage.editPool(caller, params.pool, body, generation)),
    bind(e.delete, ({ caller, params, generation }) => storage.deletePool(caller, params.pool, generation)),
  ]
}
