import { fail } from '@wadah/api/fault'
import type { VmCreate } from '@wadah/api/schema/vm'
import type { Cluster } from '@wadah/cluster/cluster'
import { hostFor } from '@wadah/cluster/members/scheduling'
import { hostNamed, whereIs } from '@wadah/cluster/members/where'
import type { PassOn, Where } from './forward.ts'

/** @throws WadahError `not_found` for a host that is not there */
export function whereOf({ view, deps }: Pick<Cluster, 'view' | 'deps'>, project = 'default'): Where {
  return (endpoint, request) => {
    if (endpoint.id === 'vms.create')
      return hostFor(view, project, request.body as VmCreate, {
        now_ms: deps.clock.now_ms(),
        memory_overcommit: deps.config.memory_overcommit,
        own: deps.hostId,
      })
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

/** A host that is alone carries out everything; but what is asked of another, it does not do in its place. */
export function onlyHere(where: Where): PassOn {
  return async (endpoint, request) => {
    await where(endpoint, request)
    return false
  }
}
