import Type from 'typebox'
import { endpoint } from '../endpoint.ts'
import { NameSchema, RefSchema } from '../ids.ts'
import { Closed, DescriptionSchema, PageOf, PageQuerySchema } from '../schema/common.ts'
import { JobSchema } from '../schema/job.ts'
import {
  ImageBuildSchema,
  ImageSchema,
  PoolCreateSchema,
  PoolEditSchema,
  PoolSchema,
  RecipeSchema,
  VolumeCloneSchema,
  VolumeResizeSchema,
  VolumeCreateSchema,
  VolumeSchema,
} from '../schema/storage.ts'
import { WaitQuerySchema } from './vms.ts'

const get = { method: 'GET', needs: 'read', answer: 'ok' } as const
const makes = { method: 'POST', needs: 'full', answer: 'job' } as const
const drops = { method: 'DELETE', needs: 'full', answer: 'job' } as const

const pool = { tag: 'pools', params: Closed({ pool: RefSchema }) }
export const pools = {
  list: endpoint({
    ...get,
    id: 'pools.list',
    path: '/v1/pools',
    tag: 'pools',
    summary: 'List pools with their room',
    query: Closed(PageQuerySchema),
    response: PageOf(PoolSchema, 'PoolPage'),
  }),
  create: endpoint({
    id: 'pools.create',
    method: 'POST',
    path: '/v1/pools',
    tag: 'pools',
    summary: 'Make a folder on a mounted file system a pool',
    needs: 'full',
    answer: 'created',
    body: PoolCreateSchema,
    response: PoolSchema,
  }),
  get: endpoint({
    ...get,
    ...pool,
    id: 'pools.get',
    path: '/v1/pools/{pool}',
    summary: 'Show a pool',
    response: PoolSchema,
  }),
  edit: endpoint({
    ...pool,
    id: 'pools.edit',
    method: 'PATCH',
    path: '/v1/pools/{pool}',
    summary: 'Change how much a pool may promise',
    needs: 'full',
    answer: 'ok',
    body: PoolEditSchema,
    response: PoolSchema,
    if_match: true,
  }),
  delete: endpoint({
    ...pool,
    id: 'pools.delete',
    method: 'DELETE',
    path: '/v1/pools/{pool}',
    summary: 'Forget an empty pool',
    needs: 'full',
    answer: 'no-content',
    if_match: true,
  }),
} as const

const volume = { tag: 'volumes', params: Closed({ volume: RefSchema }) }
export const volumes = {
  list: endpoint({
    ...get,
    id: 'volumes.list',
    path: '/v1/volumes',
    tag: 'volumes',
    summary: 'List volumes',
    query: Closed({ ...PageQuerySchema, pool: Type.Optional(RefSchema), vm: Type.Optional(RefSchema) }),
    response: PageOf(VolumeSchema, 'VolumePage'),
  }),
  create: endpoint({
    ...makes,
    id: 'volumes.create',
    path: '/v1/volumes',
    tag: 'volumes',
    summary: 'Create an empty volume',
    query: WaitQuerySchema,
    body: VolumeCreateSchema,
    response: JobSchema,
  }),
  get: endpoint({
    ...get,
    ...volume,
    id: 'volumes.get',
    path: '/v1/volumes/{volume}',
    summary: 'Show a volume',
    response: VolumeSchema,
  }),
  clone: endpoint({
    ...makes,
    ...volume,
    id: 'volumes.clone',
    path: '/v1/volumes/{volume}/clone',
    summary: 'Clone a volume that nobody writes, linked or full',
    query: WaitQuerySchema,
    body: VolumeCloneSchema,
    response: JobSchema,
  }),
  resize: endpoint({
    ...makes,
    ...volume,
    id: 'volumes.resize',
    path: '/v1/volumes/{volume}/resize',
    summary: 'Make a volume larger, also while its VM runs',
    query: WaitQuerySchema,
    body: VolumeResizeSchema,
    response: JobSchema,
  }),
  delete: endpoint({
    ...drops,
    ...volume,
    id: 'volumes.delete',
    path: '/v1/volumes/{volume}',
    summary: 'Delete a volume that nothing stands on',
    query: WaitQuerySchema,
    response: JobSchema,
    if_match: true,
  }),
} as const

const image = { tag: 'images', params: Closed({ image: RefSchema }) }
export const images = {
  list: endpoint({
    ...get,
    id: 'images.list',
    path: '/v1/images',
    tag: 'images',
    summary: 'List images',
    query: Closed(PageQuerySchema),
    response: PageOf(ImageSchema, 'ImagePage'),
  }),
  recipes: endpoint({
    ...get,
    id: 'images.recipes',
    path: '/v1/recipes',
    tag: 'images',
    summary: 'List recipes, also those that cannot be used, with the reason',
    response: Type.Object({ items: Type.Array(RecipeSchema) }, { title: 'RecipePage' }),
  }),
  build: endpoint({
    ...makes,
    id: 'images.build',
    path: '/v1/images/build',
    tag: 'images',
    summary: 'Build an image from a recipe',
    query: WaitQuerySchema,
    body: ImageBuildSchema,
    response: JobSchema,
  }),
  createKernel: endpoint({
    id: 'images.createKernel',
    method: 'POST',
    path: '/v1/images/kernel',
    tag: 'images',
    summary: 'Make an image for direct kernel boot; then upload its kernel and initrd',
    needs: 'full',
    answer: 'created',
    body: Closed(
      {
        name: NameSchema,
        description: Type.Optional(DescriptionSchema),
        cmdline: Type.Optional(
          Type.String({
            maxLength: 2000,
            pattern: '^[\\x20-\\x7e]*$',
            description: 'kernel command line, printable ASCII',
          }),
        ),
        min_memory_mib: Type.Optional(Type.Integer({ minimum: 16, maximum: 1024 * 1024 })),
      },
      { title: 'KernelImageCreate' },
    ),
    response: ImageSchema,
  }),
  createIso: endpoint({
    id: 'images.createIso',
    method: 'POST',
    path: '/v1/images/iso',
    tag: 'images',
    summary: 'Make an image of a CD or DVD; then upload its file',
    needs: 'full',
    answer: 'created',
    body: Closed({ name: NameSchema, description: Type.Optional(DescriptionSchema) }, { title: 'IsoImageCreate' }),
    response: ImageSchema,
  }),
  upload: endpoint({
    id: 'images.upload',
    method: 'PUT',
    path: '/v1/images/{image}/files/{file}',
    tag: 'images',
    summary: 'Upload the kernel or initrd of a kernel image, or the file of a CD, while no VM stands on it',
    needs: 'full',
    answer: 'no-content',
    params: Closed({ image: RefSchema, file: Type.Enum(['kernel', 'initrd', 'iso'] as const) }),
    accepts: 'application/octet-stream',
    body_limit_bytes: 32 * 1024 * 1024 * 1024,
  }),
  get: endpoint({
    ...get,
    ...image,
    id: 'images.get',
    path: '/v1/images/{image}',
    summary: 'Show an image',
    response: ImageSchema,
  }),
  delete: endpoint({
    ...drops,
    ...image,
    id: 'images.delete',
    path: '/v1/images/{image}',
    summary: 'Delete an image that no VM stands on',
    query: WaitQuerySchema,
    response: JobSchema,
    if_match: true,
  }),
} as const
