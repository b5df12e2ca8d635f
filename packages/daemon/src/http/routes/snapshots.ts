import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.snapshots

export function snapshotRoutes({ snapshots }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, params }) => snapshots.list(caller, params.vm)),
    bind(e.create, ({ caller, params, body }) => snapshots.create(caller, params.vm, body)),
    bind(e.get, ({ caller, params }) => snapshots.get(caller, params.vm, params.snapshot)),
    bind(e.revert, ({ caller, params, body }) => snapshots.revert(caller, params.vm, params.snapshot, body)),
    bind(e.delete, ({ caller, params }) => snapshots.delete(caller, params.vm, params.snapshot)),
  ]
}
