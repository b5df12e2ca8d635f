import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.rules

export function ruleRoutes({ rules }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => rules.list(caller, query)),
    bind(e.create, ({ caller, body }) => rules.create(caller, body)),
    bind(e.get, ({ caller, params }) => rules.get(caller, params.rule)),
    bind(e.delete, ({ caller, params, generation }) => rules.delete(caller, params.rule, generation)),
  ]
}
