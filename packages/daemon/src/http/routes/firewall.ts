import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.firewallGroups

export function firewallRoutes({ firewallGroups }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => firewallGroups.list(caller, query)),
    bind(e.create, ({ caller, body }) => firewallGroups.create(caller, body)),
    bind(e.get, ({ caller, params }) => firewallGroups.get(caller, params.group)),
    bind(e.edit, ({ caller, params, body, generation }) => firewallGroups.edit(caller, params.group, body, generation)),
    bind(e.delete, ({ caller, params, generation }) => firewallGroups.delete(caller, params.group, generation)),
  ]
}
