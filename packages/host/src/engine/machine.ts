/** This machine's VMs: what `Machine` of @wadah/ports promises, over QEMU. */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import type { CheckItem } from '@wadah/api/schema/host'
import type { Service, VmSpec } from '@wadah/api/schema/vm'
import type { DevicesFound } from '@wadah/ports/devices'
import type { Images } from '@wadah/ports/images'
import type { Imports } from '@wadah/ports/imports'
import type {
  BootDevice,
  BootPlan,
  ConsoleStream,
  ConsoleTarget,
  Guest,
  HostFacts,
  HostOffers,
  LaunchRequest,
  Machine,
  Observed,
  PauseReason,
  Running,
} from '@wadah/ports/machine'
import type { NetworkAttachment, NetworkDefinition, Networks } from '@wadah/ports/networks'
import type { HostVolumes } from '../storage/volumes.ts'
import { inspect } from '../check/look.ts'
import { findDevices } from '../devices/found.ts'
import { give, nodesOf, resolveDevices, takeBack } from '../devices/give.ts'
import { argv, sockets } from './argv.ts'
import { Cgroups } from './cgroup.ts'
import { Channel } from './channel.ts'
import { baselineCpu } from './cpu.ts'
import { cloudSeedImage } from './cloud-init.ts'
import { SerialHubs, openVnc } from './console.ts'
import { type LiveRecord, VmDirectory } from './directory.ts'
import { setMedium } from './cdrom.ts'
import { Exclusive, Slots } from './exclusive.ts'
import { endFailed } from './failed-launch.ts'
import { cpuFacts, guestNeeds, qemuFacts } from './facts.ts'
import { copyFirmwareState, firmwareFiles, firmwareOf } from './firmware.ts'
import { readOwnState, writeOwnState } from './own-state.ts'
import { VmGuest } from './guest.ts'
import { hostFacts, hostOffers } from './host-facts.ts'
import { checkService } from './health.ts'
import { dropTap, nicsOf, plugNics } from './hot-nic.ts'
import { notLetGo, plugDisk } from './hotplug.ts'
import { spawnQemu } from './launch.ts'
import { cgroupLimits } from './limits.ts'
import { tailLog, trimLog } from './log-file.ts'
import { growMemory, memoryMib } from './memory.ts'
import { bootPlan, localDisk, seedText } from './plan.ts'
import { headOf } from './snapshot/layers.ts'
import { loaded, restorePlan } from './snapshot/restore.ts'
import { HostSnapshots, activate } from './snapshot/snapshots.ts'
import { HostDiskMoves } from './disk-moves.ts'
import { HostMigration } from './migration/migration.ts'
import { clonePlan, templatePlan } from './warm/plan.ts'
import { HostWarm } from './warm/templates.ts'
import { type Acceleration, accelerator } from './probe/accelerator.ts'
import { isReplaced, processAt, processes, qemuOf, signalProcess, startOf, waitGone } from './process.ts'
import { RoomWatch } from './room-watch.ts'
import { RunningVm, type RunningOptions } from './running-vm.ts'
import { screenshot } from './screenshot.ts'
import { cryptSalt } from './sha512-crypt.ts'
import { loadMeter } from './load.ts'
import { setThrottle, throttle } from './throttle.ts'
import { endTpmOf, needTpm, startTpm } from './tpm.ts'
import { connectQmp } from '@wadah/qmp/client'

export type MachineOptions = {
  dataDir: string
  /** Parent control group, e.g. `wadah` or `wadah-demo`. */
  cgroup: string
  qemu: string
  volumes: HostVolumes
  networks: Networks
  images: Images
  imports: Imports
  log: (line: string) => void
  now_ms: () => number
  /** How many QEMUs start at the same time; more only slow each other down. */
  startsAtOnce?: number
  /** The uid the accelerator probe runs as when the daemon is root. */
  probeUid: number
}

const LOG_CHECK_MS = 5_000
/** A guest that is busy may need a while to let go of a disk. */
const UNPLUG_MS = 20_000
/** A monitor closes a moment before its process is seen to be gone. */
const ENDS_MS = 1_000
const CLOCK_MS = 60_000
const EMPTY_LIMITS = { pools: [] as string[] }

type Prepared = { request: LaunchRequest; taps: string[] }

