/** The long actions of VMs, as steps with their way back. */
import { type Fault, fail, toFault } from '@wadah/api/fault'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { VmState } from '@wadah/api/schema/vm'
import { put } from '@wadah/store/store'
import { type Deps, forward } from '../context.ts'
import { type StepContext, defineJob, pivot, step } from '../jobs/define.ts'
import {
  type StatusRecord,
  type VmRecord,
  type VolumeRecord,
  networkKind,
  placementKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { chainOf, launchRequest, poolDefinition, poolOf, volumeDefinition } from '../resolve.ts'
import type { CreateParams } from './create.ts'
import { launchInstant } from '../warm/instant.ts'
import { poolsProven } from '../storage/proven.ts'
import { checkRoomToRun } from './room.ts'
import { refuseWhileWaiting } from '../members/recovery.ts'
import { dropWrites, volumesOf } from './drop.ts'
import { whereItServes } from './inside.ts'
import { bootedOf } from './view.ts'

type Ctx<P> = StepContext<P, Deps>
export type VmParams = { vm: string; name: string }

/** Parameters come from our own submit or from our own store: the shape is checked, not every value. */
function params<P extends VmParams>(value: unknown): P {
  const p = value as P
  if (typeof p?.vm !== 'string' || typeof p.name !== 'string') throw fail('invalid', 'The job has no VM.')
  return p
}
const claims = (p: VmParams) => [`vm/${p.vm}`]

/** The record as the store has it now; from here on the view has it too, with all that was committed together with it. */
async function current(deps: Deps, id: string): Promise<VmRecord> {
  const rec = await deps.store.get(vmKind, id)
  if (!rec) throw fail('gone', 'The VM is not there any more.')
  await deps.view.waitFor(rec.modified)
  return rec.value
}
function volumeOf(deps: Deps, id: string): VolumeRecord {
  const volume = deps.view.get(volumeKind, id)?.value
  if (!volume) throw fail('gone', 'A volume of the VM is not there any more.')
  return volume
}

// ---- create ------------------------------------------------------------------------------------------------------------

async function makeDisks(ctx: Ctx<CreateParams>): Promise<void> {
  const { deps, params: p } = ctx
  const vm = await current(deps, p.vm)
  for (const [i, d] of p.disks.entries()) {
    const volume = volumeOf(deps, d.volume)
    const to = { uid: vm.spec.uid }
    if (d.make) await makeVolume(ctx, volume, d.from, to, (fraction) => ctx.progress((i + fraction) / p.disks.length))
    else await grantTo(deps, vm, volume.id)
  }
}

/** The file of a volume for the user of the VM whose disk it is. */
export async function grantTo(deps: Deps, vm: VmRecord, id: string): Promise<void> {
  const volume = volumeOf(deps, id)
  if (volume.vm !== vm.id) throw fail('in_use', `The volume "${volume.name}" is not a disk of "${vm.name}" any more.`)
  const pool = poolDefinition(poolOf(deps, volume.pool))
  await deps.machine.volumes.grant(pool, volumeDefinition(deps, volume), { uid: vm.spec.uid })
}

/** Everything its QEMU opens on this host is here, and its user may open it. `coming`: disks that are still on their way. */
export async function filesReady(deps: Deps, vm: VmRecord, coming: readonly string[] = []): Promise<void> {
  await poolsProven(deps, vm)
  // Done when they were attached, unless a crash came between, or another host did it.
  for (const { name, volume } of vm.spec.disks) if (!coming.includes(name)) await grantTo(deps, vm, volume)
  if (vm.spec.boot.kind === 'kernel') await deps.haveImage?.(vm.spec.boot.image)
  for (const { image } of vm.spec.cdroms ?? []) if (image !== undefined) await deps.haveImage?.(image)
}

/** Makes the file of one volume and gives it to who may write it. */
export async function makeVolume(
  ctx: Pick<Ctx<unknown>, 'deps' | 'signal' | 'log'>,
  volume: VolumeRecord,
  from: { volume: string; how: 'linked' | 'full' | 'delta' } | undefined,
  to: { uid: number } | 'read-only' | undefined,
  progress: (fraction: number) => void,
): Promise<void> {
  const { deps, signal } = ctx
  const pool = poolDefinition(poolOf(deps, volume.pool))
  const target = volumeDefinition(deps, volume)
  const work = {
    signal,
    log: (line: string) => ctx.log(line),
    progress: (done: number, total: number) => progress(total > 0 ? done / total : 1),
  }
  if (from) {
    const [source] = chainOf(deps, from.volume)
    if (!source) throw fail('gone', 'The volume to clone is not there any more.')
    const sourcePool = poolDefinition(poolOf(deps, source.pool))
    await deps.machine.volumes.clone(
      pool,
      { pool: sourcePool, volume: volumeDefinition(deps, source) },
      target,
      from.how,
      work,
    )
  } else await deps.machine.volumes.create(pool, target, work)
  if (to) await deps.machine.volumes.grant(pool, target, to)
}

async function dropDisks({ deps, params: p }: Ctx<CreateParams>): Promise<void> {
  for (const { volume: id, make } of p.disks) {
    const volume = make ? (await deps.store.get(volumeKind, id))?.value : undefined
    if (volume) await deps.machine.volumes.delete(poolDefinition(poolOf(deps, volume.pool)), volume)
  }
}

/** Everything that was committed with the job goes again; a volume that was there before is let go. */
async function dropRecords(ctx: Ctx<CreateParams>): Promise<void> {
  const { deps, params: p } = ctx
  const vm = (await deps.store.get(vmKind, p.vm))?.value
  if (!vm) return
  const made = new Set(p.disks.flatMap((d) => (d.make ? [d.volume] : [])))
  ctx.commit(await dropWrites(deps, vm, (volume) => made.has(volume.id)))
}

const hasTaps = (deps: Deps, vm: VmRecord): boolean =>
  vm.spec.nics.some((n) => deps.view.get(networkKind, n.network)?.value.kind !== 'user')

export const createVm = defineJob<CreateParams, Deps>(
  'vm.create',
  1,
  params<CreateParams>,
  [
    // Its records were committed together with the job; this step is the way back.
    step('reserve', { do: () => undefined, undo: dropRecords, volatile: true, weight: 0.1 }),
    step('disks', {
      do: makeDisks,
      undo: dropDisks,
      when: (p) => p.disks.length > 0 && !p.instant,
      progress: 'bytes',
      weight: 3,
      volatile: true,
    }),
    step('state', {
      do: async ({ deps, params: p }) => {
        if (p.source !== undefined) await deps.machine.copyState(p.source, p.vm, (await current(deps, p.vm)).spec.uid)
      },
      undo: async ({ deps, params: p }) => {
        await deps.machine.forget(p.vm)
      },
      when: (p) => p.source !== undefined,
      weight: 0.1,
      volatile: true,
    }),
    step('names', {
      do: async ({ deps, params: p }) => {
        if (hasTaps(deps, await current(deps, p.vm))) await deps.syncNetworks()
      },
      undo: async ({ deps, params: p }) => {
        await deps.machine.forget(p.vm)
      },
      when: (p) => !p.instant,
      weight: 0.5,
      volatile: true,
    }),
    step('launch', {
      do: async (ctx) =>
        ctx.params.instant
          ? launchInstant(ctx.deps, ctx.params.vm, {
              dropDisks: () => dropDisks(ctx),
              makeDisks: () => makeDisks(ctx),
              launch: (requestOf) => launch(ctx, requestOf),
            })
          : launch(ctx),
      undo: async (ctx) => {
        const { machine } = ctx.deps
        if (!ctx.params.instant) return machine.clean(ctx.params.vm)
        await machine.forget(ctx.params.vm)
        await dropDisks(ctx)
      },
      when: (p) => p.start,
      weight: 2,
    }),
    step('created', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        for (const { volume: id, make } of p.disks) {
          const rec = make ? await deps.store.get(volumeKind, id) : undefined
          if (!rec) continue
          const { making: _, ...ready } = rec.value
          ctx.commit([put(volumeKind, id, ready)])
        }
        if (!p.start)
          ctx.commit([put(statusKind, p.vm, { schema: 1, state: 'stopped', since_ms: deps.clock.now_ms() })])
      },
      weight: 0.1,
    }),
    // A service that does not answer is told, and the VM kept: whoever asked will want to look into it.
    step<CreateParams, Deps, Readiness>('ready', {
      do: (ctx) =>
        waitReady(ctx).catch((error: unknown) => {
          if (ctx.signal.aborted) throw error
          return { ready: false as const, why: toFault(error) }
        }),
      when: (p) => p.wait_ready,
      weight: 10,
    }),
  ],
  {
    claims: (p) => [`vm/${p.vm}`, ...(p.source === undefined ? [] : [`vm/${p.source}`])],
    lane: 'create',
    result: (output, p) => ({ vm: p.vm, name: p.name, ...(p.wait_ready ? (output('ready') as object) : {}) }),
  },
)

