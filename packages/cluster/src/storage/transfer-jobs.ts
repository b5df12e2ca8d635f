/** Volumes that come in, go out, or change their pool or format. */
import { fail } from '@wadah/api/fault'
import type { ImageHardware, ImportFormat } from '@wadah/api/schema/imports'
import type { Found, Staged } from '@wadah/ports/imports'
import { absent, put } from '@wadah/store/store'
import { type Deps, forward } from '../context.ts'
import { importLimit } from '../images/import-jobs.ts'
import { defineJob, pivot, step } from '../jobs/define.ts'
import { Pending } from '../pending.ts'
import { type VolumeRecord, indexKeys, indexKind, vmKind, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { volumeGone } from './gone.ts'
import { admitVolumes } from '../vms/create.ts'

// ---- upload ------------------------------------------------------------------------------------------------------------

export type UploadParams = {
  volume: string
  name: string
  project: string
  created_at: string
  pool: string
  staged: Staged
  format?: ImportFormat
}

/** The file came in whole before the job began; how large the disk in it is shows only when it is looked at. */
export const uploadVolume = defineJob<UploadParams, Deps>(
  'volume.upload',
  1,
  (value) => value as UploadParams,
  [
    step('inspect', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const limit = await importLimit(deps, p.pool)
        const found = await deps.machine.imports.inspect(
          poolDefinition(poolOf(deps, p.pool)),
          p.volume,
          {
            limit_bytes: limit.file_bytes,
            disk_limit_bytes: limit.disk_bytes,
            ...(p.format === undefined ? {} : { format: p.format }),
          },
          { signal, log: (line) => ctx.log(line), progress: (fraction) => ctx.progress(fraction) },
        )
        const [disk] = found.disks
        if (!disk || found.disks.length > 1)
          throw fail('invalid', `It has ${found.disks.length} disks; a volume is one.`, {
            remedy: 'wadah image import',
          })
        const volume: VolumeRecord = {
          schema: 1,
          id: p.volume,
          name: p.name,
          project: p.project,
          created_at: p.created_at,
          pool: p.pool,
          format: disk.format === 'raw' ? 'raw' : 'qcow2',
          size_bytes: disk.size_bytes,
          read_only: false,
          making: true,
        }
        const key = indexKeys.name('volume', p.project, p.name)
        const known = deps.view.get(volumeKind, p.volume) !== undefined
        if (!known) await admitVolumes(deps, new Pending(), [volume], '/pool')
        for (const note of found.notes) ctx.log(note)
        ctx.commit(
          [put(volumeKind, p.volume, volume), put(indexKind, key, { schema: 1, holder: p.volume })],
          known ? [] : [absent(indexKind, key)],
        )
        return found
      },
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        const pool = poolDefinition(poolOf(deps, p.pool))
        await deps.machine.imports.clean(pool, p.volume)
        for (const format of ['qcow2', 'raw'] as const)
          await deps.machine.volumes.delete(pool, { id: p.volume, format })
        const volume = (await deps.store.get(volumeKind, p.volume))?.value
        if (!volume) return
        ctx.commit(volumeGone(volume))
      },
    }),
    step('convert', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const rec = await deps.store.get(volumeKind, p.volume)
        if (!rec) throw fail('gone', 'The volume is not there any more.')
        const found = ctx.output<Found>('inspect') as Found
        const pool = poolDefinition(poolOf(deps, p.pool))
        const disk = found.disks[0] as Found['disks'][0]
        await deps.machine.imports.convert(pool, p.volume, disk, volumeDefinition(deps, rec.value), {
          signal,
          log: (line) => ctx.log(line),
          progress: (done, total) => ctx.progress(total > 0 ? done / total : 1),
        })
        await deps.machine.imports.clean(pool, p.volume)
        const { making: _, ...ready } = rec.value
        ctx.commit([put(volumeKind, p.volume, ready)])
      },
      weight: 3,
    }),
  ],
  {
    claims: (p) => [`volume/${p.volume}`],
    lane: 'import',
    result: (_output, p) => ({ volume: p.volume, name: p.name }),
  },
)

// ---- convert and move --------------------------------------------------------------------------------------------------

type Place = { pool: string; format: 'qcow2' | 'raw' }
export type ChangeParams = { volume: string; name: string; vm?: string; uid?: number; from: Place; to: Place }

