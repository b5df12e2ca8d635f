/** Puts this room together: the view, the job engine, the services, and what keeps records and machine in line. */
import { hostname } from 'node:os'
import { newId } from '@wadah/api/ids'
import type { Machine } from '@wadah/ports/machine'
import { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import { type Store, absent, put } from '@wadah/store/store'
import { type Config, type Deps, commit } from './context.ts'
import { childrenOf } from './host/children.ts'
import { drainJob, undrainJob } from './host/drain.ts'
import { autostartJob, stopGuestsJob } from './host/jobs.ts'
import { hasRebooted, isSameBoot, onDaemonStart } from './host/power.ts'
import { HostView } from './host/service.ts'
import { buildImage, deleteImage } from './images/jobs.ts'
import { importImage, templateImage } from './images/import-jobs.ts'
import { ImageStore } from './images/service.ts'
import { unwarmImage, warmImage } from './warm/jobs.ts'
import { WarmImages } from './warm/service.ts'
import { JobEngine } from './jobs/engine.ts'
import { rememberMoves } from './metrics/moves.ts'
import { Metrics } from './metrics/service.ts'
import { Rules } from './rules/service.ts'
import { Jobs } from './jobs/service.ts'
import { FirewallGroups } from './networks/firewall-groups.ts'
import { NetworkStore, networkSync, newNetwork } from './networks/service.ts'
import { type Membership, Clusters } from './members/service.ts'
import { stayAlive } from './members/alive.ts'
import type { GuestFacts } from './members/records.ts'
import { keepReporting } from './members/recovery.ts'
import { freeName } from './members/settle.ts'
import { hostName } from './members/where.ts'
import { Pending } from './pending.ts'
import { hostKind, indexKeys, indexKind, networkKind, poolKind, vmKind } from './records.ts'
import type { Services } from './services.ts'
import { deleteVolumeJob, makeVolumeJob } from './storage/jobs.ts'
import { moveVolumeLive } from './storage/move-live.ts'
import { changeVolume, exportVolumes, uploadVolume } from './storage/transfer-jobs.ts'
import { deleteSnapshot, revertSnapshot, takeSnapshot, tidySnapshots } from './snapshots/jobs.ts'
import { keepSchedules } from './snapshots/schedule.ts'
import { SnapshotStore } from './snapshots/service.ts'
import { Storage } from './storage/service.ts'
import { Transfers, sweepImports } from './transfers.ts'
import { DEFAULT_POOL } from './storage/find-pool.ts'
import { DEFAULT_NETWORK } from './vms/create.ts'
import { arrivals, sweepArrivals } from './vms/arrive.ts'
import { Bringings } from './vms/bring-in.ts'
import { migrateVm } from './vms/migrate.ts'
import { Arrivals } from './migration/target.ts'
import { movesAtOnce, Turns } from './migration/turns.ts'
import { keepAddresses } from './vms/addresses.ts'
import { createVm, deleteVm, shutdownVm, startVm, stopVm } from './vms/jobs.ts'
import { resizeVolumeJob } from './storage/resize.ts'
import { adoptAll, keepStatuses, sweepTaps } from './vms/keeper.ts'
import { keepRestarting } from './vms/restart.ts'
import { Vms } from './vms/service.ts'
import { sweepMovesUntilDone } from './vms/local-disks.ts'
import { sweepAdded } from './vms/sweep.ts'

export type ClusterOptions = {
  store: Store
  machine: Machine
  clock: Clock
  randomBytes: (n: number) => Uint8Array
  config: Config
  version: string
  /** Folder of the default pool. */
  defaultPoolPath: string
  jobLogs: string
  lanes: { start: number; build: number; create: number }
  log: (line: string) => void
  onUnforeseen: (error: unknown, where: string) => void
  /** In a cluster: which host this is, and what is known of the store. */
  member?: {
    hostId: string
    membership: Membership
    /** What of its CPU and its QEMU decides which guests can come. */
    guests: () => Promise<GuestFacts>
    others: (deps: Deps) => Required<Pick<Deps, 'askHost' | 'haveImage' | 'moves'>>
  }
}

export type Cluster = {
  services: Services
  view: CachedView
  hostId: string
  engine: JobEngine<Deps>
  deps: Deps
  /** Moves that come to this host. */
  arrivals: Arrivals
  /** The same of stopped VMs. */
  bringings: Bringings
  stop(): Promise<void>
}

const SYNC_DELAY_MS = 200

export async function openCluster(o: ClusterOptions): Promise<Cluster> {
  const view = await CachedView.open(o.store, {
    clock: o.clock,
    onTrouble: (error) => o.onUnforeseen(error, 'the view of the store'),
  })
  const hostId = o.member?.hostId ?? (await ownHost(o, view))
  const facts = await o.machine.facts()
  const base: Omit<Deps, 'syncNetworks'> = {
    store: o.store,
    view,
    machine: o.machine,
    clock: o.clock,
    randomBytes: o.randomBytes,
    hostId,
    hostMemoryMib: facts.memory_mib,
    config: o.config,
    log: o.log,
  }
  const deps: Deps = { ...base, syncNetworks: networkSync(base) }
  // Jobs that go on may need them at once.
  if (o.member) Object.assign(deps, o.member.others(deps))
  const engine = new JobEngine<Deps>({
    store: o.store,
    hostId,
    definitions: [
      createVm,
      startVm,
      stopVm,
      shutdownVm,
      deleteVm,
      makeVolumeJob,
      deleteVolumeJob,
      resizeVolumeJob,
      buildImage,
      deleteImage,
      warmImage,
      unwarmImage,
      autostartJob,
      stopGuestsJob,
      importImage,
      templateImage,
      uploadVolume,
      changeVolume,
      moveVolumeLive,
      exportVolumes,
      takeSnapshot,
      revertSnapshot,
      deleteSnapshot,
      tidySnapshots,
      migrateVm,
      drainJob,
      undrainJob,
    ],
    deps,
    logDir: o.jobLogs,
    clock: o.clock,
    randomBytes: o.randomBytes,
    lanes: { import: 4, move: movesAtOnce(o.config), ...o.lanes, wait: 1000 },
    onUnforeseen: o.onUnforeseen,
    remember: rememberMoves(o.store),
  })
  const pending = new Pending()
  const ending = new AbortController()
  await firstThings(o, deps)
  // Observed before jobs go on: a step looks at what is there.
  void keepStatuses(deps, ending.signal).catch((error: unknown) => o.onUnforeseen(error, 'statuses'))
  const boot = await o.machine.bootId()
  await adoptAll(deps, {
    restarts: isSameBoot(deps, boot),
    ...(hasRebooted(deps, boot) ? { ended: 'the host was started anew' } : {}),
  })
  if (o.member) keepReporting(deps, ending.signal)
  await sweepTaps(deps).catch((error: unknown) => o.onUnforeseen(error, 'leftover taps'))
  await deps.syncNetworks().catch((error: unknown) => o.onUnforeseen(error, 'networks'))
  const vms = new Vms(deps, engine, pending)
  deps.children = childrenOf(deps, engine, vms)
  await engine.resume()
  // A host that cannot start its VMs must still let itself be looked at.
  await onDaemonStart(deps, engine, boot).catch((error: unknown) => o.onUnforeseen(error, 'starting VMs with the host'))
  void sweepAdded(deps, engine).catch((error: unknown) => o.onUnforeseen(error, 'disks of edits that were cut off'))
  void sweepImports(deps).catch((error: unknown) => o.onUnforeseen(error, 'leftovers of imports'))
  void engine.prune()
  const turns = new Turns(movesAtOnce(o.config))
  const moves = new Arrivals(arrivals(deps, turns), ending.signal)
  if (o.member)
    await sweepArrivals(deps, moves).catch((error: unknown) =>
      o.onUnforeseen(error, 'moves that were on their way here'),
    )
  // After that: what it takes up again must not be ended under its hands.
  if (o.member)
    void sweepMovesUntilDone(deps, ending.signal).catch((error: unknown) => {
      if (!ending.signal.aborted) o.onUnforeseen(error, 'leftovers of moves')
    })
  const followed = followNetworks(deps, ending.signal)
  const snapshots = new SnapshotStore(deps, engine, pending)
  const unschedule = keepSchedules(deps, snapshots)
  const unasked = keepAddresses(deps)
  const restarting = keepRestarting(deps, engine, vms)
  const { member } = o
  const alive = member
    ? stayAlive(
        deps,
        o.version,
        async () => ({
          facts: await o.machine.facts(),
          ...(await member.guests()),
          postcopy: (await o.machine.migration.postcopy()).ok,
        }),
        ending.signal,
      )
    : undefined
  return {
    services: {
      vms,
      snapshots,
      storage: new Storage(deps, engine, pending),
      images: new ImageStore(deps, engine),
      warm: new WarmImages(deps, engine, pending),
      transfers: new Transfers(deps, engine, pending),
      networks: new NetworkStore(deps),
      firewallGroups: new FirewallGroups(deps),
      jobs: new Jobs(view, engine, hostId),
      host: new HostView(
        deps,
        engine,
        view.get(hostKind, hostId)?.value.name ?? hostname(),
        o.version,
        o.member?.membership,
      ),
      cluster: new Clusters(deps, engine, o.member?.membership),
      metrics: new Metrics(deps, o.version),
      rules: new Rules(deps),
    },
    view,
    hostId,
    engine,
    deps,
    arrivals: moves,
    bringings: new Bringings(deps, ending.signal, turns),
    async stop() {
      followed()
      unschedule()
      unasked()
      restarting()
      await engine.stop()
      ending.abort()
      await alive
      await view.close()
    },
  }
}

/** This host's own record: made once, its id never changes. */
async function ownHost(o: ClusterOptions, view: CachedView): Promise<string> {
  const there = view.list(hostKind)[0]
  if (there) return there.id
  const id = newId('host', o.randomBytes)
  const record = {
    schema: 1 as const,
    id,
    name: o.config.host_name ?? hostname(),
    created_at: new Date(o.clock.now_ms()).toISOString(),
  }
  await commit(
    { store: o.store, view, randomBytes: o.randomBytes },
    [absent(hostKind, id)],
    [put(hostKind, id, record)],
  )
  return id
}

/** A new store gets a pool and networks, so that `vm create` works at once. */
async function firstThings(o: ClusterOptions, deps: Deps): Promise<void> {
  const { view } = deps
  const created_at = new Date(deps.clock.now_ms()).toISOString()
  const named = { schema: 1 as const, project: 'default', created_at }
  const own = view.list(poolKind).find((p) => p.value.path === o.defaultPoolPath && p.value.host === deps.hostId)
  if (own) await deps.machine.volumes.openPool({ id: own.id, path: own.value.path, direct_io: own.value.direct_io })
  else {
    // Of a cluster only one host's can have that name.
    const taken = (n: string) => view.get(indexKind, indexKeys.name('pool', 'default', n)) !== undefined
    const name = taken(DEFAULT_POOL) ? freeName(DEFAULT_POOL, hostName(view, deps.hostId), taken) : DEFAULT_POOL
    const id = newId('pool', deps.randomBytes)
    const { direct_io } = await deps.machine.volumes.openPool({ id, path: o.defaultPoolPath, direct_io: true })
    await commit(
      deps,
      [],
      [
        put(poolKind, id, {
          ...named,
          id,
          name,
          kind: 'dir',
          path: o.defaultPoolPath,
          overcommit: 2,
          direct_io,
          host: deps.hostId,
        }),
        put(indexKind, indexKeys.name('pool', 'default', name), { schema: 1, holder: id }),
      ],
    )
  }
  if (view.list(networkKind).length > 0) return
  const { nat } = await deps.machine.networks.support()
  const wanted = [
    { name: DEFAULT_NETWORK, kind: nat ? ('nat' as const) : ('user' as const) },
    { name: 'user', kind: 'user' as const },
  ]
  for (const body of wanted) {
    const record = await newNetwork(deps, 'default', body)
    await commit(
      deps,
      [],
      [
        put(networkKind, record.id, record),
        put(indexKind, indexKeys.name('network', 'default', body.name), { schema: 1, holder: record.id }),
      ],
    )
  }
}

/** A VM that came, went or changed its NICs, by whatever way: names and ports follow. Merged, and beside what jobs ask for themselves. */
function followNetworks(deps: Deps, signal: AbortSignal): () => void {
  let cancel: (() => void) | undefined
  const off = deps.view.subscribe((changes) => {
    if (signal.aborted || cancel || !changes.some((c) => c.kind === vmKind.name && c.type === 'delete')) return
    cancel = deps.clock.timer(() => {
      cancel = undefined
      deps.syncNetworks().catch((error: unknown) => deps.log(`networks: ${(error as Error).message}`))
    }, SYNC_DELAY_MS)
  })
  return () => {
    off()
    cancel?.()
  }
}