export class HostMachine implements Machine {
  readonly volumes: HostVolumes
  readonly snapshots: HostSnapshots
  readonly migration: HostMigration
  readonly diskMoves: HostDiskMoves
  readonly warm: HostWarm
  readonly load: ReturnType<typeof loadMeter>
  readonly networks: Networks
  readonly images: Images
  readonly imports: Imports
  readonly #o: MachineOptions
  readonly #cgroups: Cgroups
  readonly #root: boolean
  readonly #running = new Map<string, RunningVm>()
  readonly #prepared = new Map<string, Prepared>()
  readonly #guests = new Map<string, VmGuest>()
  readonly #serial = new Map<string, SerialHubs>()
  readonly #last = new Map<string, Observed>()
  readonly #news = new Channel<Observed>()
  readonly #one = new Exclusive()
  readonly #slots: Slots
  readonly #acceleration: Promise<Acceleration>
  readonly #timers: NodeJS.Timeout[] = []
  readonly #room: RoomWatch
  #closed = false

  private constructor(options: MachineOptions, cgroups: Cgroups) {
    this.#o = options
    this.#cgroups = cgroups
    this.#root = process.getuid?.() === 0
    this.volumes = options.volumes
    this.networks = options.networks
    this.images = options.images
    this.imports = options.imports
    const running = async (vm: string) => this.running(vm) ?? (await this.attach(vm))
    this.snapshots = new HostSnapshots({ ...options, running, guest: (vm) => this.#guest(vm), root: this.#root })
    this.#room = new RoomWatch(() => this.#running.values(), options.log)
    this.diskMoves = new HostDiskMoves({ ...options, running })
    this.warm = new HostWarm({ dataDir: options.dataDir, root: this.#root, machine: this, running })
    const here = () => guestNeeds(options.qemu)
    this.migration = new HostMigration({ ...options, root: this.#root, machine: this, running, here })
    this.load = loadMeter(cgroups)
    this.#slots = new Slots(options.startsAtOnce ?? 3)
    this.#acceleration = this.#probe()
    this.#acceleration.catch(() => {})
    this.#timers.push(setInterval(() => void this.#trimLogs(), LOG_CHECK_MS).unref())
  }

  static async open(options: MachineOptions): Promise<HostMachine> {
    await mkdir(`${options.dataDir}/vms`, { recursive: true, mode: 0o711 })
    const cgroups =
      process.getuid?.() === 0
        ? await Cgroups.open(options.cgroup)
        : new Cgroups({ version: 'none', reason: 'wadahd does not run as root' }, options.cgroup)
    return new HostMachine(options, cgroups)
  }

  async #probe(): Promise<Acceleration> {
    const { flags } = await cpuFacts()
    return accelerator(
      this.#o.qemu,
      flags,
      this.#root ? { uid: this.#o.probeUid } : null,
      `${this.#o.dataDir}/accelerator.json`,
    )
  }

  /** Lets go of everything without touching what runs. */
  async close(): Promise<void> {
    this.#closed = true
    for (const timer of this.#timers) clearInterval(timer)
    this.#room.close()
    await Promise.all([...this.#guests.values()].map((guest) => guest.thawBeforeEnd()))
    for (const guest of this.#guests.values()) guest.close()
    for (const hubs of this.#serial.values()) hubs.close()
    await this.warm.close()
    await Promise.all([...this.#running.values()].map((vm) => vm.detach()))
  }

  async facts(): Promise<HostFacts> {
    return hostFacts({
      share: await this.#cgroups.share(),
      qemu: this.#o.qemu,
      root: this.#root,
      layout: this.#cgroups.layout,
      networks: this.networks,
      acceleration: this.#acceleration,
      tpmLost: [...this.#running.values()].filter((vm) => vm.tpmLost).map((vm) => vm.record.name),
    })
  }

  offers(): Promise<HostOffers> {
    return hostOffers(this.#o.qemu, this.#acceleration)
  }

  inspect(): Promise<CheckItem[]> {
    return inspect({
      root: this.#root,
      dataDir: this.#o.dataDir,
      qemu: this.#o.qemu,
      layout: this.#cgroups.layout,
      networks: this.networks,
      acceleration: this.#acceleration,
    })
  }

  devices(): Promise<DevicesFound> {
    return findDevices()
  }

  async outdated(): Promise<{ vm: string; running: string; installed: string }[]> {
    const { version, path } = await qemuFacts(this.#o.qemu)
    const found = await Promise.all(
      [...this.#running.values()].map(async (vm) => {
        if (vm.isGone) return undefined
        const running = vm.live.qemu_version
        const replaced = running === version && (await isReplaced(vm.pid, path))
        if (running === version && !replaced) return undefined
        return { vm: vm.vm, running: replaced ? `${running} (before the upgrade)` : running, installed: version }
      }),
    )
    return found.filter((o) => o !== undefined)
  }

  /** random(4): a new one at every boot. */
  async bootId(): Promise<string> {
    return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  }

  async known(): Promise<string[]> {
    return VmDirectory.list(this.#o.dataDir)
  }

  async lastEpoch(vm: string): Promise<number | undefined> {
    return (await new VmDirectory(this.#o.dataDir, vm).readLive())?.epoch
  }

  running(vm: string): RunningVm | undefined {
    const running = this.#running.get(vm)
    return running && !running.isGone ? running : undefined
  }

  #need(vm: string): RunningVm {
    const running = this.running(vm)
    if (!running) throw fail('wrong_state', 'The VM does not run.', { remedy: 'wadah vm start NAME' })
    return running
  }

  async observe(vm: string): Promise<Observed> {
    const running = this.running(vm) ?? (await this.attach(vm))
    if (running) return (running as RunningVm).refresh()
    const last = this.#last.get(vm)
    return last && (last.state === 'stopped' || last.state === 'absent')
      ? last
      : { vm, state: 'stopped', at_ms: this.#o.now_ms() }
  }

  observations(signal: AbortSignal): AsyncIterable<Observed> {
    return this.#news.read(signal)
  }

  #observed(o: Observed): void {
    this.#last.set(o.vm, o)
    this.#news.push(o)
    if (this.running(o.vm)?.waitsForRoom) this.#room.begin()
  }

  async plan(request: LaunchRequest): Promise<BootPlan> {
    // A daemon that died in the middle of this start may have left a QEMU. One that never ran the guest lacks limits, perhaps
    // more: it goes, and all is made anew.
    const there = this.running(request.vm) ?? (await this.attach(request.vm))
    if (there && (there.last.state === 'prepared' || there.isBeginning)) await this.stop(request.vm)
    const [qemu, cpu, acceleration] = await Promise.all([qemuFacts(this.#o.qemu), cpuFacts(), this.#acceleration])
    const files = request.kernel ? await this.images.files(request.kernel.image) : undefined
    if (request.kernel && !files?.kernel) {
      throw fail('wrong_state', 'The kernel image has no kernel yet.', { remedy: 'wadah image add NAME --kernel FILE' })
    }
    const uid = this.#root ? request.spec.uid : null
    const directory = new VmDirectory(this.#o.dataDir, request.vm)
    const firmware = await firmwareFiles(firmwareOf(request.spec.firmware), directory, uid)
    const tpm = request.spec.tpm ? needTpm(directory) : undefined
    const wanted = request.spec.hostdevs ?? []
    const devices = wanted.length === 0 ? {} : resolveDevices(wanted, await findDevices(), this.#root)
    const cdroms: Record<string, string> = {}
    for (const { name, image } of request.cdroms ?? []) {
      if (image !== undefined) cdroms[name] = await this.#iso(image)
    }
    const taps = new Map<string, string>()
    for (const { name, network, attachment } of request.nics) {
      if (network.kind === 'user') continue
      taps.set(name, (await this.networks.attach(network, attachment, AbortSignal.timeout(30_000))).ifname)
    }
    this.#prepared.set(request.vm, { request, taps: [...taps.keys()] })
    const plan = bootPlan(request, {
      machine: qemu.machine,
      accelerator: acceleration.accelerator,
      cpu: baselineCpu(acceleration.accelerator, cpu.flags),
      qemu: qemu.path,
      directory: directory.live,
      cdroms,
      firmware,
      tpm,
      devices,
      cgroup: this.#cgroups.layout.version === 'none' ? null : this.#o.cgroup,
      diskPath: (pool, volume) => this.volumes.path(pool, volume),
      tapName: (_vm, nic) => taps.get(nic) ?? '',
      kernel: files?.kernel ? { kernel: files.kernel, ...(files.initrd ? { initrd: files.initrd } : {}) } : undefined,
    })
    if (request.template !== undefined) return templatePlan(plan, request.template)
    if (request.instant)
      return clonePlan(plan, request.instant, this.warm.stateFile(request.instant.image), {
        qemu_version: qemu.version,
      })
    if (!request.restore) return plan
    const { pool, volume, ...saved } = request.restore
    return restorePlan(plan, saved, this.volumes.path(pool, volume), { qemu_version: qemu.version })
  }

  async prepare(plan: BootPlan, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { vm } = plan.record
    // Never under a QEMU that runs: its sockets lie in the folder that is made empty here.
    if (this.running(vm) ?? (await this.attach(vm))) return
    const prepared = this.#prepared.get(vm)
    if (!prepared) throw fail('internal', `prepare without plan for ${vm}`)
    const directory = new VmDirectory(this.#o.dataDir, vm)
    const uid = this.#root ? plan.local.uid : null
    await Promise.all([
      directory
        .make(uid)
        .then(() =>
          Promise.all([
            directory.writeSeed(seedText(prepared.request.seed), uid),
            prepared.request.cloud_seed
              ? directory.writeCloudSeed(cloudSeedImage(prepared.request.cloud_seed, cryptSalt(randomBytes(16))), uid)
              : undefined,
            directory.writeBoot(plan.record),
          ]),
        ),
      this.#cgroups.make(vm, cgroupLimits(plan.record, prepared.request.spec)),
    ])
    const nodes = nodesOf(plan.local.devices)
    if (nodes.length === 0) return
    await directory.writeGiven({ schema: 1, uid: plan.local.uid, nodes })
    await give(nodes, plan.local.uid)
  }

  launch(plan: BootPlan, how: 'fresh' | 'paused', signal: AbortSignal): Promise<Running> {
    const { vm } = plan.record
    return this.#one.run(vm, () =>
      this.#slots.run(signal, async () => {
        const there = this.running(vm) ?? (await this.#attach(vm))
        if (there) {
          if (how === 'fresh' && there.last.state === 'prepared') await there.resume()
          return there
        }
        return this.#launch(plan, how, signal)
      }),
    )
  }

  async #launch(plan: BootPlan, how: 'fresh' | 'paused', signal: AbortSignal): Promise<RunningVm> {
    const { vm } = plan.record
    const prepared = this.#prepared.get(vm)
    const directory = new VmDirectory(this.#o.dataDir, vm)
    const [qemu, acceleration] = await Promise.all([qemuFacts(this.#o.qemu), this.#acceleration])
    this.#observed({ vm, state: 'starting', epoch: plan.local.epoch, at_ms: this.#o.now_ms() })
    const uid = this.#root ? plan.local.uid : null
    const enter = (pid: number) => this.#cgroups.enter(vm, pid)
    try {
      const programs = plan.local.tpm
      const tpm =
        programs &&
        (await startTpm({ programs, directory, uid, enter, arriving: plan.local.arriving !== undefined, signal }))
      const {
        qemu: id,
        qmp,
        exit,
      } = await spawnQemu({
        plan,
        logs: { serial: directory.serialLog, qemu: directory.qemuLog },
        uid,
        groups: acceleration.groups,
        onSpawn: enter,
        signal,
        memory: await this.warm.memory(plan),
      })
      const live: LiveRecord = {
        schema: 1,
        vm,
        epoch: plan.local.epoch,
        uid: plan.local.uid,
        qemu: id,
        ...(tpm ? { tpm } : {}),
        accelerator: plan.record.accelerator,
        qemu_version: qemu.version,
        taps: prepared?.taps ?? [],
        pools: [...new Set(prepared?.request.disks.map((d) => d.pool.path) ?? EMPTY_LIMITS.pools)],
        started_at_ms: this.#o.now_ms(),
        ...(plan.local.arriving ? { moving: { ...plan.local.arriving, role: 'arriving' } } : {}),
        ...(plan.local.incoming === undefined ? {} : plan.local.warm ? { stranger: true } : { loading: true }),
      }
      const running = this.#adopt({ directory, boot: plan.record, live, qmp, exit })
      await Promise.all([directory.writeLive(live), directory.dropSeed()])
      if (plan.local.incoming !== undefined && !plan.local.warm) await loaded(running, signal)
      await throttle(running, plan.local.disks)
      // A balloon comes as it is, with the guest.
      if (prepared?.request.spec.balloon_mib && !plan.local.arriving)
        await this.#balloon(running, prepared.request.spec.balloon_mib)
      if (plan.local.warm) await this.warm.begin(running, plan, signal)
      else if (how === 'fresh') await running.execute('cont')
      // A clone is not itself before its network is up: `warm.connect`.
      await running.noteLoaded()
      await running.refresh()
      if (running.isGone) throw fail('qemu_failed', `QEMU ended right after its start: ${(await running.gone).reason}.`)
      return running
    } catch (error) {
      const told = await endFailed(this.running(vm), error)
      if (told.state === 'stopped') await endTpmOf(directory)
      this.#observed({ vm, ...told, at_ms: this.#o.now_ms() })
      throw error
    }
  }

  async #released(vm: string, device: BootDevice): Promise<void> {
    const running = this.running(vm)
    if (device.kind === 'nic' && running) await dropTap(running, device.name, this.networks)
  }

  /** Beside everything else: a guest without an agent sets its clock by NTP, or not at all. */
  #setClock(vm: string): void {
    void this.#guest(vm)
      .setTime(AbortSignal.timeout(CLOCK_MS))
      .catch((error: unknown) =>
        this.#o.log(`${vm}: its clock was not set after the revert: ${(error as Error).message}`),
      )
  }

  #adopt(of: Pick<RunningOptions, 'directory' | 'boot' | 'live' | 'qmp' | 'exit'>): RunningVm {
    const { vm } = of.live
    const running = new RunningVm({
      ...of,
      now_ms: this.#o.now_ms,
      observed: (o) => this.#observed(o),
      released: (device) => this.#released(vm, device),
      wentOn: () => this.#setClock(vm),
      agentLeft: () => this.#guests.get(vm)?.left(),
      log: this.#o.log,
    })
    this.#running.set(running.vm, running)
    void running.gone.then(async ({ reason }) => {
      if (this.#closed || this.#running.get(running.vm) !== running) return
      this.#running.delete(running.vm)
      this.#guests.get(running.vm)?.close()
      this.#guests.delete(running.vm)
      this.#serial.get(running.vm)?.close()
      this.#serial.delete(running.vm)
      const byGuest = running.endedByGuest
      // What the start made goes before the end is told: "stopped" means that nothing is left.
      await this.#tidy(running.vm, running.live.taps).catch((error: unknown) =>
        this.#o.log(`${running.vm}: ${String(error)}`),
      )
      this.#observed({
        vm: running.vm,
        state: 'stopped',
        epoch: running.live.epoch,
        ...(byGuest === undefined
          ? { reason: `QEMU ended by itself (${reason})` }
          : byGuest
            ? { by_guest: true, reason: 'the guest switched itself off' }
            : {}),
        at_ms: this.#o.now_ms(),
      })
    })
    return running
  }

  async #balloon(running: RunningVm, mib: number): Promise<void> {
    await running.execute('balloon', { value: mib * 1024 * 1024 })
  }

  attach(vm: string): Promise<RunningVm | undefined> {
    return this.#one.run(vm, () => this.#attach(vm))
  }

  async #attach(vm: string): Promise<RunningVm | undefined> {
    const there = this.running(vm)
    if (there) return there
    const directory = new VmDirectory(this.#o.dataDir, vm)
    const [live, boot] = await Promise.all([directory.readLive(), directory.readBoot()])
    if (!boot || !existsSync(directory.live)) return undefined
    const found = await this.#find(directory, live)
    if (!found) return undefined
    if ('orphan' in found) {
      // Started by a daemon that died before it could write down what it had begun: it never ran a guest instruction.
      signalProcess(found.orphan, 'SIGKILL')
      await waitGone(found.orphan, 10_000)
      return undefined
    }
    const path = sockets(directory.live).monitor
    const qmp = await connectQmp({ path, connect_timeout_ms: 2_000, greeting_timeout_ms: 3_000 }).catch(() => undefined)
    const running = this.#adopt({ directory, boot, live: found.live, qmp })
    await (qmp ? running.begin() : running.refresh())
    if (running.isGone) return undefined
    if (found.live.thaw_at_ms !== undefined) this.#guest(vm).thawAt(found.live.thaw_at_ms)
    return running
  }

  async #find(directory: VmDirectory, live: LiveRecord | undefined) {
    const pidfile = `${directory.live}/qemu.pid`
    if (live) {
      const qemu = await processAt(live.qemu.pid)
      // Also right after the spawn, while it still is setpriv: argv has the pid file in both. A guest that broke out of QEMU may
      // change its argv, and not its user, which no other VM has.
      const its = qemu && (qemu.argv.includes(pidfile) || (this.#root && live.uid !== 0 && qemu.uid === live.uid))
      if (its && qemu.start === live.qemu.start) return { live }
    }
    const list = await processes((argv) => argv.includes(pidfile))
    const uid = live?.uid ?? process.getuid?.() ?? 0
    const stray = list.find((p) => p.argv.some((arg, i) => arg === pidfile && p.argv[i - 1] === '-pidfile'))
    const orphan = stray ?? qemuOf(list, directory.live, uid)
    return orphan ? { orphan: { pid: orphan.pid, start: orphan.start } } : undefined
  }

  async stop(vm: string): Promise<void> {
    const running = this.running(vm) ?? (await this.attach(vm))
    if (!running) return await this.#endGroup(vm)
    const stopped = this.waitStopped(vm, 40_000, AbortSignal.timeout(40_000))
    await running.quit()
    await stopped
  }

  /** A QEMU that nobody knows any more is still in its VM's group. */
  async #endGroup(vm: string): Promise<void> {
    const pids = await this.#cgroups.pids(vm)
    if (pids.length === 0) return
    for (const pid of pids) {
      const start = startOf(pid)
      if (start === undefined) continue
      signalProcess({ pid, start }, 'SIGKILL')
      if (!(await waitGone({ pid, start }, 30_000)))
        throw fail('monitor_silent', `Process ${pid} of this VM does not end even by SIGKILL.`, { effect: 'unknown' })
    }
    await this.clean(vm)
    this.#observed({ vm, state: 'stopped', at_ms: this.#o.now_ms() })
  }

  async waitStopped(vm: string, timeout_ms: number, signal: AbortSignal): Promise<Observed | undefined> {
    const running = this.running(vm)
    const limit = AbortSignal.any([signal, AbortSignal.timeout(Math.ceil(timeout_ms))])
    const aborted = new Promise<undefined>((resolve) =>
      limit.addEventListener('abort', () => resolve(undefined), { once: true }),
    )
    if (running && (await Promise.race([running.gone, aborted])) === undefined) {
      signal.throwIfAborted()
      return undefined
    }
    // The tidying up after it comes before the observation.
    while (this.#last.get(vm)?.state !== 'stopped' && this.#last.has(vm)) {
      if (limit.aborted) return undefined
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    return this.#last.get(vm) ?? { vm, state: 'stopped', at_ms: this.#o.now_ms() }
  }

  async powerDown(vm: string): Promise<void> {
    await this.#need(vm).execute('system_powerdown')
  }
  async agentPowerDown(vm: string, signal: AbortSignal): Promise<void> {
    await this.#guest(vm).powerDown(signal)
  }
  async reset(vm: string): Promise<void> {
    await this.#need(vm).reset()
  }
  async pause(vm: string, by: PauseReason): Promise<void> {
    await this.#need(vm).pause(by)
  }
  async resume(vm: string): Promise<void> {
    await this.#need(vm).resume()
  }

  async clean(vm: string): Promise<void> {
    const running = this.running(vm) ?? (await this.attach(vm))
    if (running) await this.stop(vm)
    const live = await new VmDirectory(this.#o.dataDir, vm).readLive()
    // Those of a start that a dead daemon could not write down are known by their alias alone.
    const known = this.#prepared.get(vm)?.taps ?? live?.taps
    const taps = known ?? (await this.networks.taps()).flatMap((tap) => (tap.vm === vm ? [tap.nic] : []))
    await this.#tidy(vm, taps)
  }

  async forget(vm: string): Promise<void> {
    await this.clean(vm)
    await new VmDirectory(this.#o.dataDir, vm).removeAll()
    this.#last.delete(vm)
  }

  /** Taps, group and folder of a VM whose QEMU is gone. */
  async #tidy(vm: string, taps: string[]): Promise<void> {
    const directory = new VmDirectory(this.#o.dataDir, vm)
    this.#prepared.delete(vm)
    await endTpmOf(directory)
    // First, and by itself: while anything runs in it, nothing that it needs is taken away.
    await this.#cgroups.remove(vm)
    const given = await directory.readGiven()
    if (given) await takeBack(given).then(() => directory.dropGiven())
    await Promise.all([
      ...taps.map((nic) => this.networks.detach(vm, nic)),
      directory.dropLive(),
      directory.dropLiveRecord(),
    ])
  }

  async #iso(image: string): Promise<string> {
    const { iso } = await this.images.files(image)
    if (iso === undefined) {
      throw fail('wrong_state', 'The file of this CD is not uploaded yet.', {
        remedy: 'wadah image add NAME --iso FILE',
      })
    }
    return iso
  }

  async setMedium(vm: string, cdrom: string, image: string | undefined, force: boolean, signal: AbortSignal) {
    const file = image === undefined ? undefined : await this.#iso(image)
    await this.#one.run(vm, () => setMedium(this.#need(vm), cdrom, file, force, signal))
  }

  async plugDisks(request: LaunchRequest): Promise<string[]> {
    const running = this.#need(request.vm)
    const has = () => running.record.devices.flatMap((d) => (d.kind === 'disk' ? [d.name] : []))
    await this.#one.run(request.vm, async () => {
      for (const disk of request.disks) {
        const spec = request.spec.disks.find((d) => d.name === disk.name)
        if (has().includes(disk.name) || !spec) continue
        const local = localDisk(disk, spec.limits, (pool, volume) => this.volumes.path(pool, volume))
        const device = await plugDisk(running, spec, local)
        if (!device) return
        await running.deviceCame(device, disk.pool.path)
        await throttle(running, { [disk.name]: local })
      }
    })
    return has()
  }

  async unplugDisk(vm: string, disk: string): Promise<void> {
    const running = this.#need(vm)
    const id = `disk-${disk}`
    if (!running.record.devices.some((d) => d.id === id)) return
    await this.#one.run(vm, async () => {
      if (!(await running.unplug(id, UNPLUG_MS))) throw notLetGo('disk', disk)
    })
  }

  async plugNics(request: LaunchRequest): Promise<string[]> {
    const running = this.#need(request.vm)
    // What could not come now comes at the next start; those that came are told all the same.
    await this.#one
      .run(request.vm, () => plugNics(running, request, this.networks))
      .catch((error: unknown) => this.#o.log(`${request.vm}: a NIC was not added: ${(error as Error).message}`))
    return nicsOf(running)
  }

  async unplugNic(vm: string, nic: string): Promise<void> {
    const running = this.#need(vm)
    if (!nicsOf(running).includes(nic)) return
    await this.#one.run(vm, async () => {
      if (!(await running.unplug(`nic-${nic}`, UNPLUG_MS))) throw notLetGo('NIC', nic)
    })
  }

  async growMemory({ vm, spec }: LaunchRequest): Promise<number> {
    const running = this.#need(vm)
    const ceiling = (mib: number) => this.#cgroups.limit(vm, cgroupLimits(running.record, spec, mib))
    // A balloon says how much of the RAM the guest has: more RAM would only make it take more away.
    if (spec.balloon_mib === null) await this.#one.run(vm, () => growMemory(running, spec.memory_mib, ceiling))
    return memoryMib(running.record)
  }

  async growDisk(vm: string, disk: string, to_bytes: number, signal: AbortSignal): Promise<void> {
    const running = this.#need(vm)
    await activate(running)
    await running.execute('block_resize', { 'node-name': await headOf(running, disk), size: to_bytes }, { signal })
  }

  async copyState(from: string, to: string, uid: number): Promise<void> {
    const [source, target] = [from, to].map((vm) => new VmDirectory(this.#o.dataDir, vm)) as [VmDirectory, VmDirectory]
    await copyFirmwareState(source, target, this.#root ? uid : null)
  }

  readState(vm: string): Promise<Record<string, string>> {
    return readOwnState(new VmDirectory(this.#o.dataDir, vm))
  }

  async writeState(vm: string, state: Record<string, string>, uid: number): Promise<void> {
    await writeOwnState(new VmDirectory(this.#o.dataDir, vm), state, this.#root ? uid : null)
  }

  async applyLimits(vm: string, spec: VmSpec): Promise<void> {
    const running = this.#need(vm)
    try {
      await this.#applyLimits(running, spec)
    } catch (error) {
      // Of a VM that ends meanwhile there is nothing left to limit: group and taps go with it.
      const ended = running.gone.then(() => true)
      if (!(await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, ENDS_MS, false))]))) throw error
    }
  }

  async #applyLimits(running: RunningVm, spec: VmSpec): Promise<void> {
    const { vm } = running
    const { record } = running
    await this.#cgroups.limit(vm, cgroupLimits(record, spec))
    const has = new Set(record.devices.filter((d) => d.kind === 'disk').map((d) => d.name))
    for (const disk of spec.disks) {
      if (!has.has(disk.name)) continue
      await setThrottle(running, disk.name, {
        ...(disk.limits.iops ? { iops: disk.limits.iops } : {}),
        ...(disk.limits.bytes_per_s ? { bytes_per_s: disk.limits.bytes_per_s } : {}),
      })
    }
    for (const nic of spec.nics) {
      if (!running.live.taps.includes(nic.name)) continue
      await this.networks.limit(vm, nic.name, {
        ...(nic.limits.in_bytes_per_s ? { in_bytes_per_s: nic.limits.in_bytes_per_s } : {}),
        ...(nic.limits.out_bytes_per_s ? { out_bytes_per_s: nic.limits.out_bytes_per_s } : {}),
      })
    }
    await this.#balloon(running, spec.balloon_mib ?? memoryMib(record))
  }

  guest(vm: string): Guest {
    return this.#guest(vm)
  }
  #guest(vm: string): VmGuest {
    const running = this.#need(vm)
    let guest = this.#guests.get(vm)
    if (!guest) {
      const directory = new VmDirectory(this.#o.dataDir, vm)
      guest = new VmGuest({
        path: sockets(directory.live).agent,
        gone: running.gone,
        log: (line) => this.#o.log(`${vm}: ${line}`),
        now_ms: this.#o.now_ms,
        frozenUntil: (at_ms) => running.noteFrozen(at_ms),
      })
      this.#guests.set(vm, guest)
    }
    return guest
  }

  async console(vm: string, { kind, port = 0 }: ConsoleTarget): Promise<ConsoleStream> {
    this.#need(vm)
    const { live } = new VmDirectory(this.#o.dataDir, vm)
    if (kind === 'vnc') return openVnc(sockets(live).vnc)
    let hubs = this.#serial.get(vm)
    if (!hubs) this.#serial.set(vm, (hubs = new SerialHubs(live)))
    return hubs.open(port)
  }

  screenshot(vm: string, signal: AbortSignal): Promise<Uint8Array> {
    return screenshot(this.#need(vm), new VmDirectory(this.#o.dataDir, vm).live, signal)
  }

  serialLog(vm: string, bytes: number): Promise<{ text: string; size_bytes: number }> {
    return tailLog(new VmDirectory(this.#o.dataDir, vm).serialLog, bytes)
  }

  async check(vm: string, service: Service, target: { address?: string; port?: number }, signal: AbortSignal) {
    this.#need(vm)
    if (!target.address) {
      return { ok: false, detail: 'the VM has no address that this host can reach', took_ms: 0 }
    }
    return checkService(service, { address: target.address, port: target.port ?? service.port }, signal)
  }

  async #trimLogs(): Promise<void> {
    for (const [vm, running] of this.#running) {
      running.lookAtTpm()
      const directory = new VmDirectory(this.#o.dataDir, vm)
      const logs = [directory.serialLog, directory.qemuLog, ...(running.live.tpm ? [directory.tpmLog] : [])]
      await Promise.all(logs.map((log) => trimLog(log))).catch(() => {})
    }
  }

  /** For tests and for taking everything away. */
  get cgroups(): Cgroups {
    return this.#cgroups
  }
  /** The command line a plan comes to, for `vm show --argv` and tests. */
  commandLine(plan: BootPlan): string[] {
    return [plan.local.qemu, ...argv(plan)]
  }
}

export type { NetworkAttachment, NetworkDefinition }
