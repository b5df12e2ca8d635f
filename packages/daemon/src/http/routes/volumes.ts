import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.volumes

export function volumeRoutes({ storage, transfers }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => storage.listVolumes(caller, query)),
    bind(e.create, ({ caller, body }) => storage.createVolume(caller, body)),
    bind(e.upload, ({ caller, query, data, signal }) => {
      const { wait: _, ...asked } = query
      return transfers.uploadVolume(caller, asked, data, signal)
    }),
    bind(e.download, ({ caller, params, query, signal }) =>
      transfers.downloadVolume(caller, params.volume, query.format, signal),
    ),
    bind(e.convert, ({ caller, params, body }) => transfers.changeVolume(caller, params.volume, body)),
    bind(e.move, ({ caller, params, body }) => transfers.changeVolume(caller, params.volume, body)),
    bind(e.get, ({ caller, params }) => storage.getVolume(caller, params.volume)),
    bind(e.clone, ({ caller, params, body }) => storage.cloneVolume(caller, params.volume, body)),
    bind(e.resize, ({ caller, params, body }) => storage.resizeVolume(caller, params.volume, body)),
    bind(e.delete, ({ caller, params, generation }) => storage.deleteVolume(caller, params.volume, generation)),
  ]
}
