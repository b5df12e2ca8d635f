/** Moves from and to this machine. What it promises is written in packages/ports/src/migration.ts and docs/migration.md. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { WadahError, fail, toFault } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { BootPlan, BootRecord, LaunchRequest } from '@wadah/ports/machine'
import type {
  ArrivalRequest,
  ArrivingVm,
  LeavingVm,
  Migration,
  MoveFacts,
  PostcopySupport,
  QemuAnswer,
} from '@wadah/ports/migration'
import { exactCpu, notGiven } from '../cpu.ts'
import { VmDirectory } from '../directory.ts'
import { readFirmwareState, writeFirmwareState } from '../firmware.ts'
import { lastWords } from '../launch.ts'
import type { RunningVm } from '../running-vm.ts'
import { Arriving, type ArrivingOptions, listening } from './arriving.ts'
import { type MoveIdentity, moveIdentity } from './certificates.ts'
import { Leaving } from './leaving.ts'
import { exportDisks, mirrorFacts } from './mirror.ts'
import { activate } from '../snapshot/snapshots.ts'
import { type Info, ask } from './outgoing.ts'
import { arrivingPlan, type Here, immovable, judgeGiven } from './plan.ts'
import { setCapabilities, setTls, tcpUri } from './setup.ts'
import { settled } from './settled.ts'
import { ramOf } from './used.ts'
import { postcopySupport } from './userfault.ts'
import { Wall } from './wall.ts'

export type MigrationOptions = {
  dataDir: string
  root: boolean
  /** One that runs here, adopted if need be. */
  running: (vm: string) => Promise<RunningVm | undefined>
  /** What of this host decides about a VM that comes. */
  here: () => Promise<Here>
  machine: {
    plan(request: LaunchRequest): Promise<BootPlan>
    prepare(plan: BootPlan, signal: AbortSignal): Promise<void>
    launch(plan: BootPlan, how: 'paused', signal: AbortSignal): Promise<unknown>
    stop(vm: string): Promise<void>
    clean(vm: string): Promise<void>
  }
  now_ms: () => number
  log: (line: string) => void
}

const DIRTY_SAMPLE_S = 1
const DIRTY_MS = 10_000

export class HostMigration implements Migration {
  readonly #o: MigrationOptions
  readonly #wall = new Wall()

  constructor(options: MigrationOptions) {
    this.#o = options
  }

  readonly wall_ms = (): number => this.#wall.now()

  postcopy(): Promise<PostcopySupport> {
    return postcopySupport()
  }

  async #identity(job: string, end: 'source' | 'target'): Promise<MoveIdentity> {
    if (!isId(job)) throw fail('internal', `not an id: ${job}`)
    // The random part makes a name that no other try of the same job has.
    return moveIdentity(`${end}-${randomBytes(4).toString('hex')}.${job}.move`, end, this.#o.now_ms())
  }

  #directory(vm: string): VmDirectory {
    return new VmDirectory(this.#o.dataDir, vm)
  }