// ---- start -------------------------------------------------------------------------------------------------------------

/** States in which no guest instruction of this start has run. */
const NOT_BEGUN: ReadonlySet<VmState> = new Set(['absent', 'prepared', 'starting', 'incoming', 'stopped'])

/** `requestOf`: what the machine is asked to run; a plain start unless said. */
export async function launch(
  ctx: Ctx<VmParams>,
  requestOf: (vm: VmRecord) => LaunchRequest = (vm) => launchRequest(ctx.deps, vm),
): Promise<{ begun_ms: number }> {
  const { deps, params: p, signal } = ctx
  const begun_ms = deps.clock.now_ms()
  const vm = await current(deps, p.vm)
  const placement = (await deps.store.get(placementKind, p.vm))?.value
  // R1: only the host named by the placement, with no sealed hand-over standing, may launch.
  if (placement?.host !== deps.hostId || placement.handover?.sealed) {
    throw fail('not_owner', `The VM belongs to the host ${placement?.host ?? '(none)'}.`)
  }
  refuseWhileWaiting(deps.view)
  let seen = await deps.machine.observe(vm.id)
  // Cut off after its guest began to run: it is done. To prepare it once more could only fail, and the way back would end the guest.
  if (!NOT_BEGUN.has(seen.state) && seen.epoch === placement.epoch) ctx.log('it runs already')
  else {
    if (!deps.machine.running(vm.id)) checkRoomToRun(deps, vm)
    await filesReady(deps, vm)
    const plan = await deps.machine.plan(requestOf(vm))
    await deps.machine.prepare(plan, signal)
    await deps.machine.launch(plan, 'fresh', signal)
    seen = await deps.machine.observe(vm.id)
  }
  const status = (await deps.store.get(statusKind, vm.id))?.value
  const now = deps.clock.now_ms()
  const record: StatusRecord = {
    schema: 1,
    ...(status ?? { since_ms: now }),
    state: seen.state,
    since_ms: now,
    started_ms: begun_ms,
    ...(seen.pid === undefined ? {} : { pid: seen.pid }),
    ...(seen.accelerator === undefined ? {} : { accelerator: seen.accelerator }),
    ...(seen.qemu_version === undefined ? {} : { qemu_version: seen.qemu_version }),
    ...(seen.machine === undefined ? {} : { machine: seen.machine }),
    ...(seen.agent === undefined ? {} : { agent: seen.agent }),
    booted: bootedOf(vm.spec),
  }
  delete record.reason
  delete record.paused_by
  delete record.ready_ms
  // An earlier life may have been shown more.
  if (seen.cpu_flags) record.cpu_flags = seen.cpu_flags
  else delete record.cpu_flags
  ctx.commit([put(statusKind, vm.id, record)])
  return { begun_ms }
}

