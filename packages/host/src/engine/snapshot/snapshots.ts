/** Snapshots of this machine's VMs. What it promises is written in packages/ports/src/snapshots.ts and docs/snapshots.md. */
import { rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { WadahError, fail, toFault } from '@wadah/api/fault'
import type { Guest } from '@wadah/ports/machine'
import type { MergeRequest, SnapshotRequest, SnapshotTaken, Snapshots } from '@wadah/ports/snapshots'
import type { VolumeWork } from '@wadah/ports/volumes'
import type { HostVolumes } from '../../storage/volumes.ts'
import { syncDir } from '../../system/files.ts'
import { VmDirectory } from '../directory.ts'
import { copyFirmwareState, readFirmwareState, replaceFirmwareState, writeFirmwareState } from '../firmware.ts'
import type { RunningVm } from '../running-vm.ts'
import { closeNodes, headNodes, headVolumes, nodes, openLayer, putOnTop } from './layers.ts'
import { mergeLive } from './merge.ts'
import { mostBytes } from './patience.ts'
import { type Saved, saveRam, settle } from './ram.ts'
import { openSink } from './sink.ts'

export type SnapshotsOptions = {
  dataDir: string
  volumes: HostVolumes
  /** One that runs here, adopted if need be. */
  running: (vm: string) => Promise<RunningVm | undefined>
  guest: (vm: string) => Guest
  root: boolean
  log: (line: string) => void
}

/** How long a guest may stay frozen while the layers are put on top; it thaws by itself after. */
const FREEZE_S = 20
const FREEZE_ANSWER_MS = 15_000

export class HostSnapshots implements Snapshots {
  readonly #o: SnapshotsOptions
  constructor(options: SnapshotsOptions) {
    this.#o = options
  }

  async heads(vm: string): Promise<Record<string, string> | undefined> {
    const running = await this.#o.running(vm)
    return running && headVolumes(running)
  }

  async take(request: SnapshotRequest, work: VolumeWork): Promise<SnapshotTaken> {
    const running = await this.#o.running(request.vm)
    if (!running) return { consistency: 'off' }
    return running.quietly(async () => {
      // What a daemon that ended in the middle of this left.
      await rm(new VmDirectory(this.#o.dataDir, request.vm).transfer, { recursive: true, force: true })
      await settle(running, running.live.paused_by === 'job')
      if (running.live.paused_by === 'job') await running.note(undefined)
      await activate(running)
      await running.refresh()
      const before = await headVolumes(running)
      const missing = request.layers.filter((l) => before[l.disk] !== l.volume.id)
      const other = missing.find((l) => before[l.disk] !== l.volume.base?.id)
      if (other)
        throw fail('wrong_state', `QEMU writes the disk "${other.disk}" to another layer than the one recorded.`, {
          remedy: 'wadah job list; a merge of layers has to end first',
        })
      if (missing.length === 0 && request.layers.length > 0)
        return { consistency: 'crash', note: 'wadahd ended while it was taken: the disks are as after a power cut' }
      return request.ram
        ? await this.#withRam(running, request, request.ram, work)
        : await this.#disksOnly(running, request)
    })
  }

  /** New layers that did not come on top are closed again: QEMU, which holds them to write, could save no RAM any more. */
  async #close(running: RunningVm, { layers }: SnapshotRequest): Promise<void> {
    for (const { disk } of layers) await closeNodes(running, disk).catch(() => {})
  }

  /** Opens the new layers; they come on top when the returned function is called. Those that a failed try left open go first. */
  async #ready(running: RunningVm, { layers }: SnapshotRequest): Promise<() => Promise<void>> {
    const heads = await headNodes(running)
    for (const { disk } of layers) await closeNodes(running, disk)
    const pairs: { node: string; overlay: string }[] = []
    for (const { disk, pool, volume } of layers) {
      const node = heads.get(disk)
      if (node === undefined)
        throw fail('wrong_state', `The running VM does not have the disk "${disk}" yet; it comes at the next start.`)
      const path = this.#o.volumes.path(pool, volume)
      const file = { chain: [{ path, format: volume.format }], direct_io: pool.direct_io, limits: {} }
      pairs.push({ node, overlay: await openLayer(running, disk, file) })
    }
    return () => (pairs.length === 0 ? Promise.resolve() : putOnTop(running, pairs))
  }

  async #disksOnly(running: RunningVm, request: SnapshotRequest): Promise<SnapshotTaken> {
    const opened = async <T>(work: () => Promise<T>): Promise<T> => {
      try {
        return await work()
      } catch (error) {
        await this.#close(running, request)
        throw error
      }
    }
    const [switchOver, frozen] = await opened(
      async () => [await this.#ready(running, request), await this.#freeze(running, request)] as const,
    )
    const begun = performance.now()
    try {
      await opened(switchOver)
    } finally {
      if (frozen === true)
        await this.#o
          .guest(running.vm)
          .thaw(AbortSignal.timeout(FREEZE_ANSWER_MS))
          .catch((error: unknown) => this.#o.log(`${running.vm}: thaw: ${(error as Error).message}`))
    }
    return frozen === true
      ? { consistency: 'frozen', frozen_ms: performance.now() - begun }
      : { consistency: 'crash', note: frozen }
  }

  /** True, or why not. */
  async #freeze(running: RunningVm, { freeze }: SnapshotRequest): Promise<true | string> {
    if (freeze === 'never') return 'freezing was not wanted'
    try {
      if (running.last.state !== 'running') throw fail('wrong_state', 'the guest does not run')
      if (running.last.agent !== 'connected') throw fail('agent_silent', 'no guest agent is connected')
      await this.#o.guest(running.vm).freeze(FREEZE_S, AbortSignal.timeout(FREEZE_ANSWER_MS))
      return true
    } catch (error) {
      if (freeze === 'require')
        throw new WadahError(
          { ...toFault(error), effect: 'none', detail: `Its file systems can't be frozen: ${toFault(error).detail}` },
          error,
        )
      return `its file systems were not frozen: ${toFault(error).detail}`
    }
  }

  async #withRam(
    running: RunningVm,
    request: SnapshotRequest,
    ram: NonNullable<SnapshotRequest['ram']>,
    work: VolumeWork,
  ): Promise<SnapshotTaken> {
    const { vm } = running
    if (!['running', 'paused'].includes(await running.status()))
      throw fail('wrong_state', `The guest stands by itself (${running.last.state}): its RAM can't be saved now.`, {
        remedy: 'wadah vm show NAME says why; or take it without --ram',
      })
    const directory = new VmDirectory(this.#o.dataDir, vm)
    const { uid, qemu_version } = running.live
    await directory.makeTransfer(this.#o.root ? uid : null)
    let switched = false
    try {
      const switchOver = await this.#ready(running, request)
      const boot = structuredClone(running.record)
      let took: Saved | undefined
      const most = mostBytes(running.record.memory.max_mib * 2 ** 20)
      const bytes = await this.#o.volumes.capture(ram.pool, ram.volume, most, async (handle) => {
        const wasRunning = running.last.state === 'running'
        // A daemon that comes after us must know whose pause it was.
        if (wasRunning) await running.note('job')
        took = await saveRam(running, {
          openSink: async () => {
            await handle.truncate(0)
            await rm(`${directory.transfer}/ram.sock`, { force: true })
            return openSink(`${directory.transfer}/ram.sock`, handle, most)
          },
          atSwitch: async () => {
            await switchOver()
            switched = true
          },
          signal: work.signal,
          log: (line) => work.log?.(line),
        })
        // The disks have their layers by now: nothing may go wrong any more that would take them away.
        if (wasRunning) await running.note(undefined).catch((e: unknown) => this.#o.log(`${vm}: ${String(e)}`))
        else await activate(running)
      })
      return {
        consistency: 'ram',
        ...(took?.stall_ms === undefined ? {} : { stall_ms: took.stall_ms }),
        ram: { bytes, boot, qemu_version, save_ms: took?.save_ms ?? 0 },
      }
    } catch (error) {
      if (running.live.paused_by === 'job') await running.note(undefined).catch(() => {})
      if (!switched) {
        await this.#close(running, request)
        throw error
      }
      // The disks have their new layers, and there is no way back from there: what there is, is kept and said.
      return { consistency: 'crash', note: `its RAM could not be saved: ${toFault(error).detail}` }
    } finally {
      await rm(directory.transfer, { recursive: true, force: true })
    }
  }

  async merge(request: MergeRequest, work: VolumeWork): Promise<{ paused: boolean }> {
    const { pool, chain, above } = request
    const { volumes } = this.#o
    const [child, parent] = chain
    if (!child || !parent) throw fail('internal', 'a merge needs two layers')
    const [from, into] = [volumes.path(pool, child), volumes.path(pool, parent)]
    const running = await this.#o.running(request.vm)
    await volumes.grant(pool, parent, { uid: request.uid })
    let paused = false
    if (running && request.active) {
      await activate(running)
      // QEMU writes into their heads on what they stand from now on.
      for (const layer of above) await volumes.grant(pool, layer, { uid: request.uid })
      const live = { disk: request.disk, from, into }
      const report = (done: number, total: number) => work.progress?.(done, total)
      paused = (await running.quietly(() => mergeLive(running, live, work.signal, report))).paused
    } else if (await volumes.exists(pool, child)) {
      await volumes.merge(pool, chain, request.uid, work)
    }
    const open = running ? await nodes(running) : []
    const heads = running ? Object.values(await headVolumes(running)) : []
    for (const layer of above) {
      if (!open.some((n) => n.path === volumes.path(pool, layer))) await volumes.rebase(pool, layer, parent)
      // QEMU has done it in the files it has open, and left it in memory.
      else await volumes.flush(pool, layer)
      if (running && request.active && !heads.includes(layer.id)) await volumes.grant(pool, layer, 'read-only')
    }
    return { paused }
  }

  async keepState(vm: string, snapshot: string): Promise<void> {
    const directory = new VmDirectory(this.#o.dataDir, vm)
    await copyFirmwareState(directory, directory.kept(snapshot), null)
  }
  async restoreState(vm: string, snapshot: string, uid: number): Promise<void> {
    const directory = new VmDirectory(this.#o.dataDir, vm)
    await replaceFirmwareState(directory.kept(snapshot), directory, this.#o.root ? uid : null)
  }
  async dropState(vm: string, snapshot: string): Promise<void> {
    await rm(new VmDirectory(this.#o.dataDir, vm).kept(snapshot).root, { recursive: true, force: true })
  }
  async readKept(vm: string, snapshot: string): Promise<Record<string, string>> {
    return readFirmwareState(new VmDirectory(this.#o.dataDir, vm).kept(snapshot))
  }
  async writeKept(vm: string, snapshot: string, state: Record<string, string>): Promise<void> {
    const directory = new VmDirectory(this.#o.dataDir, vm)
    const kept = directory.kept(snapshot)
    await kept.makeState(null)
    await writeFirmwareState(kept, state, null)
    for (const folder of [kept.root, dirname(kept.root), directory.root, dirname(directory.root)]) await syncDir(folder)
  }
}

/** After a save or a move of a paused guest QEMU does not have its disks; it takes them when it goes on, if only for an instant. */
export async function activate(running: RunningVm): Promise<void> {
  if ((await running.status()) !== 'postmigrate' && !running.live.inactive) return
  await running.execute('cont')
  await running.execute('stop')
  await running.noteActive()
}