  async leave(
    vm: string,
    o: { job: string; tls: boolean; mirrors?: readonly string[]; layered?: Record<string, string> },
    signal: AbortSignal,
  ): Promise<LeavingVm> {
    signal.throwIfAborted()
    const { job, tls, mirrors = [], layered = {} } = o
    const running = await this.#o.running(vm)
    if (!running)
      throw fail('wrong_state', 'The VM does not run: a stopped one is moved as it is.', {
        remedy: 'wadah vm start NAME',
      })
    const why = immovable(running.record)
    if (why !== undefined)
      throw fail('wrong_state', `It can't be moved while it runs: ${why}.`, {
        remedy: 'wadah vm shutdown NAME, then move it',
      })
    await settled(running.live, signal)
    const paused = await pausedByUser(running)
    this.#wall.retune()
    const identity = tls ? await this.#identity(job, 'source') : undefined
    const [missing, disks, state] = await Promise.all([
      notGiven(running),
      mirrorFacts(running, mirrors, layered),
      running.record.firmware.kind === 'bios' ? undefined : readFirmwareState(this.#directory(vm)),
    ])
    const boot = structuredClone(running.record)
    return this.#leaving(running, job, identity, {
      boot: { ...boot, cpu: exactCpu(boot.cpu, missing) },
      cpu_exact: true,
      mirrors: disks,
      ...(state ? { state } : {}),
      ...(paused ? { paused } : {}),
    })
  }

  #leaving(
    running: RunningVm,
    job: string,
    identity: MoveIdentity | undefined,
    more: Pick<MoveFacts, 'mirrors' | 'state' | 'paused' | 'cpu_exact'> & { boot?: BootRecord },
  ): Leaving {
    const { vm } = running
    const facts: MoveFacts = {
      vm,
      boot: structuredClone(running.record),
      qemu_version: running.live.qemu_version,
      ram_bytes: running.record.memory.mib * 2 ** 20,
      ...(identity ? { tls: { ca: identity.ca, name: identity.name } } : {}),
      ...more,
    }
    return new Leaving({
      running,
      directory: this.#directory(vm),
      job,
      facts,
      ...(identity ? { identity } : {}),
      identify: () => this.#identity(job, 'source'),
      root: this.#o.root,
      wall_ms: () => this.#wall.now(),
      stop: () => this.#o.machine.stop(vm),
      log: this.#o.log,
    })
  }

  async arrive(request: ArrivalRequest, signal: AbortSignal): Promise<ArrivingVm> {
    const { job, facts, listen, tls } = request
    const { vm } = request.request
    const { machine } = this.#o
    const there = await this.#o.running(vm)
    if (there && there.live.moving?.role !== 'arriving')
      throw fail('in_use', 'This VM runs here already.', { remedy: 'wadah vm show NAME', effect: 'none' })
    if (tls && !facts.tls) throw fail('invalid', 'The source does not speak TLS, which this host asks for.')
    checkMirrors(request)
    this.#wall.retune()
    const directory = this.#directory(vm)
    try {
      // What an earlier try left, or an earlier life of this VM here, is not what it has now.
      await machine.clean(vm)
      await directory.dropState()
      await writeFirmwareState(directory, facts.state, this.#o.root ? request.request.spec.uid : null)
      const here = await this.#o.here()
      const plan = arrivingPlan(await machine.plan(request.request), facts, here, job)
      const identity = tls ? this.#identity(job, 'target') : undefined
      identity?.catch(() => {})
      await machine.prepare(plan, signal)
      await machine.launch(plan, 'paused', signal)
      const running = await this.#o.running(vm)
      if (!running) throw fail('qemu_failed', 'QEMU ended before it could wait for the guest.')
      const missing = await notGiven(running)
      if (missing.length > 0) this.#o.log(`${vm}: QEMU can't give its guest ${missing.join(', ')} here`)
      judgeGiven(request.request.name, missing, facts)
      const arriving = await this.#listen(running, request, await identity, here.qemu_version, signal).catch(
        async (error: unknown) => {
          if (!running.isGone) throw error
          throw await lastWords(this.#directory(vm).qemuLog, 'QEMU, which was to wait for the guest, ended', error)
        },
      )
      signal.throwIfAborted()
      this.#o.log(`${vm}: waits for ${job} on ${listen}:${arriving.accepted.address.port}`)
      return arriving
    } catch (error) {
      await this.#undo(vm).catch((e: unknown) =>
        this.#o.log(`${vm}: taking back what was made for ${job}: ${(e as Error).message}`),
      )
      if (signal.aborted) throw fail('cancelled', 'The move was given up while its target was prepared.')
      throw error
    }
  }

  async #listen(
    running: RunningVm,
    { job, mode, may_postcopy, or_precopy, listen, facts, mirrors = {} }: ArrivalRequest,
    identity: MoveIdentity | undefined,
    qemu_version: string,
    signal: AbortSignal,
  ): Promise<Arriving> {
    const asked = mode === 'postcopy' || mode === 'hybrid'
    const may = mode === 'auto' && may_postcopy
    const support = may && or_precopy ? await this.postcopy() : ({ ok: true } as const)
    const postcopy = asked || (may && support.ok)
    // The target first: where it can't, the source would begin all the same, and the target die.
    await setCapabilities(running, { postcopy, preempt: false, pause: facts.mirrors.length > 0 }).catch(
      async (error: unknown) => {
        const lacks = postcopy ? await this.postcopy() : ({ ok: true } as const)
        if (lacks.ok) throw error
        throw fail('host_lacks', `This host can't be the target of post-copy: ${lacks.reason}.`, {
          remedy: lacks.remedy,
          cause: error,
        })
      },
    )
    if (identity && facts.tls)
      await setTls(running, this.#directory(running.vm), 'server', identity, facts.tls, this.#uid(running))
    const disks = Object.keys(mirrors)
    const exports =
      disks.length === 0 ? undefined : await exportDisks(running, disks, listen, identity !== undefined, signal)
    const arriving = new Arriving({
      ...this.#arriving(running, job),
      accepted: {
        qemu_version,
        address: { host: listen, port: 0 },
        ...(identity ? { tls: { ca: identity.ca, name: identity.name } } : {}),
        ...(exports ? { exports } : {}),
        ...(support.ok ? {} : { no_postcopy: { reason: support.reason, remedy: support.remedy } }),
      },
    })
    await running.execute('migrate-incoming', { uri: tcpUri({ host: listen, port: 0 }) }, { signal })
    arriving.accepted.address = await listening(running, listen, signal)
    return arriving
  }

  #arriving(running: RunningVm, job: string): Omit<ArrivingOptions, 'accepted'> {
    const { vm } = running
    return {
      running,
      job,
      directory: this.#directory(vm),
      uid: this.#uid(running),
      identify: () => this.#identity(job, 'target'),
      undo: () => this.#undo(vm),
      log: this.#o.log,
    }
  }

  /** Its log stays, to be read. */
  async #undo(vm: string): Promise<void> {
    await this.#o.machine.clean(vm)
    await this.#directory(vm).dropState()
  }

  #uid(running: RunningVm): number | null {
    return this.#o.root ? running.live.uid : null
  }

  async rejoinLeaving(vm: string, job: string): Promise<LeavingVm | undefined> {
    const running = await this.#o.running(vm)
    return running?.live.moving?.job === job && running.live.moving.role === 'leaving'
      ? this.#leaving(running, job, undefined, { mirrors: [], ...(running.live.moving.paused ? { paused: true } : {}) })
      : undefined
  }

  async rejoinArriving(vm: string, job: string): Promise<ArrivingVm | undefined> {
    const running = await this.#o.running(vm)
    if (running?.live.moving?.job !== job || running.live.moving.role !== 'arriving') return undefined
    const { qemu_version } = running.live
    const arriving = new Arriving({
      ...this.#arriving(running, job),
      accepted: { qemu_version, address: { host: '', port: 0 } },
    })
    try {
      await arriving.look()
    } catch (error) {
      await arriving.letGo()
      throw error
    }
    return arriving
  }

  async found(): Promise<{ vm: string; job?: string }[]> {
    const vms = await VmDirectory.list(this.#o.dataDir)
    return Promise.all(
      vms.map(async (vm) => {
        const moving = (
          await this.#directory(vm)
            .readLive()
            .catch(() => undefined)
        )?.moving
        return { vm, ...(moving?.role === 'arriving' ? { job: moving.job } : {}) }
      }),
    )
  }

  async ask(vm: string): Promise<QemuAnswer> {
    try {
      const running = await this.#o.running(vm)
      if (!running) return { is: 'gone' }
      const [status, info] = await Promise.all([running.status({ timeout_ms: 10_000 }), ask(running)])
      const { moving, epoch } = running.live
      const migration = (info as Info).status ?? 'none'
      return { is: 'there', status, migration, epoch, ...(moving ? { job: moving.job } : {}) }
    } catch (error) {
      if (error instanceof WadahError && error.fault.code === 'wrong_state') return { is: 'gone' }
      return { is: 'unknown', why: toFault(error).detail }
    }
  }

  async usedRam(vm: string): Promise<number | undefined> {
    const running = await this.#o.running(vm)
    return running && (await ramOf(running.pid))
  }

  async dirtyRate(vm: string, signal: AbortSignal): Promise<number | undefined> {
    const running = await this.#o.running(vm)
    if (!running || running.live.moving || running.last.state !== 'running') return undefined
    await running.execute('calc-dirty-rate', { 'calc-time': DIRTY_SAMPLE_S }, { signal })
    for (const end = performance.now() + DIRTY_MS; performance.now() < end; ) {
      await sleep(DIRTY_SAMPLE_S * 1000 + 50, undefined, { signal })
      const found = (await running.execute('query-dirty-rate')) as { status: string; 'dirty-rate'?: number }
      // MiB per second.
      if (found.status === 'measured') return (found['dirty-rate'] ?? 0) * 2 ** 20
    }
    return undefined
  }
}

/** Paused by its user: it goes as it is. @throws WadahError `wrong_state` for one that stands for another reason */
async function pausedByUser(running: RunningVm): Promise<true | undefined> {
  const status = await running.status()
  if (status === 'running') return undefined
  if (status === 'paused' && running.live.paused_by === 'user') {
    await activate(running)
    return true
  }
  throw fail(
    'wrong_state',
    `Its guest stands still (${status}): only one that runs, or that was paused, can be moved.`,
    {
      remedy: 'wadah vm resume NAME; a stopped VM is moved as it is',
    },
  )
}

/** The disks that this host has made room for are those the source will copy, as large. @throws WadahError `wrong_state` */
function checkMirrors({ facts, mirrors = {} }: ArrivalRequest): void {
  const there = facts.mirrors.map((d) => `${d.name} (${d.size_bytes})`).sort()
  const here = Object.entries(mirrors).map(([name, { volume }]) => `${name} (${volume.size_bytes})`)
  if (there.join() !== here.sort().join())
    throw fail(
      'wrong_state',
      `Its local disks are ${there.join(', ') || 'none'}, and room was made for ${here.join(', ') || 'none'}.`,
      { remedy: 'move it again' },
    )
}
