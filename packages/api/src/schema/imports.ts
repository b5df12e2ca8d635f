/** Images from elsewhere: where they come from and what hardware they were made for. */
import Type from 'typebox'
import { NameSchema, RefSchema } from '../ids.ts'
import { Closed, DescriptionSchema } from './common.ts'

export const IMPORT_FORMATS = ['qcow2', 'raw', 'vmdk', 'vdi', 'vhdx', 'vpc', 'ova'] as const
export type ImportFormat = (typeof IMPORT_FORMATS)[number]
export const EXPORT_FORMATS = IMPORT_FORMATS

/**
 * How a guest of the image gets its user, keys and name at the first boot. `wadah`: by fw_cfg, as images from recipes do.
 * `nocloud`: by a seed disk for cloud-init. `none`: not at all.
 */
export const SEED_KINDS = ['wadah', 'nocloud', 'none'] as const
export type SeedKind = (typeof SEED_KINDS)[number]

const Sha256Schema = Type.String({
  pattern: '^[0-9a-f]{64}$',
  description: 'SHA-256 of the file as it comes, small hex',
})
const importFields = {
  name: NameSchema,
  pool: Type.Optional(RefSchema),
  description: Type.Optional(DescriptionSchema),
  sha256: Type.Optional(Sha256Schema),
  format: Type.Optional(
    Type.Enum(IMPORT_FORMATS, {
      description:
        'what the file is said to be; otherwise what it is found to be. A raw disk without a boot sector needs it',
    }),
  ),
  seed: Type.Optional(Type.Enum(SEED_KINDS, { default: 'nocloud' })),
}
export const ImageImportSchema = Closed(
  {
    ...importFields,
    url: Type.String({ maxLength: 4096, pattern: '^https?://', description: 'http or https; the daemon downloads it' }),
  },
  { title: 'ImageImport' },
)
export type ImageImport = Type.Static<typeof ImageImportSchema>
/** The same in the query of an upload. */
export const ImageUploadSchema = Closed(importFields)
export type ImageUpload = Type.Static<typeof ImageUploadSchema>

export const ImageFromVmSchema = Closed(
  { name: NameSchema, vm: RefSchema, pool: Type.Optional(RefSchema), description: Type.Optional(DescriptionSchema) },
  { title: 'ImageFromVm' },
)
export type ImageFromVm = Type.Static<typeof ImageFromVmSchema>

/** What an image was made for; defaults of VMs made from it. */
export const ImageHardwareSchema = Type.Object({
  cpus: Type.Optional(Type.Integer()),
  memory_mib: Type.Optional(Type.Integer()),
  nics: Type.Optional(Type.Integer()),
  firmware: Type.Optional(Type.Union([Type.Literal('bios'), Type.Literal('uefi')])),
  /** Guest system as the archive calls it. */
  os: Type.Optional(Type.String()),
})
export type ImageHardware = Type.Static<typeof ImageHardwareSchema>

/** Fields of an image that came from elsewhere or was made from a VM. */
export const importedFields = {
  /** Further disks, in order; `volume` is the first. */
  more_volumes: Type.Optional(Type.Array(Type.String(), { description: 'further disks, in order' })),
  hardware: Type.Optional(ImageHardwareSchema),
  seed: Type.Optional(Type.Enum(SEED_KINDS, { description: 'how a guest gets its user, keys and name' })),
  source: Type.Optional(
    Type.Object({
      format: Type.Enum(IMPORT_FORMATS),
      /** Without its query, which may hold a secret. */
      url: Type.Optional(Type.String()),
      size_bytes: Type.Integer(),
      sha256: Type.String(),
    }),
  ),
  notes: Type.Optional(Type.Array(Type.String(), { description: 'what was left out, and what to know' })),
}

/** An upload that becomes a volume of its own. */
export const VolumeUploadSchema = Closed({
  name: NameSchema,
  pool: Type.Optional(RefSchema),
  sha256: Type.Optional(Sha256Schema),
  format: Type.Optional(Type.Enum(IMPORT_FORMATS)),
})
export type VolumeUpload = Type.Static<typeof VolumeUploadSchema>
export const VolumeConvertSchema = Closed(
  { format: Type.Union([Type.Literal('qcow2'), Type.Literal('raw')]) },
  { title: 'VolumeConvert' },
)
export const VolumeMoveSchema = Closed({ pool: RefSchema }, { title: 'VolumeMove' })
export const ExportQuerySchema = Closed({ format: Type.Enum(EXPORT_FORMATS) })
