/** Images from elsewhere (a file that was uploaded, or a URL), and images made of a VM's disks. */
import { fail } from '@wadah/api/fault'
import type { ImportFormat, SeedKind } from '@wadah/api/schema/imports'
import type { Found, Staged } from '@wadah/ports/imports'
import { absent, del, put } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { type StepContext, defineJob, step } from '../jobs/define.ts'
import { Pending } from '../pending.ts'
import { type ImageRecord, type VolumeRecord, imageKind, indexKeys, indexKind, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { dropFile, storedVolume, volumeGone } from '../storage/gone.ts'
import { admitVolumes, promisedBytes } from '../vms/create.ts'
import { makeVolume } from '../vms/jobs.ts'

export type ImportParams = {
  image: string
  name: string
  pool: string
  /** Ids for the volumes that will be found in it; more than an import can have. */
  volumes: string[]
  url?: string
  /** A file that came in whole before the job began. */
  staged?: Staged
  sha256?: string
  format?: ImportFormat
  seed: SeedKind
}
type Ctx = StepContext<ImportParams, Deps>

const GIB = 2 ** 30
const MAX_GIB = 64 * 1024
/** A download must leave the pool's file system this much. */
const RESERVE_BYTES = 256 * 2 ** 20

/** How large a file may be that is taken into a pool: what is free, what may still be promised, and the administrator's bound. */
export async function importLimit(deps: Deps, poolId: string): Promise<{ file_bytes: number; disk_bytes: number }> {
  const pool = poolOf(deps, poolId)
  const { capacity_bytes, free_bytes } = await deps.machine.volumes.facts(poolDefinition(pool))
  const disk_bytes = (deps.config.import_max_gib ?? MAX_GIB) * GIB
  const left = Math.max(0, Math.floor(capacity_bytes * pool.overcommit) - promisedBytes(deps, poolId))
  return { file_bytes: Math.max(0, Math.min(disk_bytes, free_bytes - RESERVE_BYTES, left)), disk_bytes }
}

function params(value: unknown): ImportParams {
  const p = value as ImportParams
  if (typeof p?.image !== 'string' || !Array.isArray(p.volumes)) throw fail('invalid', 'The job has no image.')
  return p
}

async function imageOf(deps: Deps, id: string): Promise<ImageRecord> {
  const rec = await deps.store.get(imageKind, id)
  if (!rec) throw fail('gone', 'The image is not there any more.')
  await deps.view.waitFor(rec.modified)
  return rec.value
}

/** `image-web`, `image-web-2`; with a part of its id where that is taken. */
export function imageVolumeName(deps: Pick<Deps, 'view'>, image: ImageRecord, at: number, id: string): string {
  const name = `image-${image.name}`.slice(0, 58) + (at === 0 ? '' : `-${at + 1}`)
  const holder = deps.view.get(indexKind, indexKeys.name('volume', image.project, name))?.value.holder
  return holder === undefined || holder === id ? name : `${name.slice(0, 52)}-${id.slice(4)}`
}

async function fetchStep(ctx: Ctx): Promise<Staged> {
  const { deps, params: p, signal } = ctx
  if (p.staged) return p.staged
  const { file_bytes } = await importLimit(deps, p.pool)
  return await deps.machine.imports.download(
    poolDefinition(poolOf(deps, p.pool)),
    p.image,
    { url: p.url ?? '', limit_bytes: file_bytes, ...(p.sha256 === undefined ? {} : { sha256: p.sha256 }) },
    { signal, log: (line) => ctx.log(line), progress: (fraction) => ctx.progress(Math.min(1, fraction)) },
  )
}

const cleanUp = async ({ deps, params: p }: Ctx): Promise<void> => {
  await deps.machine.imports.clean(poolDefinition(poolOf(deps, p.pool)), p.image)
}

async function inspect(ctx: Ctx): Promise<Found> {
  const { deps, params: p, signal } = ctx
  const image = await imageOf(deps, p.image)
  const limit = await importLimit(deps, p.pool)
  const found = await deps.machine.imports.inspect(
    poolDefinition(poolOf(deps, p.pool)),
    p.image,
    {
      limit_bytes: limit.file_bytes,
      disk_limit_bytes: limit.disk_bytes,
      ...(p.format === undefined ? {} : { format: p.format }),
    },
    { signal, log: (line) => ctx.log(line), progress: (fraction) => ctx.progress(fraction) },
  )
  if (found.disks.length > p.volumes.length)
    throw fail('image_corrupt', `It has ${found.disks.length} disks; at most ${p.volumes.length} are taken.`)
  const volumes = found.disks.map((disk, i): VolumeRecord => {
    const id = p.volumes[i] as string
    return {
      schema: 1,
      id,
      name: imageVolumeName(deps, image, i, id),
      project: image.project,
      created_at: image.created_at,
      pool: p.pool,
      format: 'qcow2',
      size_bytes: disk.size_bytes,
      image: image.id,
      read_only: true,
      making: true,
    }
  })
  const mine = new Set(p.volumes)
  const fresh = volumes.filter((v) => deps.view.get(volumeKind, v.id) === undefined)
  await admitVolumes(deps, new Pending(), fresh, '/pool')
  for (const note of found.notes) ctx.log(note)
  ctx.commit(
    volumes.flatMap((v) => [
      put(volumeKind, v.id, v),
      put(indexKind, indexKeys.name('volume', v.project, v.name), { schema: 1, holder: v.id }),
    ]),
    volumes.flatMap((v) => {
      const key = indexKeys.name('volume', v.project, v.name)
      return mine.has(deps.view.get(indexKind, key)?.value.holder ?? '') ? [] : [absent(indexKind, key)]
    }),
  )
  return found
}

async function dropVolumes(ctx: StepContext<{ volumes: string[] }, Deps>): Promise<void> {
  const { deps, params: p } = ctx
  for (const id of p.volumes) {
    const volume = await storedVolume(deps, id)
    if (!volume) continue
    await dropFile(deps, volume)
    ctx.commit(volumeGone(volume))
  }
}

async function dropImage(ctx: StepContext<{ image: string }, Deps>): Promise<void> {
  const image = (await ctx.deps.store.get(imageKind, ctx.params.image))?.value
  if (image) ctx.commit([del(imageKind, image.id), del(indexKind, indexKeys.name('image', image.project, image.name))])
}

async function makeImage(ctx: Ctx): Promise<{ notes: string[] }> {
  const { deps, params: p, signal } = ctx
  const image = await imageOf(deps, p.image)
  const found = ctx.output<Found>('inspect') as Found
  const staged = ctx.output<Staged>('fetch') as Staged
  const pool = poolDefinition(poolOf(deps, p.pool))
  const ids: string[] = []
  for (const [i, disk] of found.disks.entries()) {
    const volume = (await deps.store.get(volumeKind, p.volumes[i] as string))?.value
    if (!volume) throw fail('gone', 'A volume of the image is not there any more.')
    const definition = volumeDefinition(deps, volume)
    await deps.machine.imports.convert(pool, p.image, disk, definition, {
      signal,
      log: (line) => ctx.log(line),
      progress: (done, total) => ctx.progress((i + (total > 0 ? done / total : 1)) / found.disks.length),
    })
    await deps.machine.volumes.grant(pool, definition, 'read-only')
    const { making: _, ...ready } = volume
    ctx.commit([put(volumeKind, volume.id, ready)])
    ids.push(volume.id)
  }
  await cleanUp(ctx)
  const [first, ...more] = ids
  const { hardware, notes } = found
  ctx.commit([
    put(imageKind, image.id, {
      ...image,
      ready: true,
      description: image.description || (found.description ?? ''),
      size_bytes: found.disks.reduce((sum, d) => sum + d.size_bytes, 0),
      sha256: staged.sha256,
      ...(first === undefined ? {} : { volume: first }),
      ...(more.length > 0 ? { more_volumes: more } : {}),
      ...(hardware ? { hardware } : {}),
      ...(notes.length > 0 ? { notes } : {}),
      seed: p.seed,
      source: {
        format: found.format,
        ...(p.url === undefined ? {} : { url: p.url.split(/[?#]/)[0] as string }),
        ...staged,
      },
    } satisfies ImageRecord),
  ])
  return { notes }
}

/** The image's record was committed with the job, not ready. */
export const importImage = defineJob<ImportParams, Deps>(
  'image.import',
  1,
  params,
  [
    step('reserve', { do: () => undefined, undo: dropImage, volatile: true, weight: 0.1 }),
    step('fetch', { do: fetchStep, undo: cleanUp, weight: 3 }),
    step('inspect', { do: inspect, undo: dropVolumes, weight: 0.5 }),
    step('convert', { do: makeImage, weight: 3 }),
  ],
  {
    claims: (p) => [`image/${p.image}`],
    lane: 'import',
    result: (output, p) => ({ image: p.image, name: p.name, ...(output('convert') as object) }),
  },
)

// ---- of a VM -----------------------------------------------------------------------------------------------------------

export type TemplateParams = {
  image: string
  name: string
  vm: string
  /** Made by the job. */
  volumes: string[]
  /** What each is a copy of. */
  from: string[]
}

/** Records of the image and its volumes were committed with the job. */
export const templateImage = defineJob<TemplateParams, Deps>(
  'image.template',
  1,
  (value) => value as TemplateParams,
  [
    step('reserve', { do: () => undefined, undo: dropImage, volatile: true, weight: 0.1 }),
    step<TemplateParams, Deps>('copy', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const image = await imageOf(deps, p.image)
        for (const [i, id] of p.volumes.entries()) {
          const volume = (await deps.store.get(volumeKind, id))?.value
          if (!volume) throw fail('gone', 'A volume of the image is not there any more.')
          const from = { volume: p.from[i] as string, how: 'full' as const }
          await makeVolume(ctx, volume, from, 'read-only', (fraction) =>
            ctx.progress((i + fraction) / p.volumes.length),
          )
          const { making: _, ...ready } = volume
          ctx.commit([put(volumeKind, id, ready)])
        }
        ctx.commit([put(imageKind, image.id, { ...image, ready: true })])
      },
      undo: dropVolumes,
      progress: 'bytes',
    }),
  ],
  {
    claims: (p) => [`image/${p.image}`, `vm/${p.vm}`, ...p.from.map((id, i) => `volume/${id}/read/${p.volumes[i]}`)],
    lane: 'create',
    result: (_output, p) => ({ image: p.image, name: p.name }),
  },
)
