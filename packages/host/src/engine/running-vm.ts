/** One running QEMU: its monitor, its state as QEMU says it, and the news of its end. */
import type { PausedBy } from '@wadah/api/schema/vm'
import { fail } from '@wadah/api/fault'
import type { BootDevice, BootRecord, Observed, Running } from '@wadah/ports/machine'
import { type ExecuteOptions, type Qmp, type QmpEvent, connectQmp } from '@wadah/qmp/client'
import { isQmpError } from '@wadah/qmp/errors'
import { setTimeout as sleep } from 'node:timers/promises'
import { netdevId, sockets } from './argv.ts'
import { hostFlagsOf } from './cpu.ts'
import type { LiveRecord, VmDirectory } from './directory.ts'
import { monitorFault } from './monitor-fault.ts'
import { isAlive, signalProcess, waitGone } from './process.ts'
import { closeNodes } from './snapshot/layers.ts'
import { STATE_EVENTS, stateOf } from './state.ts'
import { unlessTold } from './unless-told.ts'

const QUIT_TIMEOUT_MS = 5_000
const RESET_TIMEOUT_MS = 10_000
const TPM_LOST = 'its TPM has ended; the guest gets it back when it was shut down and started again'
const RECONNECT_MS = [50, 200, 1000, 5000] as const

export type RunningOptions = {
  directory: VmDirectory
  boot: BootRecord
  live: LiveRecord
  /** Undefined when QEMU lives and its monitor does not answer. */
  qmp: Qmp | undefined
  /** How a child of ours ended; absent for an adopted one. */
  exit?: Promise<string> | undefined
  now_ms: () => number
  observed: (o: Observed) => void
  /** A device has left the guest and QEMU: what the host did for it goes too. */
  released?: (device: BootDevice) => Promise<void>
  /** It went on from saved RAM just now, and believes that no time has passed. */
  wentOn?: () => void
  /** Its agent closed its end: the guest was reset, or the agent ended. */
  agentLeft?: () => void
  log: (line: string) => void
}

export type EventWatch = {
  seen(name: string): number | undefined
  until(wanted: (event: QmpEvent) => boolean, options: { timeout_ms: number; signal?: AbortSignal }): Promise<QmpEvent>
  close(): void
}

export class RunningVm implements Running {
  readonly vm: string
  readonly record: BootRecord
  readonly live: LiveRecord
  readonly gone: Promise<{ reason: string }>
  last: Observed
  readonly #o: RunningOptions
  readonly #goneNow: (g: { reason: string }) => void
  #qmp: Qmp | undefined
  #agent: NonNullable<Observed['agent']> = 'unknown'
  /** How often an event said something of it. */
  #agentTold = 0
  #endedByGuest: boolean | undefined
  #ioError: { device: string; full: boolean } | undefined
  #resumeTimer: NodeJS.Timeout | undefined
  #isGone = false

