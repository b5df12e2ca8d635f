/** What the API can do with VMs. Refusals come before anything is written; long work is a job. */
import { protectedFault } from '@wadah/api/can'
import { WadahError, fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { Exec, ExecResult, GuestInfo } from '@wadah/api/schema/guest'
import type { VmFirewall } from '@wadah/api/schema/firewall'
import type { Job } from '@wadah/api/schema/job'
import { parseSelector, selects } from '@wadah/api/selector'
import type { DiskInput, DiskLimits, Vm, VmAction, VmCreate, VmEdit, VmState } from '@wadah/api/schema/vm'
import type { ConsoleStream, ConsoleTarget, Observed } from '@wadah/ports/machine'
import { type Rec, type Write, absent, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, page, caughtUp } from '../context.ts'
import { viewFirewall } from '../networks/firewall-rules.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind } from '../jobs/record.ts'
import type { Pending } from '../pending.ts'
import {
  type VmRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  networkKind,
  placementKind,
  poolKind,
  secretKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { chainOf, launchRequest } from '../resolve.ts'
import type { Caller, IfGeneration, ListQuery, PageOf, VmService } from '../services.ts'
import { makeVolumeJob } from '../storage/jobs.ts'
import { submit } from '../submit.ts'
import { freeMac } from './allocate.ts'
import type { MovePlan, VmMigrate } from '@wadah/api/schema/migration'
import { planMove } from './move-plan.ts'
import { askToMove } from './move-request.ts'
import { newUid } from './uids.ts'
import { allow, jobOn, vmTarget } from './allow.ts'
import {
  type CreatePlan,
  type DiskPlan,
  admitVolumes,
  assemble,
  checkName,
  chooseAddress,
  planCreate,
  planDisks,
  readerOf,
  volumeName,
} from './create.ts'
import { type EditPlan, planEdit } from './edit.ts'
import { isoImage } from './drives.ts'
import { createVm, deleteVm, grantTo, shutdownVm, startVm, stopVm } from './jobs.ts'
import { dropAdded } from './sweep.ts'
import { whereItServes } from './inside.ts'
import { bootedNics, diskKey, viewVm } from './view.ts'

const TRIES = 6
const RECORD_TIMEOUT_MS = 5_000
const DISK_TIMEOUT_MS = 120_000

/** A disk to be added, with the volume as it was planned. */
type NewDisk = { name: string; volume: VolumeRecord; limits: DiskLimits }

export class Vms implements VmService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #pending: Pending

  constructor(deps: Deps, engine: JobEngine<Deps>, pending: Pending) {
    this.#deps = deps
    this.#engine = engine
    this.#pending = pending
  }

  list(
    caller: Caller,
    q: ListQuery & {
      name?: string
      state?: VmState
      image?: string
      network?: string
      label?: string
      selector?: string
    },
  ): PageOf<Vm> {
    const { view } = this.#deps
    const image =
      q.image === undefined ? undefined : find(this.#deps, 'image', imageKind, caller.project, q.image, '/image').id
    const network =
      q.network === undefined
        ? undefined
        : find(this.#deps, 'network', networkKind, caller.project, q.network, '/network').id
    const [label, labelValue] = q.label === undefined ? [] : split(q.label)
    const terms = q.selector === undefined ? [] : parseSelector(q.selector)
    const matching = view.list(vmKind).filter(({ id, value: vm }) => {
      if (vm.project !== caller.project) return false
      if (!selects(terms, vm.labels)) return false
      if (q.name !== undefined && !vm.name.includes(q.name)) return false
      if (image !== undefined && vm.spec.image !== image) return false
      if (network !== undefined && !vm.spec.nics.some((n) => n.network === network)) return false
      if (
        label !== undefined &&
        (vm.labels[label] === undefined || (labelValue !== undefined && vm.labels[label] !== labelValue))
      )
        return false
      return q.state === undefined || (view.get(statusKind, id)?.value.state ?? 'unknown') === q.state
    })
    const { items, next } = page(matching, (rec) => rec.id, q)
    return { items: items.map((rec) => this.#listed(rec)), ...(next === undefined ? {} : { next }) }
  }

  /** For lists: made anew only when one of its records is another. A list of a thousand is asked for often and changes little. */
  readonly #shown = new WeakMap<Rec<VmRecord>, { status: unknown; placement: unknown; vm: Vm }>()

  #listed(vm: Rec<VmRecord>): Vm {
    const { view } = this.#deps
    const [status, placement] = [view.get(statusKind, vm.id), view.get(placementKind, vm.id)]
    const known = this.#shown.get(vm)
    if (known && known.status === status && known.placement === placement) return known.vm
    const made = viewVm({ vm, placement: placement?.value, status: status?.value })
    this.#shown.set(vm, { status, placement, vm: made })
    return made
  }

  #view(vm: Rec<VmRecord>, caller: Caller): Vm {
    const { view } = this.#deps
    return viewVm(
      { vm, placement: view.get(placementKind, vm.id)?.value, status: view.get(statusKind, vm.id)?.value },
      { scope: caller.subject.scope, job: jobOn(this.#deps, vm.id) },
    )
  }

  #find(caller: Caller, ref: string): Rec<VmRecord> {
    return find(this.#deps, 'vm', vmKind, caller.project, ref)
  }

  #allow(caller: Caller, vm: Rec<VmRecord>, action: VmAction): void {
    allow(this.#deps, caller, vm, action)
  }

  get(caller: Caller, ref: string): Vm {
    return this.#view(this.#find(caller, ref), caller)
  }

  async create(caller: Caller, body: VmCreate): Promise<Job> {
    return this.#again(async () => {
      const plan = await this.#pending.alone(() =>
        planCreate(this.#deps, this.#pending, caller.project, caller.subject, body),
      )
      return submit(this.#deps, this.#engine, caller, createVm, plan.params, vmTarget(plan.record), plan)
    })
  }

  /** A lost race for a uid, a MAC or an address that we chose ourselves: choose again. */
  async #again<T>(work: () => Promise<T>): Promise<T> {
    for (let i = 1; ; i++) {
      try {
        return await work()
      } catch (error) {
        if (i >= TRIES || !(error instanceof WadahError) || !lostRace(error)) throw error
        await new Promise((resolve) => setTimeout(resolve, 5 * i))
      }
    }
  }

  async start(caller: Caller, ref: string): Promise<Job> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'start')
    this.#refuseWhileCopied(vm)
    return this.#lifecycle(caller, vm, startVm, { vm: vm.id, name: vm.value.name }, 'running')
  }

  /** By its policy: only as long as nobody has changed what is wanted of it. */
  async startAgain(caller: Caller, ref: string): Promise<Job> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'start')
    this.#refuseWhileCopied(vm)
    if (vm.value.wanted !== 'running') throw fail('wrong_state', `"${vm.value.name}" is not wanted to run any more.`)
    const params = { vm: vm.id, name: vm.value.name }
    return submit(this.#deps, this.#engine, caller, startVm, params, vmTarget(vm.value), { checks: [unchanged(vm)] })
  }

  /** Whoever copies a disk reads it for a while after the job was asked for. */
  #refuseWhileCopied(vm: Rec<VmRecord>): void {
    for (const { name, volume } of vm.value.spec.disks) {
      const reader = readerOf(this.#deps, volume)
      if (reader !== undefined)
        throw fail('busy', `The disk "${name}" of "${vm.value.name}" is being copied.`, {
          remedy: `wadah job wait ${reader}`,
        })
    }
  }

  async stop(caller: Caller, ref: string): Promise<Job> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'stop')
    return this.#lifecycle(caller, vm, stopVm, { vm: vm.id, name: vm.value.name }, 'stopped')
  }

  async shutdown(caller: Caller, ref: string, body: { timeout_s?: number; force?: boolean }): Promise<Job> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'shutdown')
    const params = { vm: vm.id, name: vm.value.name, timeout_s: body.timeout_s ?? 120, force: body.force ?? false }
    return this.#lifecycle(caller, vm, shutdownVm, params, 'stopped')
  }

  async migrate(caller: Caller, ref: string, body: VmMigrate): Promise<Job> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'migrate')
    return askToMove(this.#deps, this.#engine, caller, vm, body)
  }

  /** Whoever may look may ask; whether it may be done by others is what the answer says. */
  async planMove(caller: Caller, ref: string, body: VmMigrate, signal: AbortSignal): Promise<MovePlan> {
    const vm = this.#find(caller, ref)
    const full: Caller = { ...caller, subject: { ...caller.subject, scope: 'full' } }
    return planMove(this.#deps, vm, body, () => this.#allow(full, vm, 'migrate'), signal)
  }

  /** For the host's own end: in order, then by the plug; what is wanted stays. */
  async shutdownWithHost(caller: Caller, ref: string, timeout_s: number): Promise<Job> {
    const vm = this.#find(caller, ref)
    const status = this.#deps.view.get(statusKind, vm.id)?.value
    // A guest that stands still does not hear the button.
    if (status?.state === 'paused' && status.paused_by === 'user') await this.#deps.machine.resume(vm.id)
    else if (status?.state !== 'running') return this.stopWithHost(caller, vm.id)
    const params = { vm: vm.id, name: vm.value.name, timeout_s, force: true, keep_wanted: true }
    return submit(this.#deps, this.#engine, caller, shutdownVm, params, vmTarget(vm.value))
  }
  async stopWithHost(caller: Caller, ref: string): Promise<Job> {
    const vm = this.#find(caller, ref)
    return submit(this.#deps, this.#engine, caller, stopVm, { vm: vm.id, name: vm.value.name }, vmTarget(vm.value))
  }

  /** What is wanted changes in the same commit that makes the job. */
  #lifecycle<P>(
    caller: Caller,
    vm: Rec<VmRecord>,
    definition: Parameters<typeof submit<P>>[3],
    params: P,
    wanted: VmRecord['wanted'],
  ): Promise<Job> {
    return this.#again(() => {
      const now = this.#find(caller, vm.id)
      const change =
        now.value.wanted === wanted
          ? {}
          : { checks: [unchanged(now)], writes: [put(vmKind, now.id, { ...now.value, wanted } satisfies VmRecord)] }
      return submit(this.#deps, this.#engine, caller, definition, params, vmTarget(now.value), change)
    })
  }

  async delete(
    caller: Caller,
    ref: string,
    options: { force?: boolean; keep_disks?: boolean },
    generation: IfGeneration,
  ): Promise<Job> {
    return this.#again(() => this.#delete(caller, ref, options, generation))
  }

  async #delete(
    caller: Caller,
    ref: string,
    options: { force?: boolean; keep_disks?: boolean },
    generation: IfGeneration,
  ): Promise<Job> {
    const vm = this.#find(caller, ref)
    checkGeneration(vm, generation)
    // Also when it runs and is to be ended first.
    if (vm.value.protected && caller.subject.scope === 'full') throw new WadahError(protectedFault(vm.value.name))
    const force = options.force ?? false
    const state = this.#deps.view.get(statusKind, vm.id)?.value.state
    if (!force || state === 'absent' || state === 'stopped') this.#allow(caller, vm, 'delete')
    else this.#allow(caller, vm, 'stop')
    const volumes = this.#deps.view.list(volumeKind)
    const own = new Set(volumes.filter((v) => v.value.vm === vm.id).map((v) => v.id))
    const users = volumes.filter((v) => v.value.base !== undefined && own.has(v.value.base) && !own.has(v.id))
    if (options.keep_disks && volumes.some((v) => v.value.vm === vm.id && v.value.role))
      throw fail('in_use', `"${vm.value.name}" has snapshots, on whose layers its disks stand.`, {
        field: '/keep_disks',
        remedy: `wadah snapshot list ${vm.value.name}; delete them, or let its disks go with it`,
      })
    if (users.length > 0) {
      throw fail('in_use', `The volume "${users[0]?.value.name}" stands on a disk of "${vm.value.name}".`, {
        remedy: `wadah volume delete ${users[0]?.value.name}`,
      })
    }
    this.#refuseWhileCopied(vm)
    const params = { vm: vm.id, name: vm.value.name, force, keep_disks: options.keep_disks ?? false }
    // Unchanged: nobody has protected it, or given it a disk, since it was looked at.
    return submit(this.#deps, this.#engine, caller, deleteVm, params, vmTarget(vm.value), { checks: [unchanged(vm)] })
  }

  async clone(caller: Caller, ref: string, body: { name: string; start?: boolean }): Promise<Job> {
    const source = this.#find(caller, ref)
    this.#allow(caller, source, 'clone')
    return this.#again(async () => {
      const plan = await this.#pending.alone(() => this.#planClone(caller, source, body))
      // The job holds the source too: nobody may start it while its disks are read.
      const checks = [...plan.checks, unchanged(source)]
      return submit(
        this.#deps,
        this.#engine,
        caller,
        createVm,
        { ...plan.params, source: source.id },
        vmTarget(plan.record),
        { ...plan, checks },
      )
    })
  }

  async #planClone(
    caller: Caller,
    source: Rec<VmRecord>,
    body: { name: string; start?: boolean },
  ): Promise<CreatePlan> {
    const deps = this.#deps
    const { project } = caller
    checkName(deps, 'vm', project, body.name)
    const id = newId('vm', deps.randomBytes)
    const now = new Date(deps.clock.now_ms()).toISOString()
    const disks: DiskPlan[] = source.value.spec.disks.map((disk) => {
      const [top, below] = chainOf(deps, disk.volume) as [VolumeRecord, VolumeRecord | undefined]
      const { base, ...flat } = top
      const bare = base === undefined || below?.role === 'layer' ? flat : top
      const volume = newId('volume', deps.randomBytes)
      return {
        name: disk.name,
        limits: disk.limits,
        // Its own layer is copied; the image below is shared. Layers of snapshots are not: they are merged one day.
        from: { volume: top.id, how: bare === flat ? 'full' : 'delta' },
        volume: {
          ...bare,
          id: volume,
          name: volumeName(deps, this.#pending, project, body.name, disk.name, volume),
          created_at: now,
          vm: id,
          making: true,
        },
      }
    })
    await admitVolumes(
      deps,
      this.#pending,
      disks.map((d) => d.volume),
      '/name',
    )
    const used = (key: string) => deps.view.get(indexKind, key) !== undefined || this.#pending.has(key)
    // A device of the host is in one VM only.
    const { hostdevs: _h, ...spec } = source.value.spec
    const uid = newUid(deps, this.#pending)
    const nics: typeof spec.nics = []
    for (const nic of spec.nics) {
      const network = find(deps, 'network', networkKind, project, nic.network).value
      const address = chooseAddress(
        network,
        undefined,
        '/name',
        (a) => used(indexKeys.address(network.id, a)) || nics.some((n) => n.address === a),
      )
      const { address: _, ...rest } = nic
      // Ports of the host stay with the first VM.
      nics.push({
        ...rest,
        mac: freeMac((m) => used(indexKeys.mac(m)), deps.randomBytes),
        ...(address === undefined ? {} : { address }),
        publish: [],
      })
    }
    // A clone is a VM of its own: it does not start with the host, is not protected, and belongs to no set of `wadah apply`.
    const { protected: _p, autostart: _a, at_snapshot: _s, snapshot_schedule: _t, ...copied } = source.value
    const record: VmRecord = {
      ...copied,
      labels: Object.fromEntries(Object.entries(copied.labels).filter(([key]) => !key.startsWith('wadah.'))),
      id,
      name: body.name,
      created_at: now,
      wanted: body.start ? 'running' : 'stopped',
      spec: {
        ...spec,
        uid,
        nics,
        disks: disks.map((d) => ({ name: d.name, volume: d.volume.id, limits: d.limits })),
        seed: { ...spec.seed, hostname: body.name },
      },
    }
    const secrets = deps.view.get(secretKind, source.id)?.value
    return assemble(deps, this.#pending, record, disks, secrets, body.start ?? false, false)
  }

  async edit(caller: Caller, ref: string, body: VmEdit, generation: IfGeneration): Promise<Vm> {
    const deps = this.#deps
    const before = this.#find(caller, ref)
    checkGeneration(before, generation)
    this.#allow(caller, before, 'edit')
    const isLive = () => {
      const state = deps.view.get(statusKind, before.id)?.value.state
      return (state !== 'stopped' && state !== 'absent') || deps.machine.running(before.id) !== undefined
    }
    const plugs = body.add_disks ?? body.remove_disks ?? body.add_nics ?? body.remove_nics
    // Everything else is judged before a disk is made.
    if (plugs) await planEdit(deps, this.#pending, before, body, isLive(), [])
    // The guest first: a disk or NIC it does not let go of stays its own, in the record too.
    let added: NewDisk[] = []
    try {
      for (const disk of body.remove_disks ?? [])
        if (deps.machine.running(before.id)) await deps.machine.unplugDisk(before.id, disk)
      for (const nic of body.remove_nics ?? [])
        if (deps.machine.running(before.id)) await deps.machine.unplugNic(before.id, nic)
      if (body.add_disks) added = await this.#newDisks(caller, before.value, body.add_disks)
    } catch (error) {
      await this.#plugBack(before.id, body)
      throw error
    }
    let plan: EditPlan
    try {
      plan = await this.#pending.alone(async () => {
        const now = await planEdit(deps, this.#pending, this.#find(caller, before.id), body, isLive(), added)
        // A job that begins at the same moment, a start above all, goes by the spec it found.
        const checks = [...now.checks, absent(claimKind, `vm/${before.id}`)]
        await commit(deps, checks, now.writes, indexConflict)
        return now
      })
    } catch (error) {
      await this.#dropDisks(caller, added)
      await this.#plugBack(before.id, body)
      throw error
    }
    if (plan.nats) await deps.syncNetworks()
    // Only now: until the commit it could have become somebody else's.
    for (const { volume } of added) if (!volume.making) await grantTo(deps, plan.record, volume.id)
    if (deps.machine.running(before.id)) {
      if (plugs ?? body.memory_mib !== undefined) await this.#plug(plan.record)
      await deps.machine.applyLimits(before.id, plan.record.spec)
    }
    return this.get(caller, before.id)
  }

  /** What was taken out for an edit that came to nothing is put in again. */
  async #plugBack(id: string, body: VmEdit): Promise<void> {
    const vm = this.#deps.view.get(vmKind, id)?.value
    if ((body.remove_disks ?? body.remove_nics) === undefined || !vm || !this.#deps.machine.running(id)) return
    await this.#plug(vm).catch((error: unknown) => this.#deps.log(`${vm.name}: ${(error as Error).message}`))
  }

  /** New disks and NICs, and more RAM, go into the running VM; what can't be put into it now comes at the next start, and is said to. */
  async #plug(vm: VmRecord): Promise<void> {
    const deps = this.#deps
    const request = launchRequest(deps, vm)
    const failed = (error: unknown) => {
      deps.log(`devices of ${vm.name}: ${(error as Error).message}`)
      return undefined
    }
    const disks = await deps.machine.plugDisks(request).catch(failed)
    const nics = await deps.machine.plugNics(request).catch(failed)
    const memory = await deps.machine.growMemory(request).catch(failed)
    await this.#again(async () => {
      const status = deps.view.get(statusKind, vm.id)
      if (!status?.value.booted) return
      const booted = { ...status.value.booted }
      if (disks) booted.disks = vm.spec.disks.filter((d) => disks.includes(d.name)).map(diskKey)
      if (memory !== undefined) booted.memory_mib = memory
      if (nics) booted.nics = bootedNics(vm.spec, nics, booted.nics)
      await commit(deps, [unchanged(status)], [put(statusKind, vm.id, { ...status.value, booted })])
    })
  }

  /**
   * Makes the volumes of new disks, one job each, marked as `added_to` the VM until its spec names them. All or none; what a crash
   * leaves is swept at the next start (sweep.ts).
   */
  async #newDisks(caller: Caller, vm: VmRecord, inputs: DiskInput[]): Promise<NewDisk[]> {
    const deps = this.#deps
    const now = new Date(deps.clock.now_ms()).toISOString()
    const { plans, release } = await this.#pending.alone(async () => {
      const of = { vm: vm.id, name: vm.name, now }
      const plans = await planDisks(
        deps,
        this.#pending,
        caller.project,
        of,
        { disks: inputs },
        undefined,
        vm.spec.disks,
        '/add_disks',
      )
      const promised = plans.flatMap(({ volume: v }) =>
        v.making ? [[`promised/${v.pool}`, v.size_bytes] as const] : [],
      )
      return { plans, release: this.#pending.take([], promised) }
    })
    const made: NewDisk[] = []
    try {
      for (const plan of plans) {
        await this.#makeDisk(caller, vm, plan.volume)
        made.push(plan)
      }
    } catch (error) {
      await this.#dropDisks(caller, made)
      throw error
    } finally {
      release()
    }
    return made
  }

  /** What an edit that came to nothing has made goes again. */
  async #dropDisks(caller: Caller, made: readonly NewDisk[]): Promise<void> {
    const { idempotency: _, ...plain } = caller
    for (const { volume } of made) if (volume.making) await dropAdded(this.#deps, this.#engine, plain, volume.id)
    await caughtUp(this.#deps)
  }

  async #makeDisk(caller: Caller, vm: VmRecord, planned: VolumeRecord): Promise<void> {
    const deps = this.#deps
    if (!planned.making) return
    const { vm: _vm, ...free } = planned
    const volume: VolumeRecord = { ...free, added_to: vm.id }
    const key = indexKeys.name('volume', caller.project, volume.name)
    const writes: Write[] = [put(volumeKind, volume.id, volume), put(indexKind, key, { schema: 1, holder: volume.id })]
    const pool = deps.view.get(poolKind, volume.pool)
    const { idempotency: _, ...plain } = caller
    const job = await submit(
      deps,
      this.#engine,
      plain,
      makeVolumeJob,
      { volume: volume.id, name: volume.name, uid: vm.spec.uid },
      { kind: 'volume', id: volume.id, name: volume.name },
      { checks: [absent(indexKind, key), ...(pool ? [unchanged(pool)] : [])], writes },
    )
    const ended = await this.#engine.wait(job.id, { timeout_ms: DISK_TIMEOUT_MS })
    if (ended.state !== 'done')
      throw new WadahError(ended.fault ?? fail('timeout', 'The disk was not made in time.').fault)
    await caughtUp(deps)
  }

  async reset(caller: Caller, ref: string): Promise<Vm> {
    return this.#direct(caller, ref, 'reset', undefined, (id) => this.#deps.machine.reset(id))
  }
  async pause(caller: Caller, ref: string): Promise<Vm> {
    return this.#direct(caller, ref, 'pause', 'paused', (id) => this.#deps.machine.pause(id, 'user'))
  }
  async resume(caller: Caller, ref: string): Promise<Vm> {
    return this.#direct(caller, ref, 'resume', 'running', (id) => this.#deps.machine.resume(id))
  }

  async #direct(
    caller: Caller,
    ref: string,
    action: VmAction,
    wanted: VmRecord['wanted'] | undefined,
    work: (id: string) => Promise<void>,
  ): Promise<Vm> {
    const deps = this.#deps
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, action)
    await work(vm.id)
    // It is done: whoever writes the record at the same moment must not make it look as if it were not.
    await this.#again(async () => {
      const now = deps.view.get(vmKind, vm.id)
      if (wanted === undefined || !now || now.value.wanted === wanted) return
      await commit(deps, [unchanged(now)], [put(vmKind, now.id, { ...now.value, wanted } satisfies VmRecord)])
    })
    await this.#recorded(await deps.machine.observe(vm.id))
    return this.get(caller, vm.id)
  }

  /** Until the record says what was reached: whoever asks next is judged by it. */
  async #recorded({ vm, state, agent }: Observed): Promise<void> {
    const { view } = this.#deps
    const there = () => {
      const now = view.get(statusKind, vm)?.value
      return now?.state === state && (agent === undefined || now.agent === agent)
    }
    if (there()) return
    await new Promise<void>((resolve) => {
      const end = () => {
        off()
        clearTimeout(timer)
        resolve()
      }
      const timer = setTimeout(end, RECORD_TIMEOUT_MS)
      const off = view.subscribe(() => {
        if (there()) end()
      })
    })
  }

  async exec(caller: Caller, ref: string, body: Exec, signal: AbortSignal): Promise<ExecResult> {
    const vm = this.#agent(caller, ref)
    return this.#deps.machine.guest(vm).exec(
      {
        argv: body.argv,
        timeout_ms: body.timeout_ms ?? 60_000,
        ...(body.stdin === undefined ? {} : { stdin: Buffer.from(body.stdin, 'base64') }),
        ...(body.env === undefined ? {} : { env: body.env }),
      },
      signal,
    )
  }
  readFile(caller: Caller, ref: string, path: string, signal: AbortSignal): AsyncIterable<Uint8Array> {
    return this.#deps.machine.guest(this.#agent(caller, ref)).readFile(path, signal)
  }
  writeFile(
    caller: Caller,
    ref: string,
    path: string,
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void> {
    return this.#deps.machine.guest(this.#agent(caller, ref)).writeFile(path, data, signal)
  }
  guest(caller: Caller, ref: string, signal: AbortSignal): Promise<GuestInfo> {
    const vm = this.#find(caller, ref)
    return this.#deps.machine.guest(vm.id).info(signal)
  }
  async freeze(caller: Caller, ref: string, timeout_s: number, signal: AbortSignal): Promise<{ file_systems: number }> {
    return { file_systems: await this.#deps.machine.guest(this.#agent(caller, ref)).freeze(timeout_s, signal) }
  }
  async thaw(caller: Caller, ref: string, signal: AbortSignal): Promise<{ file_systems: number }> {
    return { file_systems: await this.#deps.machine.guest(this.#agent(caller, ref)).thaw(signal) }
  }
  #agent(caller: Caller, ref: string): string {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'exec')
    return vm.id
  }

  checkConsole(caller: Caller, ref: string, { kind, port = 0 }: ConsoleTarget): string {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'console')
    const ports = this.#deps.view.get(statusKind, vm.id)?.value.booted?.serial_ports ?? 1
    if (kind === 'serial' && port >= ports) {
      throw fail(
        'not_found',
        `"${vm.value.name}" runs with ${ports} serial port${ports === 1 ? '' : 's'}, counted from 0.`,
        {
          field: '/port',
          remedy: `wadah vm edit ${vm.value.name} --serial-ports ${port + 1}, and start it anew`,
        },
      )
    }
    return vm.id
  }
  console(vmId: string, target: ConsoleTarget): Promise<ConsoleStream> {
    return this.#deps.machine.console(vmId, target)
  }
  async changeMedium(
    caller: Caller,
    ref: string,
    cdrom: string,
    ref_image: string | undefined,
    force: boolean,
    signal: AbortSignal,
  ): Promise<Vm> {
    const deps = this.#deps
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'edit')
    const { cdroms = [] } = vm.value.spec
    if (!cdroms.some((c) => c.name === cdrom)) {
      throw fail(
        'not_found',
        `"${vm.value.name}" has no CD drive "${cdrom}"; it has ${cdroms.map((c) => c.name).join(', ') || 'none'}.`,
        {
          field: '/cdrom',
          remedy: `wadah vm edit ${vm.value.name} --add-cdrom`,
        },
      )
    }
    const image = ref_image === undefined ? undefined : isoImage(deps, caller.project, ref_image, '/image')
    // The drive first: a guest that does not let go of its CD keeps it, in the record too.
    if (deps.machine.running(vm.id)) await deps.machine.setMedium(vm.id, cdrom, image?.id, force, signal)
    await this.#again(async () => {
      const now = this.#find(caller, vm.id)
      const changed = (now.value.spec.cdroms ?? []).map((c) =>
        c.name === cdrom ? { name: c.name, ...(image ? { image: image.id } : {}) } : c,
      )
      const held = image ? deps.view.get(imageKind, image.id) : undefined
      await commit(
        deps,
        [unchanged(now), ...(held ? [unchanged(held)] : [])],
        [put(vmKind, now.id, { ...now.value, spec: { ...now.value.spec, cdroms: changed } } satisfies VmRecord)],
      )
    })
    return this.get(caller, vm.id)
  }

  async *screenshot(caller: Caller, ref: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const vm = this.#find(caller, ref)
    this.#allow(caller, vm, 'console')
    yield await this.#deps.machine.screenshot(vm.id, signal)
  }
  firewall(caller: Caller, ref: string): VmFirewall {
    return viewFirewall(this.#deps, this.#find(caller, ref).value.spec.firewall)
  }
  log(caller: Caller, ref: string, bytes: number): Promise<{ text: string; size_bytes: number }> {
    return this.#deps.machine.serialLog(this.#find(caller, ref).id, bytes)
  }
  async health(
    caller: Caller,
    ref: string,
    signal: AbortSignal,
  ): Promise<{ ok: boolean; detail: string; took_ms: number }> {
    const vm = this.#find(caller, ref)
    const { service } = vm.value.spec
    if (!service) throw fail('wrong_state', `"${vm.value.name}" was not made from a recipe with a health check.`)
    const target = (await whereItServes(this.#deps, vm.id, vm.value.spec, signal)) ?? {}
    return this.#deps.machine.check(vm.id, service, target, signal)
  }
}

/** What was chosen for the request, not asked for by it, has no field. */
function lostRace({ fault }: WadahError): boolean {
  return fault.code === 'conflict' || (fault.code === 'address_taken' && fault.field === undefined)
}

function split(label: string): [string, string | undefined] {
  const at = label.indexOf('=')
  return at < 0 ? [label, undefined] : [label.slice(0, at), label.slice(at + 1)]
}