const READY_TIMEOUT_MS = 600_000

type Readiness = { ready: true; ready_ms: number; detail: string } | { ready: false; why: Fault }

async function waitReady(ctx: Ctx<VmParams>): Promise<Readiness> {
  const { deps, params: p, signal } = ctx
  const limit = AbortSignal.any([signal, AbortSignal.timeout(READY_TIMEOUT_MS)])
  const { spec } = await current(deps, p.vm)
  let last = 'it has no address that this host can reach'
  let wait_ms = 20
  while (spec.service && !limit.aborted) {
    if (!deps.machine.running(p.vm))
      throw fail('wrong_state', 'The VM ended before its service answered.', { remedy: `wadah vm log ${p.name}` })
    const target = (await whereItServes(deps, p.vm, spec, limit)) ?? {}
    const { ok, detail } = await deps.machine.check(p.vm, spec.service, target, limit)
    if (ok) {
      const status = deps.view.get(statusKind, p.vm)
      // Never less than nothing: the clock may have been set meanwhile.
      const ready_ms = Math.max(0, deps.clock.now_ms() - (status?.value.started_ms ?? deps.clock.now_ms()))
      if (status) ctx.commit([put(statusKind, p.vm, { ...status.value, ready_ms })])
      return { ready: true, ready_ms, detail }
    }
    if (detail !== last) ctx.log(detail)
    last = detail
    await new Promise((resolve) => setTimeout(resolve, Math.min(wait_ms, 500)))
    wait_ms *= 2
  }
  signal.throwIfAborted()
  throw fail('timeout', `The service did not answer: ${last}.`, { remedy: `wadah vm log ${p.name}`, retryable: false })
}

