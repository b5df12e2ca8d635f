/** Disks that come in and go out: imports, uploads, exports, templates. */
import { endpoint } from '../endpoint.ts'
import { RefSchema } from '../ids.ts'
import { Closed } from '../schema/common.ts'
import {
  ExportQuerySchema,
  ImageFromVmSchema,
  ImageImportSchema,
  ImageUploadSchema,
  VolumeConvertSchema,
  VolumeMoveSchema,
  VolumeUploadSchema,
} from '../schema/imports.ts'
import { JobSchema } from '../schema/job.ts'
import { WaitQuerySchema } from './vms.ts'

const makes = { method: 'POST', needs: 'full', answer: 'job' } as const
/** What a file may have at most; how much fits is the pool's to say. */
const UPLOAD_LIMIT_BYTES = 2 ** 46
const upload = { accepts: 'application/octet-stream', body_limit_bytes: UPLOAD_LIMIT_BYTES } as const
const wait = WaitQuerySchema.properties

export const imageTransfers = {
  import: endpoint({
    ...makes,
    id: 'images.import',
    path: '/v1/images/import',
    tag: 'images',
    summary: 'Make an image of a disk or OVA that the daemon downloads',
    query: WaitQuerySchema,
    body: ImageImportSchema,
    response: JobSchema,
  }),
  importFile: endpoint({
    ...makes,
    ...upload,
    id: 'images.importFile',
    path: '/v1/images/upload',
    tag: 'images',
    summary: 'Make an image of a disk or OVA that is uploaded as the body',
    query: Closed({ ...ImageUploadSchema.properties, ...wait }),
    response: JobSchema,
  }),
  fromVm: endpoint({
    ...makes,
    id: 'images.fromVm',
    path: '/v1/images/from-vm',
    tag: 'images',
    summary: 'Make an image of the disks of a stopped VM; what is on them is copied as it is',
    query: WaitQuerySchema,
    body: ImageFromVmSchema,
    response: JobSchema,
  }),
  export: endpoint({
    id: 'images.export',
    method: 'GET',
    path: '/v1/images/{image}/export',
    tag: 'images',
    summary: 'The disks of an image in one file of another format',
    needs: 'full',
    answer: 'stream',
    params: Closed({ image: RefSchema }),
    query: ExportQuerySchema,
    produces: 'application/octet-stream',
  }),
} as const

const volume = { tag: 'volumes', params: Closed({ volume: RefSchema }) }
export const volumeTransfers = {
  upload: endpoint({
    ...makes,
    ...upload,
    id: 'volumes.upload',
    path: '/v1/volumes/upload',
    tag: 'volumes',
    summary: 'Make a volume of a disk that is uploaded as the body',
    query: Closed({ ...VolumeUploadSchema.properties, ...wait }),
    response: JobSchema,
  }),
  download: endpoint({
    ...volume,
    id: 'volumes.download',
    method: 'GET',
    path: '/v1/volumes/{volume}/content',
    summary: 'A volume that nobody writes, in one file',
    needs: 'full',
    answer: 'stream',
    query: ExportQuerySchema,
    produces: 'application/octet-stream',
  }),
  convert: endpoint({
    ...makes,
    ...volume,
    id: 'volumes.convert',
    path: '/v1/volumes/{volume}/convert',
    summary: 'Change the format of a volume that nothing stands on, also while its VM runs',
    query: WaitQuerySchema,
    body: VolumeConvertSchema,
    response: JobSchema,
  }),
  move: endpoint({
    ...makes,
    ...volume,
    id: 'volumes.move',
    path: '/v1/volumes/{volume}/move',
    summary: 'Move a volume that nothing stands on to another pool, also while its VM runs',
    query: WaitQuerySchema,
    body: VolumeMoveSchema,
    response: JobSchema,
  }),
} as const
