/** Pools, volumes, images. */
import Type from 'typebox'
import { IdSchema, NameSchema, RefSchema } from '../ids.ts'
import { Closed, DescriptionSchema, metaFields } from './common.ts'
import { importedFields } from './imports.ts'
import { ServiceSchema } from './vm.ts'

export const PoolCreateSchema = Closed(
  {
    name: NameSchema,
    kind: Type.Optional(Type.Literal('dir', { default: 'dir' })),
    path: Type.String({
      pattern: '^/[^\\0]*$',
      maxLength: 1024,
      description: 'a folder on a mounted file system, inside a folder the administrator allowed',
    }),
    overcommit: Type.Optional(
      Type.Number({
        minimum: 0.1,
        maximum: 100,
        default: 2,
        description: 'promised bytes ÷ capacity that is still accepted',
      }),
    ),
    shared: Type.Optional(
      Type.Boolean({
        default: false,
        description: 'every host of the cluster has it at this path; tried on all of them before it is taken',
      }),
    ),
  },
  { title: 'PoolCreate' },
)
export type PoolCreate = Type.Static<typeof PoolCreateSchema>
export const PoolEditSchema = Closed({ overcommit: Type.Number({ minimum: 0.1, maximum: 100 }) }, { title: 'PoolEdit' })
export const PoolSchema = Type.Object(
  {
    ...metaFields,
    kind: Type.Literal('dir'),
    path: Type.String(),
    overcommit: Type.Number(),
    capacity_bytes: Type.Integer(),
    free_bytes: Type.Integer(),
    promised_bytes: Type.Integer({ description: 'sum of the virtual sizes of its volumes' }),
    direct_io: Type.Boolean({
      description: 'whether the file system takes O_DIRECT; without it the host page cache is used',
    }),
    file_system: Type.String(),
    shared: Type.Boolean({ description: 'every host of the cluster has it' }),
    host: Type.Optional(Type.String({ description: 'the host it is on; absent when it is shared' })),
    refused: Type.Optional(
      Type.Array(Type.Object({ host: Type.String(), detail: Type.String(), remedy: Type.String() }), {
        description:
          'hosts that may not use this shared pool: its locks or caches were not what they must be, or are not tried yet',
      }),
    ),
    unreachable: Type.Optional(Type.String({ description: 'why its host could not be asked; the sizes are then 0' })),
  },
  { title: 'Pool' },
)
export type Pool = Type.Static<typeof PoolSchema>

export const VolumeFormatSchema = Type.Union([Type.Literal('qcow2'), Type.Literal('raw')])
export type VolumeFormat = Type.Static<typeof VolumeFormatSchema>
export const VolumeCreateSchema = Closed(
  {
    name: NameSchema,
    pool: Type.Optional(RefSchema),
    size_mib: Type.Integer({ minimum: 1, maximum: 64 * 1024 * 1024 }),
    format: Type.Optional(VolumeFormatSchema),
  },
  { title: 'VolumeCreate' },
)
export type VolumeCreate = Type.Static<typeof VolumeCreateSchema>
export const VolumeCloneSchema = Closed(
  {
    name: NameSchema,
    pool: Type.Optional(RefSchema),
    clone: Type.Optional(Type.Union([Type.Literal('linked'), Type.Literal('full')], { default: 'full' })),
  },
  { title: 'VolumeClone' },
)
export type VolumeClone = Type.Static<typeof VolumeCloneSchema>
export const VolumeResizeSchema = Closed(
  {
    size_mib: Type.Integer({
      minimum: 1,
      maximum: 64 * 1024 * 1024,
      description: 'the new size; a disk can only grow',
    }),
  },
  { title: 'VolumeResize' },
)
export type VolumeResize = Type.Static<typeof VolumeResizeSchema>
export const VolumeSchema = Type.Object(
  {
    ...metaFields,
    pool: IdSchema,
    format: VolumeFormatSchema,
    size_bytes: Type.Integer({ description: 'what the guest sees' }),
    allocated_bytes: Type.Optional(
      Type.Integer({ description: 'what it takes on the pool now; on a single volume only' }),
    ),
    /** The volume it is a linked clone of; that one may not be written or deleted. */
    base: Type.Optional(IdSchema),
    /** The VM or image it belongs to. */
    vm: Type.Optional(IdSchema),
    image: Type.Optional(IdSchema),
    read_only: Type.Boolean(),
    role: Type.Optional(
      Type.Enum(['layer', 'ram'], {
        description: 'belongs to snapshots of the VM: layer: what disks stand on; ram: saved RAM',
      }),
    ),
  },
  { title: 'Volume' },
)
export type Volume = Type.Static<typeof VolumeSchema>

export const ImageBuildSchema = Closed(
  {
    recipe: NameSchema,
    name: Type.Optional(NameSchema),
    pool: Type.Optional(RefSchema),
    refresh: Type.Optional(Type.Boolean({ description: 'fetch packages anew, do not use what is cached' })),
  },
  { title: 'ImageBuild' },
)
export type ImageBuild = Type.Static<typeof ImageBuildSchema>
export const ImageWarmSchema = Closed(
  {
    memory_mib: Type.Optional(Type.Integer({ minimum: 16, maximum: 4 * 1024 * 1024 })),
    cpus: Type.Optional(Type.Integer({ minimum: 1, maximum: 256, default: 1 })),
  },
  { title: 'ImageWarm' },
)
export type ImageWarm = Type.Static<typeof ImageWarmSchema>
export const ImageSchema = Type.Object(
  {
    ...metaFields,
    kind: Type.Union([Type.Literal('disk'), Type.Literal('kernel'), Type.Literal('iso')]),
    ready: Type.Boolean({ description: 'false while it is built, or until its kernel is uploaded' }),
    description: DescriptionSchema,
    recipe: Type.Optional(Type.String()),
    volume: Type.Optional(IdSchema),
    size_bytes: Type.Integer(),
    cmdline: Type.Optional(Type.String()),
    kernel_version: Type.Optional(Type.String()),
    min_memory_mib: Type.Integer(),
    agent: Type.Boolean(),
    service: Type.Optional(ServiceSchema),
    sha256: Type.Optional(Type.String()),
    packages: Type.Optional(Type.Array(Type.String(), { description: 'name=version; on a single image only' })),
    ...importedFields,
    warm: Type.Optional(
      Type.Object(
        {
          cpus: Type.Integer(),
          memory_mib: Type.Integer(),
          ram_bytes: Type.Integer({ description: 'what its saved RAM takes on disk' }),
          made_at: Type.String(),
          qemu_version: Type.String(),
          accelerator: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
        },
        { description: 'it was booted and its RAM saved: VMs of this size can be made from it in an instant' },
      ),
    ),
    /** Number of VMs that stand on it. */
    used_by: Type.Integer(),
  },
  { title: 'Image' },
)
export type Image = Type.Static<typeof ImageSchema>

export const RecipeSchema = Type.Object(
  {
    name: NameSchema,
    title: Type.String(),
    title_id: Type.String(),
    description: Type.String(),
    base: Type.Optional(Type.String()),
    service: Type.Optional(ServiceSchema),
    packages: Type.Array(Type.String()),
    source: Type.String({ description: 'the folder it was read from' }),
    problem: Type.Optional(Type.String({ description: 'why it cannot be used' })),
  },
  { title: 'Recipe' },
)
export type Recipe = Type.Static<typeof RecipeSchema>