export const startVm = defineJob<VmParams, Deps>(
  'vm.start',
  1,
  params<VmParams>,
  [
    step('launch', {
      do: (ctx) => launch(ctx),
      undo: async (ctx) => {
        const { deps, params: p } = ctx
        await deps.machine.clean(p.vm)
        const status = (await deps.store.get(statusKind, p.vm))?.value
        if (!status) return
        const { restart } = status
        const stopped = { schema: 1 as const, state: 'stopped' as const, since_ms: deps.clock.now_ms() }
        ctx.commit([put(statusKind, p.vm, { ...stopped, ...(restart ? { restart } : {}) })])
      },
    }),
  ],
  { claims, lane: 'start', result: (_output, p) => ({ vm: p.vm, name: p.name }) },
)

// ---- stop, shutdown ----------------------------------------------------------------------------------------------------

export const stopVm = defineJob<VmParams, Deps>(
  'vm.stop',
  1,
  params<VmParams>,
  // What was stopped cannot be made to have run on.
  [
    pivot('stop', {
      do: (ctx) =>
        forward(async () => {
          await ctx.deps.machine.stop(ctx.params.vm)
          await writtenDown(ctx)
        }),
    }),
  ],
  { claims: (p) => [`vm/${p.vm}/stop`], result: (_output, p) => ({ vm: p.vm, name: p.name }) },
)

export type ShutdownParams = VmParams & {
  timeout_s: number
  force: boolean
  /** For the end of the host: what is wanted of the VM stays as it is. */
  keep_wanted?: boolean
}
/** Guests that are still booting do not hear the button: it is pressed again. */
const PRESS_AGAIN_MS = 8_000
const AGENT_AFTER_MS = 10_000

async function shutdown(ctx: Ctx<ShutdownParams>): Promise<{ how: string }> {
  const done = await pressUntilOff(ctx)
  await writtenDown(ctx)
  return done
}

const WRITTEN_MS = 10_000

/**
 * Whoever waits for the job may ask for what needs a VM that is off. Until its end is written down a job must stand also because it says
 * that the guest did not end by its own wish.
 */
async function writtenDown({ deps, params: p, signal }: Ctx<VmParams>): Promise<void> {
  const written = () => ['stopped', 'absent'].includes(deps.view.get(statusKind, p.vm)?.value.state ?? 'absent')
  if (written()) return
  const limit = AbortSignal.any([signal, AbortSignal.timeout(WRITTEN_MS)])
  await new Promise<void>((resolve) => {
    const off = deps.view.subscribe(() => written() && end())
    const end = () => {
      off()
      limit.removeEventListener('abort', end)
      resolve()
    }
    limit.addEventListener('abort', end)
    if (written() || limit.aborted) end()
  })
  signal.throwIfAborted()
}

