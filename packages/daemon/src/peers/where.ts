import { fail } from '@wadah/api/fault'
import type { Cluster } from '@wadah/cluster/cluster'
import { hostNamed, whereIs } from '@wadah/cluster/members/where'
import type { Where } from './forward.ts'

/** @throws WadahError `not_found` for a host that is not there */
export function whereOf({ view }: Pick<Cluster, 'view'>, project = 'default'): Where {
  return (endpoint, request) => {
    const query = (request.query ?? {}) as Record<string, unknown>
    const named = query['host']
    if (typeof named === 'string' && hostNamed(view, named) === undefined)
      throw fail('not_found', `There is no host "${named.slice(0, 80)}".`, {
        field: '/host',
        remedy: 'wadah host list',
      })
    const params = (request.params ?? {}) as Record<string, string | undefined>
    return whereIs(view, project, { id: endpoint.id, params, query, body: request.body })
  }
}
