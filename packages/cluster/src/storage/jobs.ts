/** Volumes of their own: create, clone, delete. */
import { fail } from '@wadah/api/fault'
import { put } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { defineJob, pivot, step } from '../jobs/define.ts'
import { type VolumeRecord, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { makeVolume } from '../vms/jobs.ts'
import { dropFile, storedVolume, volumeGone } from './gone.ts'

export type VolumeParams = {
  volume: string
  name: string
  uid?: number
  from?: { volume: string; how: 'linked' | 'full' | 'delta' }
}

function params(value: unknown): VolumeParams {
  const p = value as VolumeParams
  if (typeof p?.volume !== 'string') throw fail('invalid', 'The job has no volume.')
  return p
}

async function current(deps: Deps, id: string): Promise<VolumeRecord> {
  const rec = await deps.store.get(volumeKind, id)
  if (!rec) throw fail('gone', 'The volume is not there any more.')
  await deps.view.waitFor(rec.modified)
  return rec.value
}

/** Its record was committed with the job, marked as being made. */
export const makeVolumeJob = defineJob<VolumeParams, Deps>(
  'volume.create',
  1,
  params,
  [
    step('file', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const volume = await current(deps, p.volume)
        if (p.from?.how === 'linked') {
          // What others stand on is never written again.
          const base = await current(deps, p.from.volume)
          await deps.machine.volumes.grant(
            poolDefinition(poolOf(deps, base.pool)),
            volumeDefinition(deps, base),
            'read-only',
          )
        }
        await makeVolume(ctx, volume, p.from, p.uid === undefined ? undefined : { uid: p.uid }, (f) => ctx.progress(f))
        const { making: _, ...ready } = volume
        ctx.commit([put(volumeKind, volume.id, ready)])
      },
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        const volume = await storedVolume(deps, p.volume)
        if (!volume) return
        await dropFile(deps, volume)
        ctx.commit(volumeGone(volume))
      },
      progress: 'bytes',
    }),
  ],
  {
    claims: (p) => [`volume/${p.volume}`, ...(p.from ? [`volume/${p.from.volume}/read/${p.volume}`] : [])],
    lane: 'create',
    result: (_output, p) => ({ volume: p.volume, name: p.name }),
  },
)

export const deleteVolumeJob = defineJob<VolumeParams, Deps>(
  'volume.delete',
  1,
  params,
  [
    pivot('file', {
      do: async ({ deps, params: p }) => {
        const volume = await storedVolume(deps, p.volume)
        if (volume) await dropFile(deps, volume)
      },
    }),
    step('record', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const volume = await storedVolume(deps, p.volume)
        if (!volume) return
        ctx.commit(volumeGone(volume))
      },
    }),
  ],
  { claims: (p) => [`volume/${p.volume}`], result: (_output, p) => ({ volume: p.volume, name: p.name }) },
)
