import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.volumes

export function volumeRoutes({ storage }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => storage.listVolumes(caller, query)),
    bind(e.create, ({ caller, body }) => storage.createVolume(caller, body)),
    bind(e.get, ({ caller, params }) => storage.getVolume(caller, params.volume)),
    bind(e.clone, ({ caller, params, body }) => storage.cloneVolume(caller, params.volume, body)),
    bind(e.resize, ({ caller, params, body }) => storage.resizeVolume(caller, params.volume, body)),
    bind(e.delete, ({ caller, params, generation }) => storage.deleteVolume(caller, params.volume, generation)),
  ]
}
