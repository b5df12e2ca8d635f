import { endpoints } from '@wadah/api/endpoints/all'
import type { AccessStore } from '../access/store.ts'
import { type Binding, bind } from '../route.ts'

const e = endpoints.tokens

export function tokenRoutes(access: AccessStore): Binding[] {
  return [
    bind(e.list, () => ({ items: access.listTokens() })),
    bind(e.create, ({ caller, body }) => access.createToken(caller.subject, body)),
    bind(e.get, ({ params }) => access.getToken(params.token)),
    bind(e.delete, ({ params }) => access.deleteToken(params.token)),
  ]
}
