import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.jobs

export function jobRoutes({ jobs }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => jobs.list(caller, query)),
    bind(e.get, ({ caller, params, query, signal }) =>
      query.wait === undefined ? jobs.get(caller, params.job) : jobs.wait(caller, params.job, query.wait, signal),
    ),
    bind(e.log, ({ caller, params, query }) => jobs.log(caller, params.job, query.from ?? 0)),
    bind(e.cancel, ({ caller, params }) => jobs.cancel(caller, params.job)),
  ]
}