/** Copied to where it shall be, then the record says so, then the old file goes. A linked clone stands by itself afterwards. */
export const changeVolume = defineJob<ChangeParams, Deps>(
  'volume.change',
  1,
  (value) => value as ChangeParams,
  [
    // What a move under a running guest left half-way, whose host or store was lost meanwhile, looks like a copy that is whole.
    step('clear', {
      do: async ({ deps, params: p }) => {
        const now = (await deps.store.get(volumeKind, p.volume))?.value
        if (!now) throw fail('gone', 'The volume is not there any more.')
        const isThere = now.pool === p.to.pool && now.format === p.to.format
        const stale = { id: p.volume, format: p.to.format }
        if (!isThere) await deps.machine.volumes.delete(poolDefinition(poolOf(deps, p.to.pool)), stale)
      },
      weight: 0.1,
    }),
    step('copy', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const rec = await deps.store.get(volumeKind, p.volume)
        if (!rec) throw fail('gone', 'The volume is not there any more.')
        const source = volumeDefinition(deps, rec.value)
        const { base: _, ...whole } = { ...source, ...p.to }
        const to = poolDefinition(poolOf(deps, p.to.pool))
        await deps.machine.volumes.clone(
          to,
          { pool: poolDefinition(poolOf(deps, p.from.pool)), volume: source },
          whole,
          'full',
          {
            signal,
            log: (line) => ctx.log(line),
            progress: (done, total) => ctx.progress(total > 0 ? done / total : 1),
          },
        )
        if (p.uid !== undefined) await deps.machine.volumes.grant(to, whole, { uid: p.uid })
      },
      undo: async ({ deps, params: p }) => {
        await deps.machine.volumes.delete(poolDefinition(poolOf(deps, p.to.pool)), {
          id: p.volume,
          format: p.to.format,
        })
      },
      progress: 'bytes',
    }),
    pivot('switch', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const rec = await deps.store.get(volumeKind, p.volume)
        if (!rec) throw fail('gone', 'The volume is not there any more.')
        const { base: _, ...alone } = rec.value
        ctx.commit([put(volumeKind, p.volume, { ...alone, ...p.to })])
      },
      weight: 0.1,
    }),
    step('drop', {
      do: async ({ deps, params: p }) =>
        forward(() =>
          deps.machine.volumes.delete(poolDefinition(poolOf(deps, p.from.pool)), {
            id: p.volume,
            format: p.from.format,
          }),
        ),
      weight: 0.1,
    }),
  ],
  {
    claims: (p) => [`volume/${p.volume}`, ...(p.vm === undefined ? [] : [`vm/${p.vm}`])],
    lane: 'create',
    result: (_output, p) => ({ volume: p.volume, name: p.name }),
  },
)

// ---- export ------------------------------------------------------------------------------------------------------------

export type ExportParams = {
  /** Names the folder in which the file is made. */
  export: string
  name: string
  pool: string
  volumes: string[]
  vms: string[]
  format: ImportFormat
  hardware: ImageHardware
}

/** Makes the file; who asked reads it and takes it away. After a crash nobody waits for it any more. */
export const exportVolumes = defineJob<ExportParams, Deps>(
  'volume.export',
  1,
  (value) => value as ExportParams,
  [
    step('pack', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const volumes = p.volumes.map((id) => {
          const volume = deps.view.get(volumeKind, id)?.value
          if (!volume) throw fail('gone', 'A volume is not there any more.')
          return { pool: poolDefinition(poolOf(deps, volume.pool)), volume: volumeDefinition(deps, volume) }
        })
        return await deps.machine.imports.pack(
          poolDefinition(poolOf(deps, p.pool)),
          p.export,
          { volumes, format: p.format, name: p.name, hardware: p.hardware },
          { signal, log: (line) => ctx.log(line), progress: (fraction) => ctx.progress(fraction) },
        )
      },
      undo: async ({ deps, params: p }) => {
        await deps.machine.imports.clean(poolDefinition(poolOf(deps, p.pool)), p.export)
      },
    }),
  ],
  {
    onCrash: 'undo',
    claims: (p) => [...p.volumes.map((id) => `volume/${id}/read/${p.export}`), ...p.vms.map((id) => `vm/${id}`)],
    lane: 'import',
  },
)

/** VMs that have these volumes as disks, for claims. */
export function vmsOf(deps: Pick<Deps, 'view'>, volumes: readonly VolumeRecord[]): string[] {
  return [...new Set(volumes.flatMap((v) => (v.vm !== undefined && deps.view.get(vmKind, v.vm) ? [v.vm] : [])))]
}