async function pressUntilOff(ctx: Ctx<ShutdownParams>): Promise<{ how: string }> {
  const { deps, params: p, signal } = ctx
  const begun = deps.clock.monotonic_ms()
  const left = () => p.timeout_s * 1000 - (deps.clock.monotonic_ms() - begun)
  const agentAt = Math.min(AGENT_AFTER_MS, (p.timeout_s * 1000) / 2)
  const untilAgent = () => agentAt - (deps.clock.monotonic_ms() - begun)
  let agentAsked = false
  for (let press = 1; left() > 0; press++) {
    if (!deps.machine.running(p.vm)) return { how: agentAsked ? 'guest agent' : 'power button' }
    ctx.log(`power button, press ${press}`)
    await deps.machine.powerDown(p.vm)
    const wait = Math.max(1, Math.min(left(), PRESS_AGAIN_MS, agentAsked ? PRESS_AGAIN_MS : untilAgent()))
    // The guest has heard the button: from here on nothing is "nothing was changed".
    const stopped = await forward(() => deps.machine.waitStopped(p.vm, wait, signal)).catch((error: unknown) => {
      signal.throwIfAborted()
      throw error
    })
    if (stopped) return { how: agentAsked ? 'guest agent' : 'power button' }
    ctx.progress(Math.min(1, 1 - left() / (p.timeout_s * 1000)))
    if (!agentAsked && untilAgent() <= 0) {
      agentAsked = true
      ctx.log('asking the guest agent')
      await deps.machine
        .agentPowerDown(p.vm, AbortSignal.any([signal, AbortSignal.timeout(10_000)]))
        .catch((error: unknown) => {
          ctx.log(`guest agent: ${(error as Error).message}`)
        })
    }
  }
  if (!p.force) {
    throw fail('timeout', `The guest did not shut down within ${p.timeout_s} s; it still runs.`, {
      remedy: `wadah vm stop ${p.name} ends it at once`,
      retryable: false,
    })
  }
  ctx.log('the time is over: ending it')
  await forward(() => deps.machine.stop(p.vm))
  return { how: 'stopped' }
}

export const shutdownVm = defineJob<ShutdownParams, Deps>(
  'vm.shutdown',
  1,
  params<ShutdownParams>,
  [step('shutdown', { do: shutdown })],
  { claims, onCrash: 'continue', lane: 'wait' },
)

// ---- delete ------------------------------------------------------------------------------------------------------------

export type DeleteParams = VmParams & { force: boolean; keep_disks: boolean }

export const deleteVm = defineJob<DeleteParams, Deps>(
  'vm.delete',
  1,
  params<DeleteParams>,
  [
    pivot('forget', {
      do: async ({ deps, params: p }) => {
        if (!p.force && deps.machine.running(p.vm)) {
          throw fail('wrong_state', 'The VM runs.', { remedy: `wadah vm shutdown ${p.name}` })
        }
        // Ends QEMU, too.
        await forward(() => deps.machine.forget(p.vm))
      },
    }),
    step('disks', {
      do: async ({ deps, params: p }) => {
        const vm = (await deps.store.get(vmKind, p.vm))?.value
        if (!vm || p.keep_disks) return
        for (const volume of await volumesOf(deps, vm))
          await deps.machine.volumes.delete(poolDefinition(poolOf(deps, volume.pool)), volume)
      },
      volatile: true,
    }),
    step('records', {
      do: async (ctx) => {
        const { deps, params: p } = ctx
        const vm = (await deps.store.get(vmKind, p.vm))?.value
        if (vm) ctx.commit(await dropWrites(deps, vm, () => !p.keep_disks))
      },
      volatile: true,
    }),
    step('names', {
      do: async ({ deps }) => deps.syncNetworks(),
      volatile: true,
      resolve: ({ log }, why) => log(`names and ports are brought in line later: ${why.detail}`),
    }),
  ],
  { claims, lane: 'create', result: (_output, p) => ({ vm: p.vm, name: p.name }) },
)
