/** Building and deleting images. */
import { fail } from '@wadah/api/fault'
import { del, put } from '@wadah/store/store'
import { type Deps, forward } from '../context.ts'
import { defineJob, pivot, step } from '../jobs/define.ts'
import {
  type ImageRecord,
  type VolumeRecord,
  imageKind,
  imageLayers,
  indexKeys,
  indexKind,
  volumeKind,
} from '../records.ts'
import { poolDefinition, poolOf } from '../resolve.ts'

export type BuildParams = {
  image: string
  name: string
  recipe: string
  pool: string
  volume: string
  refresh: boolean
}

function params(value: unknown): BuildParams {
  const p = value as BuildParams
  if (typeof p?.image !== 'string' || typeof p.recipe !== 'string') throw fail('invalid', 'The job has no image.')
  return p
}

async function record(deps: Deps, id: string): Promise<ImageRecord> {
  const rec = await deps.store.get(imageKind, id)
  if (!rec) throw fail('gone', 'The image is not there any more.')
  await deps.view.waitFor(rec.modified)
  return rec.value
}

/** A volume of somebody else may have the name already. */
function volumeName(deps: Deps, image: ImageRecord, volume: string): string {
  const name = `image-${image.name}`.slice(0, 63)
  const holder = deps.view.get(indexKind, indexKeys.name('volume', image.project, name))?.value.holder
  return holder === undefined || holder === volume ? name : `${name.slice(0, 52)}-${volume.slice(4)}`
}

export const buildImage = defineJob<BuildParams, Deps>(
  'image.build',
  1,
  params,
  [
    step('build', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const image = await record(deps, p.image)
        // What a build that was cut off left behind goes first.
        await deps.machine.images.cleanBuild(p.image)
        const built = await deps.machine.images.build(p.image, p.recipe, {
          refresh: p.refresh,
          signal,
          log: (line) => ctx.log(line),
          progress: (_step, fraction) => ctx.progress(fraction),
        })
        const files = built.kind === 'kernel' ? await deps.machine.images.files(p.image) : undefined
        const ready: ImageRecord = {
          ...image,
          kind: built.kind,
          description: built.description,
          kernel_version: built.kernel_version,
          packages: built.packages,
          min_memory_mib: built.min_memory_mib,
          agent: built.agent,
          size_bytes: built.disk?.virtual_size_bytes ?? files?.size_bytes ?? 0,
          ...(built.service === undefined ? {} : { service: built.service }),
          ...(built.cmdline === undefined ? {} : { cmdline: built.cmdline }),
          ...(built.disk ? { sha256: built.disk.sha256, volume: p.volume } : {}),
          has_kernel: files?.kernel !== undefined,
          has_initrd: files?.initrd !== undefined,
          ready: true,
        }
        if (built.disk) {
          const pool = poolOf(deps, p.pool)
          const volume: VolumeRecord = {
            schema: 1,
            id: p.volume,
            name: volumeName(deps, image, p.volume),
            project: image.project,
            created_at: image.created_at,
            pool: p.pool,
            format: built.disk.format,
            size_bytes: built.disk.virtual_size_bytes,
            image: p.image,
            read_only: true,
          }
          const definition = { id: volume.id, pool: volume.pool, format: volume.format, size_bytes: volume.size_bytes }
          await deps.machine.volumes.adopt(poolDefinition(pool), built.disk.file, definition, { signal })
          await deps.machine.volumes.grant(poolDefinition(pool), definition, 'read-only')
          ctx.commit([
            put(volumeKind, volume.id, volume),
            put(indexKind, indexKeys.name('volume', image.project, volume.name), { schema: 1, holder: volume.id }),
          ])
        }
        ctx.commit([put(imageKind, p.image, ready)])
        await deps.machine.images.cleanBuild(p.image)
      },
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        await deps.machine.images.cleanBuild(p.image)
        await deps.machine.images.delete(p.image)
        const pool = poolDefinition(poolOf(deps, p.pool))
        for (const format of ['qcow2', 'raw'] as const)
          await deps.machine.volumes.delete(pool, { id: p.volume, format })
        const image = (await deps.store.get(imageKind, p.image))?.value
        if (!image) return
        ctx.commit([del(imageKind, image.id), del(indexKind, indexKeys.name('image', image.project, image.name))])
        const volume = (await deps.store.get(volumeKind, p.volume))?.value
        if (volume)
          ctx.commit([
            del(volumeKind, volume.id),
            del(indexKind, indexKeys.name('volume', volume.project, volume.name)),
          ])
      },
    }),
  ],
  {
    claims: (p) => [`image/${p.image}`],
    lane: 'build',
    result: (_output, p) => ({ image: p.image, name: p.name }),
  },
)

/** Records of its disks that are there. */
async function volumesOf(deps: Deps, image: ImageRecord): Promise<VolumeRecord[]> {
  const found = await Promise.all(imageLayers(image).map((id) => deps.store.get(volumeKind, id)))
  return found.flatMap((rec) => (rec ? [rec.value] : []))
}

export type DeleteImageParams = { image: string; name: string }

export const deleteImage = defineJob<DeleteImageParams, Deps>(
  'image.delete',
  1,
  (value) => value as DeleteImageParams,
  [
    pivot('files', {
      do: async ({ deps, params: p }) => {
        const image = (await deps.store.get(imageKind, p.image))?.value
        if (!image) return
        const volumes = await volumesOf(deps, image)
        await forward(async () => {
          for (const volume of volumes)
            await deps.machine.volumes.delete(poolDefinition(poolOf(deps, volume.pool)), volume)
          await deps.machine.warm.drop(p.image)
          await deps.machine.images.delete(p.image)
        })
      },
    }),
    step('records', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const image = (await deps.store.get(imageKind, p.image))?.value
        if (!image) return
        const volumes = await volumesOf(deps, image)
        ctx.commit([del(imageKind, image.id), del(indexKind, indexKeys.name('image', image.project, image.name))])
        for (const volume of volumes)
          ctx.commit([
            del(volumeKind, volume.id),
            del(indexKind, indexKeys.name('volume', volume.project, volume.name)),
          ])
      },
    }),
  ],
  { claims: (p) => [`image/${p.image}`], result: (_output, p) => ({ image: p.image, name: p.name }) },
)
