/**
 * A stopped VM goes to another host: what lies on this one alone is read by that host, which copies it and has it flushed before it says so.
 * Nothing here changes; the commit that moves the VM is the caller's (migrate.ts). docs/migration.md.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { Deps } from '../context.ts'
import { hostName } from '../members/where.ts'
import { MOVE_PROTOCOL, type MessageLink } from '../migration/link.ts'
import { pausePoint } from '../migration/pause-point.ts'
import { Talk } from '../migration/talk.ts'
import { whenItsTurn } from '../migration/turns.ts'
import { hostKind, volumeKind } from '../records.ts'
import { poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import { answerUsed } from '../storage/rooms.ts'
import { askTarget } from './kept.ts'
import type { DiskMove } from './local-disks.ts'

/** Asked of the target before the VM is its: whether all that was brought is there. */
export const BROUGHT_PATH = '/peer/v1/brought'
/** It removes what an earlier try left, and writes what is small. */
const READY_MS = 120_000
/** As long as qemu-img has; that the other host lives is seen by its heartbeats. */
const DISK_MS = 25 * 3_600_000
/** It takes back what it has made. */
const UNDO_MS = 20_000

export type BringOrder = {
  job: string
  vm: string
  name: string
  to: string
  epoch: number
  disks: readonly DiskMove[]
  /** Whether there are files of the machine's own. */
  state: boolean
  bandwidth_bytes_per_s?: number
}
type Tell = {
  log(line: string): void
  progress(done_bytes: number, total_bytes: number): void
  /** Throws where what is to go is not there any more. */
  still?: () => Promise<void>
}
type Sized = DiskMove & { bytes: number }

/** When it fails, the target has been told, and has had the time to take back what it made. @returns bytes that were to be copied */
export async function bringOut(
  deps: Deps,
  o: BringOrder,
  tell: Tell,
  signal: AbortSignal,
): Promise<{ bytes: number; took_ms: number }> {
  const begun = performance.now()
  // Before the target makes room for it: what is there may be all there is.
  for (const disk of o.disks) {
    const volume = (await deps.store.get(volumeKind, disk.volume))?.value
    const there = volume && (await deps.machine.volumes.exists(poolDefinition(poolOf(deps, volume.pool)), volume))
    if (!there)
      throw fail('gone', `The file of the disk "${disk.name}" is not on this host.`, {
        remedy: `wadah volume show ${volume?.name ?? disk.volume}`,
      })
  }
  const state = o.state ? await deps.machine.readState(o.vm) : {}
  const disks: Sized[] = []
  for (const d of o.disks) disks.push({ ...d, bytes: (await bytesOf(deps, d)) ?? d.size_bytes })
  const total = disks.reduce((sum, d) => sum + d.bytes, 0)
  const { job, vm, epoch } = o
  const talk = new Talk(await open(deps, o, signal), () => Date.now())
  try {
    talk.send({
      type: 'bring',
      version: MOVE_PROTOCOL,
      job,
      bring: {
        vm,
        epoch,
        state,
        waits: true,
        disks: disks.map(({ volume, bytes, based }) => ({ volume, bytes, ...(based ? { as: 'layer' as const } : {}) })),
        ...(o.bandwidth_bytes_per_s === undefined ? {} : { bandwidth_bytes_per_s: o.bandwidth_bytes_per_s }),
      },
    })
    talk.beat()
    const { waited_ms } = await whenItsTurn(
      () => talk.next(['ready', 'wait'], READY_MS, signal),
      (most) => tell.log(`the other host takes ${most} at a time: it waits for its turn`),
      tell.still,
    )
    let done = 0
    for (const disk of disks) {
      tell.log(disk.held ? `copying ${disk.name}, of its snapshots` : `copying the disk "${disk.name}"`)
      await send(deps, o, disk, talk, signal, (fraction) => tell.progress(done + fraction * disk.bytes, total))
      done += disk.bytes
      tell.progress(done, total)
    }
    await talk.next(['brought'], READY_MS, signal)
    return { bytes: total, took_ms: Math.round(performance.now() - begun - waited_ms) }
  } catch (error) {
    talk.send({ type: 'abort', job, fault: toFault(error) })
    await Promise.race([talk.link.closed, sleep(UNDO_MS, undefined, { ref: false })])
    throw talk.lost.aborted && error === talk.lost.reason ? broke(deps, o, error as WadahError) : error
  } finally {
    talk.close()
  }
}