  constructor(options: RunningOptions) {
    this.#o = options
    this.vm = options.live.vm
    this.record = options.boot
    this.live = options.live
    const { promise, resolve } = Promise.withResolvers<{ reason: string }>()
    this.gone = promise
    this.#goneNow = resolve
    this.last = { vm: this.vm, state: 'unknown', at_ms: options.now_ms() }
    if (options.qmp) this.#use(options.qmp)
    else void this.#reconnect('its monitor did not answer')
    // A child of ours tells its end by itself, before the monitor notices.
    void options.exit?.then((how) => this.#end(how))
  }

  get pid(): number {
    return this.live.qemu.pid
  }
  get isGone(): boolean {
    return this.#isGone
  }
  /** It goes on from what was saved, and is not yet what it is to be. */
  get isBeginning(): boolean {
    return this.live.loading === true || this.live.stranger === true || this.live.moving?.role === 'arriving'
  }
  /** The disks' devices that stopped the guest for want of room. */
  get waitsForRoom(): boolean {
    return this.last.paused_by === 'io-error' && this.#ioError?.full === true
  }

  /** @throws WadahError `wrong_state`, `monitor_silent`, `qemu_failed`, `cancelled`; its cause is the QmpError */
  async execute(command: string, args?: Record<string, unknown>, options: ExecuteOptions = {}): Promise<unknown> {
    try {
      return await this.#monitor().executeAny(command, args, options)
    } catch (error) {
      throw monitorFault(error, this.pid)
    }
  }

  /** Events from now on, until `close`. `seen`: when one of a name last came, ms by QEMU's clock. */
  watch(names: readonly string[]): EventWatch {
    const last = new Map<string, number>()
    const waiting = new Set<(event: QmpEvent) => void>()
    const off = this.#monitor().subscribe((event) => {
      if (!names.includes(event.event)) return
      last.set(event.event, event.timestamp.seconds * 1000 + event.timestamp.microseconds / 1000)
      for (const look of [...waiting]) look(event)
    })
    return {
      seen: (name) => last.get(name),
      until: async (wanted, { timeout_ms, signal }) => {
        const { promise, resolve, reject } = Promise.withResolvers<QmpEvent>()
        const look = (event: QmpEvent) => wanted(event) && resolve(event)
        const stop = () => reject(signal?.reason)
        const timer = setTimeout(
          () => reject(fail('monitor_silent', `QEMU did not get on with it for ${Math.round(timeout_ms / 1000)} s.`)),
          timeout_ms,
        )
        waiting.add(look)
        signal?.addEventListener('abort', stop)
        void this.gone.then(() => reject(fail('wrong_state', 'The VM does not run any more.')))
        try {
          signal?.throwIfAborted()
          return await promise
        } finally {
          clearTimeout(timer)
          waiting.delete(look)
          signal?.removeEventListener('abort', stop)
        }
      },
      close: off,
    }
  }

  /** Every event from now on, until the returned function is called. @throws when the monitor is silent */
  subscribe(listener: (event: QmpEvent) => void): () => void {
    return this.#monitor().subscribe(listener)
  }

  /** Until the returned function is called, events of its state ask QEMU nothing: a guest stands still meanwhile. */
  hush(): () => Promise<void> {
    this.#hushed += 1
    let done = false
    return async () => {
      if (done) return
      done = true
      this.#hushed -= 1
      if (this.#hushed === 0 && !this.#isGone) await this.refresh()
    }
  }
  #hushed = 0

  /** While it stands still for a moment by our own doing, nobody is told: it will be what it was. */
  async quietly<T>(work: () => Promise<T>): Promise<T> {
    this.#quiet += 1
    try {
      return await work()
    } finally {
      this.#quiet -= 1
      if (this.#quiet === 0 && !this.#isGone) await this.refresh()
    }
  }
  #quiet = 0

  #monitor(): Qmp {
    if (this.#isGone) throw fail('wrong_state', 'The VM does not run any more.')
    if (!this.#qmp) {
      throw fail('monitor_silent', `QEMU (process ${this.pid}) lives, and its monitor does not answer.`, {
        remedy: 'wadah vm stop NAME ends it; its disks are kept',
      })
    }
    return this.#qmp
  }

  /** QEMU's own word for what it does: `running`, `paused`, `postmigrate`, … */
  async status(options: { timeout_ms?: number; signal?: AbortSignal } = {}): Promise<string> {
    return ((await this.execute('query-status', {}, options)) as { status: string }).status
  }

  /** Asks QEMU and tells what it said; the one way in which the state changes. */
  async refresh(): Promise<Observed> {
    if (this.#isGone) return this.last
    try {
      const { status } = await this.#monitor().execute('query-status', {}, { timeout_ms: 10_000 })
      const seen = stateOf(status, this.live.paused_by)
      // An event may come before whoever let it go on says so; or that daemon is dead.
      if (this.live.loading && seen.state === 'running') await this.noteLoaded()
      // It has read its saved RAM, perhaps all of it, and has not gone on from there.
      const waits = this.isBeginning && seen.paused_by === 'qemu'
      const { state, paused_by } = waits ? { state: 'incoming' as const } : seen
      if (state !== 'paused') this.#ioError = paused_by === 'io-error' ? this.#ioError : undefined
      return this.#tell({ state, ...(paused_by ? { paused_by } : {}), ...this.#reason(paused_by) })
    } catch (error) {
      if (this.#isGone) return this.last
      return this.#tell({
        state: 'unknown',
        reason: `QEMU (process ${this.pid}) lives, and its monitor does not answer: ${(error as Error).message}`,
      })
    }
  }

  /** Its swtpm has ended, and QEMU can't take another. */
  get tpmLost(): boolean {
    return this.#tpmLost
  }
  #tpmLost = false

  /** It may be no child of ours, whose end would be told by itself. */
  lookAtTpm(): void {
    if (this.#isGone || this.#tpmLost || !this.live.tpm || isAlive(this.live.tpm)) return
    this.#tpmLost = true
    this.#o.log(`${this.vm}: its TPM (swtpm, process ${this.live.tpm.pid}) has ended`)
    void this.refresh()
  }

  #reason(pausedBy: PausedBy | undefined): { reason?: string } {
    if (pausedBy !== 'io-error') return this.#tpmLost ? { reason: TPM_LOST } : {}
    const { device = 'a disk', full = false } = this.#ioError ?? {}
    return {
      reason: full
        ? `${device}: its pool is full. The VM goes on by itself once there is room.`
        : `${device}: a write failed. When the storage is well again: wadah vm resume`,
    }
  }

  #tell(o: Omit<Observed, 'vm' | 'at_ms'>): Observed {
    const { live } = this.#o
    const cpu_flags = hostFlagsOf(this.record)
    this.last = {
      vm: this.vm,
      pid: live.qemu.pid,
      started_ms: live.started_at_ms,
      epoch: live.epoch,
      accelerator: live.accelerator,
      qemu_version: live.qemu_version,
      machine: this.record.machine,
      ...(cpu_flags.length > 0 ? { cpu_flags } : {}),
      agent: this.#agent,
      ...o,
      at_ms: this.#o.now_ms(),
    }
    if (this.#quiet === 0) this.#o.observed(this.last)
    return this.last
  }

  #use(qmp: Qmp): void {
    this.#qmp = qmp
    qmp.subscribe((event) => {
      if (event.event === 'VSERPORT_CHANGE') {
        const data = event.data as { id: string; open: boolean }
        if (data.id === 'port-agent0') {
          this.#agentTold += 1
          this.#agent = data.open ? 'connected' : 'absent'
          if (!data.open) this.#o.agentLeft?.()
          this.#tell({ ...this.last, agent: this.#agent })
        }
      } else if (event.event === 'DEVICE_DELETED') {
        const { device } = event.data as { device?: string }
        if (device !== undefined) void this.#deviceGone(device)
      } else if (STATE_EVENTS.has(event.event)) {
        if (event.event === 'BLOCK_IO_ERROR') {
          const data = event.data as { device: string; 'node-name'?: string; nospace?: boolean; action: string }
          if (data.action === 'stop')
            this.#ioError = { device: data['node-name'] ?? data.device, full: data.nospace === true }
        }
        if (event.event === 'SHUTDOWN') {
          const data = event.data as { guest: boolean; reason: string }
          this.#endedByGuest = data.guest || data.reason === 'guest-shutdown'
          return
        }
        // Devices were reset too, the agent's port with them; QEMU's own event for that may come a second later.
        if (event.event === 'RESET') {
          this.#agentTold += 1
          this.#agent = 'absent'
          this.#o.agentLeft?.()
        }
        if (this.#hushed === 0) void this.refresh()
      }
    })
    void qmp.closed.then((reason) => {
      if (this.#qmp !== qmp) return
      this.#qmp = undefined
      void this.#reconnect(reason.detail)
    })
  }

  /** The monitor is closed: either QEMU is gone, or it lives and we come back to it. */
  async #reconnect(why: string): Promise<void> {
    for (let i = 0; !this.#isGone; i++) {
      if (await waitGone(this.live.qemu, i === 0 ? 500 : 0)) {
        const how = this.#o.exit && (await Promise.race([this.#o.exit, sleep(1_000)]))
        return this.#end(how ?? why)
      }
      try {
        const path = sockets(this.#o.directory.live).monitor
        const qmp = await connectQmp({ path, connect_timeout_ms: 500, greeting_timeout_ms: 5_000 })
        if (this.#isGone) return void qmp.close()
        this.#use(qmp)
        await this.refresh()
        return
      } catch {
        if (i === 0)
          this.#tell({
            state: 'unknown',
            reason: `QEMU (process ${this.pid}) lives, and its monitor does not answer: ${why}`,
          })
        await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS[Math.min(i, RECONNECT_MS.length - 1)]).unref())
      }
    }
  }

  #end(how: string): void {
    if (this.#isGone) return
    this.#isGone = true
    clearTimeout(this.#resumeTimer)
    void this.#qmp?.close()
    this.#qmp = undefined
    this.#goneNow({ reason: how })
  }

  /** Whether the guest itself asked for the end; undefined when nobody said. */
  get endedByGuest(): boolean | undefined {
    return this.#endedByGuest
  }

  /** Keeps the boot record true when a device came while the VM runs; `pool`: that a disk lies in. */
  async deviceCame(device: BootDevice, pool?: string): Promise<void> {
    this.record.devices.push(device)
    if (pool !== undefined && !this.live.pools.includes(pool)) this.live.pools.push(pool)
    await this.#o.directory.writeBoot(this.record)
    await this.#o.directory.writeLive(this.live)
  }

  /** Pools in which its disks lie. */
  async notePools(pools: string[]): Promise<void> {
    this.live.pools = pools
    await this.#o.directory.writeLive(this.live)
  }

  /** Taps that go when the VM does: noted before one is made, and until it is removed. */
  async noteTap(nic: string, is: boolean): Promise<void> {
    this.live.taps = [...this.live.taps.filter((t) => t !== nic), ...(is ? [nic] : [])]
    await this.#o.directory.writeLive(this.live)
  }

  /** A guest lets go of a device when it likes, also after nobody waits for it any more. */
  async #deviceGone(id: string): Promise<void> {
    const at = this.record.devices.findIndex((d) => d.id === id)
    const [device] = at < 0 ? [] : this.record.devices.splice(at, 1)
    if (device?.kind !== 'disk' && device?.kind !== 'nic') return
    try {
      await this.#o.directory.writeBoot(this.record)
      if (device.kind === 'disk') await closeNodes(this, device.name)
      else await this.execute('netdev_del', { id: netdevId(device.name) })
      await this.#o.released?.(device)
    } catch (error) {
      this.#o.log(`${this.vm}: ${device.name} was taken out: ${(error as Error).message}`)
    }
    this.#unplugged.get(id)?.()
  }
  readonly #unplugged = new Map<string, () => void>()

  /** Asks the guest to let go of a device; false when it did not within the time. */
  async unplug(id: string, timeout_ms: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>()
    this.#unplugged.set(id, () => resolve(true))
    const timer = setTimeout(() => resolve(false), timeout_ms)
    try {
      await this.execute('device_del', { id })
      return await Promise.race([promise, this.gone.then(() => true)])
    } finally {
      clearTimeout(timer)
      this.#unplugged.delete(id)
    }
  }

  /** First state after connecting: what QEMU says, and whether an agent is there. */
  async begin(): Promise<Observed> {
    const ports = (await unlessTold(
      () => this.#agentTold,
      () => this.execute('query-chardev').catch(() => []),
    )) as { label: string; 'frontend-open': boolean }[] | undefined
    const port = ports?.find((p) => p.label === 'chan-agent0')
    if (port) this.#agent = port['frontend-open'] ? 'connected' : 'absent'
    return this.refresh()
  }

  async noteLoaded(): Promise<void> {
    if (!this.live.loading) return
    delete this.live.loading
    await this.#o.directory.writeLive(this.live)
    this.#o.wentOn?.()
  }

  /** An instant clone has become itself, and may be on its network. */
  async noteItself(): Promise<void> {
    delete this.live.stranger
    await this.#o.directory.writeLive(this.live)
    await this.refresh()
  }

  async noteFrozen(thaw_at_ms: number | undefined): Promise<void> {
    if (thaw_at_ms === undefined) delete this.live.thaw_at_ms
    else this.live.thaw_at_ms = thaw_at_ms
    await this.#o.directory.writeLive(this.live)
  }

  async noteMoving(moving: LiveRecord['moving']): Promise<void> {
    if (moving) this.live.moving = moving
    else delete this.live.moving
    await this.#o.directory.writeLive(this.live)
  }

  /** One that was paused has come from another host, and is this host's. */
  async noteTaken(): Promise<void> {
    delete this.live.moving
    this.live.paused_by = 'user'
    this.live.inactive = true
    await this.#o.directory.writeLive(this.live)
  }

  async noteActive(): Promise<void> {
    if (!this.live.inactive) return
    delete this.live.inactive
    await this.#o.directory.writeLive(this.live)
  }

  async note(pausedBy: 'user' | 'job' | undefined): Promise<void> {
    if (pausedBy) this.live.paused_by = pausedBy
    else delete this.live.paused_by
    await this.#o.directory.writeLive(this.live)
  }

  async pause(by: 'user' | 'job'): Promise<void> {
    // Written down first: a daemon that dies in between must know whose pause it was.
    await this.note(by)
    await this.execute('stop')
    await this.refresh()
  }

  async resume(): Promise<void> {
    await this.execute('cont')
    delete this.live.inactive
    await this.note(undefined)
    await this.refresh()
  }

  /** Resolves when the guest was reset: QEMU answers before it does it, and what was asked of the guest meanwhile would be lost. */
  async reset(): Promise<void> {
    const done = this.#monitor().waitFor('RESET', undefined, { timeout_ms: RESET_TIMEOUT_MS })
    done.catch(() => {})
    await this.execute('system_reset')
    await done.catch((error: unknown) => {
      throw monitorFault(error, this.pid)
    })
    await this.refresh()
  }

  /** `quit`, then SIGKILL. Resolves when the process is gone. */
  async quit(): Promise<void> {
    try {
      await this.#monitor().execute('quit', {}, { timeout_ms: QUIT_TIMEOUT_MS })
    } catch (error) {
      if (!isQmpError(error, 'closed')) this.#o.log(`${this.vm}: quit was not answered; ending process ${this.pid}`)
    }
    // The end of a child of ours is told; that of an adopted one is looked for now and then.
    const told = this.gone.then(() => true)
    if (!(await Promise.race([told, waitGone(this.live.qemu, QUIT_TIMEOUT_MS)]))) {
      signalProcess(this.live.qemu, 'SIGKILL')
      if (!(await waitGone(this.live.qemu, 30_000))) {
        throw fail(
          'monitor_silent',
          `Process ${this.pid} does not end even by SIGKILL: it waits for storage that does not answer.`,
          {
            effect: 'unknown',
          },
        )
      }
    }
    this.#end('stopped')
    await this.gone
  }

  get isAlive(): boolean {
    return !this.#isGone && isAlive(this.live.qemu)
  }

  /** Lets go of the monitor without touching QEMU: the daemon ends. */
  async detach(): Promise<void> {
    const qmp = this.#qmp
    this.#qmp = undefined
    this.#isGone = true
    await qmp?.close()
  }
}
