/**
 * `volume move` (and `convert`) of a disk whose VM runs: QEMU copies it beside, then the guest goes over to the copy. The record
 * promises the room from the beginning; what is so is asked of QEMU at every step, so that the job is taken up where it was cut off.
 */
import { human } from '@wadah/api/admit'
import { fail } from '@wadah/api/fault'
import type { DiskCopy } from '@wadah/ports/disk-moves'
import type { PoolDefinition } from '@wadah/ports/volumes'
import { put, unchanged } from '@wadah/store/store'
import { caughtUp, type Deps, forward } from '../context.ts'
import { defineJob, pivot, step } from '../jobs/define.ts'
import { pausePoint } from '../migration/pause-point.ts'
import { snapshotKind, type VmRecord, type VolumeRecord, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import type { ChangeParams } from './transfer-jobs.ts'

export type MoveLiveParams = ChangeParams & { vm: string; uid: number; disk: string }
type FileOf = { id: string; format: 'qcow2' | 'raw' }

/** @throws WadahError `wrong_state` for a disk that can't go while its VM runs */
export function diskToMove(deps: Pick<Deps, 'view'>, vm: VmRecord, volume: VolumeRecord): string {
  const disk = vm.spec.disks.find((d) => d.volume === volume.id)
  if (!disk)
    throw fail('wrong_state', `"${volume.name}" is no disk that "${vm.name}" runs with.`, {
      remedy: `wadah vm shutdown ${vm.name}`,
    })
  // A mirror copies what the guest sees now, not the layers below.
  const has = deps.view.list(snapshotKind).find((s) => s.value.vm === vm.id)
  if (has)
    throw fail('wrong_state', `"${vm.name}" has the snapshot "${has.value.name}", whose layers would not go with it.`, {
      remedy: `wadah snapshot delete ${vm.name} ${has.value.name}`,
    })
  return disk.name
}

async function stored(deps: Deps, p: MoveLiveParams): Promise<VolumeRecord> {
  await caughtUp(deps)
  const rec = await deps.store.get(volumeKind, p.volume)
  if (!rec) throw fail('gone', 'The volume is not there any more.')
  return rec.value
}

/** The copy stands by itself: what it had in common with its base it then holds. */
function copyOf(deps: Deps, p: MoveLiveParams, record: VolumeRecord): DiskCopy {
  const volume = { ...volumeDefinition(deps, record), ...p.from }
  const { base: _, ...whole } = { ...volume, ...p.to }
  return {
    vm: p.vm,
    disk: p.disk,
    from: { pool: poolDefinition(poolOf(deps, p.from.pool)), volume },
    to: { pool: poolDefinition(poolOf(deps, p.to.pool)), volume: whole },
  }
}

/**
 * The host that carried it out is gone for good, and its QEMU with it: the names of the files say how far it was. What lay in pools of that
 * host alone is lost with them.
 * @returns the record as it is from now on
 */
export async function afterLoss(deps: Deps, volume: VolumeRecord, p: MoveLiveParams): Promise<VolumeRecord> {
  const { moving_to: _, ...stays } = volume
  const [from, to] = [poolOf(deps, p.from.pool), poolOf(deps, p.to.pool)]
  if (to.host !== undefined) return stays
  const [here, there] = [from, to].map((pool) => poolDefinition(pool)) as [PoolDefinition, PoolDefinition]
  const [before, after] = [p.from, p.to].map(({ format }) => ({ id: volume.id, format })) as [FileOf, FileOf]
  const { volumes } = deps.machine
  const isAside =
    from.host === undefined && !(await volumes.exists(here, before)) && (await volumes.exists(there, after))
  if (!isAside) {
    await volumes.delete(there, after)
    return stays
  }
  const { base: _b, ...alone } = stays
  return { ...alone, ...p.to }
}

export const moveVolumeLive = defineJob<MoveLiveParams, Deps>(
  'volume.move',
  1,
  (value) => {
    const p = value as MoveLiveParams
    if (typeof p?.volume !== 'string' || typeof p.vm !== 'string' || typeof p.disk !== 'string')
      throw fail('invalid', 'The job has no disk.')
    return p
  },
  [
    step('note', {
      do: async (ctx) => {
        const { deps, params: p, jobId } = ctx
        const rec = await deps.store.get(volumeKind, p.volume)
        if (!rec) throw fail('gone', 'The volume is not there any more.')
        const moving = { ...rec.value, moving_to: { pool: p.to.pool, job: jobId } }
        ctx.commit([put(volumeKind, p.volume, moving)], [unchanged(rec)])
      },
      undo: async (ctx) => {
        const { deps, params: p, jobId } = ctx
        const rec = await deps.store.get(volumeKind, p.volume)
        if (rec?.value.moving_to?.job !== jobId) return
        const { moving_to: _, ...stays } = rec.value
        ctx.commit([put(volumeKind, p.volume, stays)], [unchanged(rec)])
      },
      weight: 0.02,
    }),
    step('place', {
      do: async ({ deps, params: p, signal, log }) => {
        const { from, to } = copyOf(deps, p, await stored(deps, p))
        const { volumes } = deps.machine
        const least = await volumes.allocatedBytes(from.pool, from.volume)
        const { free_bytes } = await volumes.facts(to.pool)
        if (least > free_bytes)
          throw fail(
            'no_room',
            `The disk takes ${human(least)}, and ${human(free_bytes)} are free at ${to.pool.path}.`,
            { remedy: `make room on it (df -h ${to.pool.path}), or take another pool`, field: '/pool' },
          )
        await volumes.create(to.pool, to.volume, { signal, log })
        await volumes.grant(to.pool, to.volume, { uid: p.uid })
      },
      undo: async ({ deps, params: p }) => {
        const { to } = copyOf(deps, p, await stored(deps, p))
        await deps.machine.volumes.delete(to.pool, to.volume)
      },
      weight: 0.02,
    }),
    step('copy', {
      do: async (ctx) => {
        const { deps, params: p, signal } = ctx
        await pausePoint('volume-copy')
        await deps.machine.diskMoves.copy(copyOf(deps, p, await stored(deps, p)), {
          signal,
          log: ctx.log,
          progress: (done, total) => ctx.progress({ done, total: Math.max(total, 1) }),
        })
      },
      undo: async ({ deps, params: p }) => deps.machine.diskMoves.drop(copyOf(deps, p, await stored(deps, p))),
      progress: 'bytes',
      weight: 5,
    }),
    pivot<MoveLiveParams, Deps, { stall_ms?: number }>('switch', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        await pausePoint('volume-switch')
        const before = await forward(() => stored(deps, p))
        const switched = await deps.machine.diskMoves.switch(copyOf(deps, p, before))
        await pausePoint('volume-switched')
        const { moving_to: _, base: _b, ...alone } = before
        ctx.commit([put(volumeKind, p.volume, { ...alone, ...p.to })])
        return switched
      },
      weight: 0.02,
    }),
    step('drop', {
      do: async ({ deps, params: p }) =>
        forward(async () => {
          await pausePoint('volume-drop')
          const { from, ...move } = copyOf(deps, p, await stored(deps, p))
          await deps.machine.diskMoves.settle({ ...move, from })
          await deps.machine.volumes.delete(from.pool, from.volume)
        }),
      weight: 0.02,
    }),
  ],
  {
    claims: (p) => [`volume/${p.volume}`, `vm/${p.vm}`],
    lane: 'create',
    result: (output, p) => ({
      volume: p.volume,
      name: p.name,
      ...(output('switch') as { stall_ms?: number } | undefined),
    }),
  },
)