/** What is copied of it: with what it stands on, where that does not go along. */
export async function bytesOf(deps: Deps, { volume, from, format, based }: DiskMove): Promise<number | undefined> {
  if (!based) return (await answerUsed(deps, [volume]))[volume]
  const pool = poolDefinition(poolOf(deps, from))
  return deps.machine.volumes.allocatedBytes(pool, { id: volume, format }).catch(() => undefined)
}

function broke(deps: Deps, { name, to }: BringOrder, cause: WadahError): WadahError {
  const why = `The stream to ${hostName(deps.view, to)} broke while "${name}" was copied there; it stays as it is.`
  return fail('unreachable', why, { remedy: 'wadah host list, then move it again', cause })
}

async function open(deps: Deps, o: BringOrder, signal: AbortSignal): Promise<MessageLink> {
  if (!deps.moves) throw fail('internal', 'no way to other hosts')
  try {
    return await deps.moves.bring(o.to, signal)
  } catch (error) {
    if (!(error instanceof WadahError) || error.fault.code !== 'not_found') throw error
    if (!deps.view.get(hostKind, o.to)) throw error
    const host = hostName(deps.view, o.to)
    throw fail('host_lacks', `${host} runs an older release, which takes no disks of a VM that is stopped.`, {
      remedy: `upgrade ${host}; or start "${o.name}", then move it`,
      cause: error,
    })
  }
}

/** Until the target says that it has all of it. */
async function send(
  deps: Deps,
  { job, to }: BringOrder,
  disk: Sized,
  talk: Talk,
  signal: AbortSignal,
  tell: (fraction: number) => void,
): Promise<void> {
  const volume = (await deps.store.get(volumeKind, disk.volume))?.value
  if (!volume) throw fail('gone', `The disk "${disk.name}" is not there any more.`)
  const over = new AbortController()
  const limit = AbortSignal.any([signal, talk.lost, over.signal])
  const pool = poolDefinition(poolOf(deps, volume.pool))
  const served = await deps.machine.volumes.serve(
    pool,
    volumeDefinition(deps, volume),
    limit,
    disk.based ? 'layer' : undefined,
  )
  try {
    void deps.moves
      ?.carry(to, { job, volume: volume.id }, served, limit)
      .catch((error: unknown) => over.abort(toWadah(error)))
    await pausePoint('bring-copy')
    const heard = AbortSignal.any([signal, over.signal])
    for (;;) {
      const m = await talk.next(['bringing', 'brought'], DISK_MS, heard)
      if (m.volume !== volume.id) throw fail('malformed', 'The other host speaks of a disk that was not its turn.')
      if (m.type === 'brought') return
      if (m.total_bytes > 0) tell(Math.min(1, m.done_bytes / m.total_bytes))
    }
  } finally {
    over.abort(fail('cancelled', 'It is over.'))
    served.close()
    // Whoever starts the VM next finds its disk unused.
    await served.ended
  }
}

const toWadah = (error: unknown) => (error instanceof WadahError ? error : new WadahError(toFault(error), error))

/** Just before it is the target's. @returns what layers take there, bytes @throws WadahError, effect `none` */
export async function mustBeThere(
  deps: Deps,
  { job, vm, to, epoch, state, disks }: BringOrder,
  signal: AbortSignal,
): Promise<Record<string, number>> {
  const { took } =
    (await askTarget<{ took?: unknown }>(deps, to, BROUGHT_PATH, { job, vm, epoch, state }, signal)) ?? {}
  const known = new Set(disks.map((d) => d.volume))
  return Object.fromEntries(
    Object.entries(typeof took === 'object' && took !== null ? took : {}).filter(
      (e): e is [string, number] => known.has(e[0]) && Number.isSafeInteger(e[1]) && e[1] >= 0,
    ),
  )
}
