/** A volume that grows: its record promises the room, then the file follows, then the record says so. */
import { fail } from '@wadah/api/fault'
import { put } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { defineJob, pivot, step } from '../jobs/define.ts'
import { type VolumeRecord, vmKind, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'

export type ResizeParams = { volume: string; name: string; size_bytes: number; vm?: string }

function params(value: unknown): ResizeParams {
  const p = value as ResizeParams
  if (typeof p?.volume !== 'string' || !Number.isSafeInteger(p.size_bytes))
    throw fail('invalid', 'The job has no volume.')
  return p
}

async function current(deps: Deps, id: string): Promise<VolumeRecord> {
  const rec = await deps.store.get(volumeKind, id)
  if (!rec) throw fail('gone', 'The volume is not there any more.')
  await deps.view.waitFor(rec.modified)
  return rec.value
}

export const resizeVolumeJob = defineJob<ResizeParams, Deps>(
  'volume.resize',
  1,
  params,
  [
    // The promise was committed with the job; this step is the way back.
    step('promise', {
      do: () => undefined,
      undo: async (ctx) => {
        const volume = (await ctx.deps.store.get(volumeKind, ctx.params.volume))?.value
        if (!volume) return
        const { growing_to: _, ...before } = volume
        ctx.commit([put(volumeKind, volume.id, before)])
      },
      volatile: true,
      weight: 0.1,
    }),
    // No disk shrinks again: a guest may have written where there was nothing before.
    pivot('grow', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        const volume = await current(deps, p.volume)
        const disks = p.vm === undefined ? [] : ((await deps.store.get(vmKind, p.vm))?.value.spec.disks ?? [])
        const disk = disks.find((d) => d.volume === p.volume)
        if (p.vm !== undefined && disk && deps.machine.running(p.vm))
          await deps.machine.growDisk(p.vm, disk.name, p.size_bytes, signal)
        else {
          const work = { signal, log: (line: string) => ctx.log(line) }
          const definition = volumeDefinition(deps, volume)
          await deps.machine.volumes.grow(poolDefinition(poolOf(deps, volume.pool)), definition, p.size_bytes, work)
        }
        const { growing_to: _, ...rest } = volume
        ctx.commit([put(volumeKind, volume.id, { ...rest, size_bytes: p.size_bytes })])
      },
    }),
  ],
  {
    claims: (p) => [`volume/${p.volume}`, ...(p.vm === undefined ? [] : [`vm/${p.vm}`])],
    lane: 'create',
    result: (_output, p) => ({ volume: p.volume, name: p.name, size_bytes: p.size_bytes }),
  },
)
