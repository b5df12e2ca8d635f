import { endpoints } from '@wadah/api/endpoints/all'
import type { Services } from '@wadah/cluster/services'
import { type Binding, bind } from '../route.ts'

const e = endpoints.images

export function imageRoutes({ images, transfers, warm }: Services): Binding[] {
  return [
    bind(e.list, ({ caller, query }) => images.list(caller, query)),
    bind(e.recipes, async () => ({ items: await images.recipes() })),
    bind(e.build, ({ caller, body }) => images.build(caller, body)),
    bind(e.warm, ({ caller, params, body }) => warm.warm(caller, params.image, body)),
    bind(e.unwarm, ({ caller, params }) => warm.unwarm(caller, params.image)),
    bind(e.createKernel, ({ caller, body }) => images.createKernel(caller, body)),
    bind(e.createIso, ({ caller, body }) => images.createIso(caller, body)),
    bind(e.upload, ({ caller, params, data, signal }) =>
      images.upload(caller, params.image, params.file, data, signal),
    ),
    bind(e.import, ({ caller, body }) => transfers.importUrl(caller, body)),
    bind(e.importFile, ({ caller, query, data, signal }) => {
      const { wait: _, ...asked } = query
      return transfers.importFile(caller, asked, data, signal)
    }),
    bind(e.fromVm, ({ caller, body }) => transfers.imageFromVm(caller, body)),
    bind(e.export, ({ caller, params, query, signal }) =>
      transfers.exportImage(caller, params.image, query.format, signal),
    ),
    bind(e.get, ({ caller, params }) => images.get(caller, params.image)),
    bind(e.delete, ({ caller, params, generation }) => images.delete(caller, params.image, generation)),
  ]
}
