/** wadahd: reads the configuration, puts the rooms together, listens, and ends in order. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fail, toFault } from '@wadah/api/fault'
import { openCluster } from '@wadah/cluster/cluster'
import { recordStates } from '@wadah/cluster/networks/states'
import { usePausePoints } from '@wadah/cluster/migration/pause-point'
import { caughtUp } from '@wadah/cluster/context'
import { systemCaller } from '@wadah/cluster/host/children'
import { MIGRATE_PATH, type MoveAsked } from '@wadah/cluster/host/drain'
import { answerFacts, FACTS_PATH } from '@wadah/cluster/storage/pool-facts'
import { answerUsed, USED_PATH } from '@wadah/cluster/storage/rooms'
import { answerWay, WAY_PATH } from '@wadah/cluster/members/way'
import { answerBrought, answerKept } from '@wadah/cluster/vms/bring-in'
import { BROUGHT_PATH } from '@wadah/cluster/vms/bring-out'
import { KEPT_PATH } from '@wadah/cluster/vms/kept'
import { answerHas, HAS_PATH, LEFTOVERS_PATH, sweepMoves } from '@wadah/cluster/vms/local-disks'
import { answerPool, POOL_PATH } from '@wadah/cluster/storage/shared'
import { networkDownKind, resourceOf, type StatusRecord, vmKind } from '@wadah/cluster/records'
import type { JobRecord } from '@wadah/cluster/jobs/record'
import { HostMachine } from '@wadah/host/engine/machine'
import { createImages } from '@wadah/host/images/images'
import { createImports } from '@wadah/host/imports/imports'
import { createNetworks } from '@wadah/host/network/networks'
import { createVolumes } from '@wadah/host/storage/volumes'
import { Confinement } from '@wadah/host/system/confine'
import { syncDir } from '@wadah/host/system/files'
import type { NetworkState } from '@wadah/ports/networks'
import { systemClock } from '@wadah/store/clock'
import { openSqliteStore, type SqliteStore } from '@wadah/store/sqlite/sqlite-store'
import type { Change, Store } from '@wadah/store/store'
import { readIdentity } from './cluster/identity.ts'
import { initCluster } from './cluster/init.ts'
import { joinCluster } from './cluster/join.ts'
import { recoverCluster } from './cluster/recover.ts'
import { ClusterRuntime } from './cluster/runtime.ts'
import { guestNeeds } from '@wadah/host/engine/facts'
import { passOnTo } from './peers/forward.ts'
import { textOf } from './peers/client.ts'
import { AllProgress, PROGRESS_PATH, progressHere } from './peers/progress.ts'
import { consoles, openedHere } from './peers/streams.ts'
import { onlyHere, whereOf } from './peers/where.ts'
import type { MapEvent } from './http/events.ts'
import { startServer } from './http/listen.ts'
import { createLog } from './http/log.ts'
import { keepCopies } from './copies.ts'
import { type DaemonConfig, HELP, readConfig } from './config.ts'
import { backupStream, dropOldCopies } from './backup.ts'
import { purge } from './purge.ts'
import { restore } from './restore.ts'
import { VERSION } from './version.ts'
import { workerUrl } from './worker-url.ts'

/** `specOf`: generation of a VM; a status says of which spec it is. */
const mapEvent =
  (specOf: (vm: string) => number | undefined): MapEvent =>
  (change: Change) => {
    const resource = resourceOf(change.kind) ?? (change.kind === 'access/token' ? 'token' : undefined)
    if (resource === undefined) return undefined
    // Of a network it says how it fares on a host, there or not.
    if (change.kind === networkDownKind.name)
      return { resource, resource_id: change.id.split('/', 1)[0] as string, change: 'put' }
    const gone = change.type === 'delete'
    // A VM is gone when its spec is; its other records go with it.
    if (gone && change.kind !== 'vm/spec' && resource === 'vm') return undefined
    const rec = change.type === 'put' ? change.rec : undefined
    const state =
      change.kind === 'vm/status'
        ? (rec?.value as StatusRecord | undefined)?.state
        : change.kind === 'job'
          ? (rec?.value as JobRecord | undefined)?.state
          : undefined
    const generation =
      rec === undefined ? undefined : resource === 'vm' && change.kind !== 'vm/spec' ? specOf(change.id) : rec.version
    return {
      resource,
      resource_id: change.id,
      change: gone ? 'delete' : 'put',
      ...(generation === undefined ? {} : { generation }),
      ...(state === undefined ? {} : { state }),
    }
  }

async function main(config: DaemonConfig): Promise<void> {
  const log = createLog({ level: config.log_level })
  const line = (text: string) => log.info(text)
  usePausePoints(config.pause_points)
  const onUnforeseen = (err: unknown, where: string) => log.error({ err }, where)
  await mkdir(config.data, { recursive: true, mode: 0o711 })
  await chmod(config.data, 0o711)
  await mkdir(join(config.data, 'pools', 'default'), { recursive: true, mode: 0o711 })
  // What is put there later is flushed by whoever does; the way there is by us.
  for (const folder of [join(config.data, 'pools'), config.data, dirname(config.data)]) await syncDir(folder)
  await mkdir(dirname(config.socket), { recursive: true, mode: 0o755 })

  const identity = await readIdentity(config.data)
  const runtime = identity && (await ClusterRuntime.open(config, identity, line))
  const single = runtime ? undefined : await openSqliteStore({ file: join(config.data, 'store.db'), ...workerUrl() })
  // It may have become one of a cluster while the store was waited for.
  if (single && (await readIdentity(config.data)))
    throw fail('wrong_state', 'This host has just become one of a cluster.', { remedy: 'start wadahd again' })
  const store = (runtime?.store ?? single) as Store
  await dropOldCopies(config.data)
  // The machine looks after its networks from the start; their records are there once the cluster is.
  const news: { record?: (states: NetworkState[]) => void } = {}
  const networks = createNetworks({
    instance: config.instance,
    dataDir: config.data,
    uids: [config.uid_base, config.uid_base + config.uid_count - 1],
    log: line,
    on_states: (states) => news.record?.(states),
  })
  // User ids after those of VMs and the one that probes the accelerator.
  const confined = process.getuid?.() === 0 ? config.uid_base + config.uid_count + 1 : null
  const confinement = new Confinement(confined, join(config.data, 'lent'))
  await confinement.recover()
  const sockets = join(config.data, 'nbd')
  await rm(sockets, { recursive: true, force: true })
  const volumes = createVolumes({ allowedDirs: config.pool_dirs, confinement, sockets })
  const machine = await HostMachine.open({
    dataDir: config.data,
    cgroup: config.instance === 'default' ? 'wadah' : `wadah-${config.instance}`,
    qemu: config.qemu,
    volumes,
    networks,
    images: createImages({
      dataDir: config.data,
      cacheDir: config.cache,
      recipeDirs: config.recipe_dirs,
      ...(config.mirror === undefined ? {} : { mirror: config.mirror }),
    }),
    imports: createImports({
      volumes,
      confinement,
      rules: { allowPrivate: config.import_allow_private, allowHosts: config.import_allow_hosts },
    }),
    log: line,
    now_ms: () => systemClock.now_ms(),
    startsAtOnce: config.starts_at_once,
    probeUid: config.uid_base + config.uid_count,
  })
  const cluster = await openCluster({
    store,
    machine,
    clock: systemClock,
    randomBytes,
    config,
    version: VERSION,
    defaultPoolPath: join(config.data, 'pools', 'default'),
    jobLogs: join(config.data, 'jobs'),
    lanes: { start: 8, build: config.builds_at_once, create: 16 },
    log: line,
    onUnforeseen,
    ...(identity && runtime
      ? {
          member: {
            hostId: identity.host,
            membership: runtime.membership,
            guests: async () => {
              const { cpu_flags, machines } = await guestNeeds(config.qemu)
              return { cpu_flags: [...cpu_flags].toSorted(), machine_types: machines }
            },
            others: (deps) => runtime.others(deps),
          },
        }
      : {}),
  })
  news.record = (states) => {
    recordStates(cluster.deps, states).catch((error: unknown) => onUnforeseen(error, 'networks'))
  }
  const server = await startServer({
    services: cluster.services,
    store,
    view: cluster.view,
    mapEvent: mapEvent((vm) => cluster.view.get(vmKind, vm)?.version),
    clock: systemClock,
    random: randomBytes,
    log,
    version: VERSION,
    auditFile: join(config.data, 'audit.log'),
    names: config.names,
    backup: () => backupStream(runtime ?? (single as SqliteStore), config.data),
    ...(identity && runtime
      ? {
          passOn: passOnTo(runtime.peers, identity.host, whereOf(cluster)),
          consoles: consoles(cluster.deps, runtime.peers, cluster.services.vms),
          progress: new AllProgress({
            jobs: cluster.services.jobs,
            own: identity.host,
            view: cluster.view,
            clock: systemClock,
            open: (host, path, signal) => runtime.peers.open(host, path, signal),
          }),
        }
      : { passOn: onlyHere(whereOf(cluster)) }),
    listen: {
      host: config.listen.host,
      port: config.listen.port,
      tlsDirectory: join(config.data, 'tls'),
      socket: { path: config.socket, group: 'wadah' },
    },
  })
  const pidFile = join(dirname(config.socket), 'wadahd.pid')
  const copying = new AbortController()
  const copied = keepCopies({
    backup: (file) => (runtime ?? (single as SqliteStore)).backup(file),
    dir: join(config.data, 'copies'),
    keep: config.store_copies,
    now_ms: () => systemClock.now_ms(),
    log: line,
    signal: copying.signal,
  })
  let ending = false
  const end = (why: string, last: () => Promise<void> = async () => undefined, code = 0) => {
    if (ending) return
    ending = true
    log.info({ why }, 'ending; VMs run on')
    void (async () => {
      copying.abort()
      await copied
      await server.stop()
      await runtime?.stop()
      await cluster.stop()
      networks.close()
      await machine.close()
      await store.close()
      await last()
      await rm(pidFile, { force: true })
      process.exit(code)
    })().catch((err: unknown) => {
      log.error({ err }, 'the end was not clean')
      process.exit(1)
    })
  }
  if (runtime) {
    await runtime.serve(cluster, server, {
      asked: {
        [POOL_PATH]: (body) => answerPool(cluster.deps, body),
        [WAY_PATH]: async (body) => answerWay(cluster.deps, body),
        [FACTS_PATH]: (body) => answerFacts(cluster.deps, body),
        [USED_PATH]: (body) => answerUsed(cluster.deps, body),
        [BROUGHT_PATH]: (body) => answerBrought(cluster.deps, body),
        [KEPT_PATH]: (body, host) => answerKept(cluster.deps, body, host),
        [HAS_PATH]: (body) => answerHas(cluster.deps, body),
        [LEFTOVERS_PATH]: async () => {
          await sweepMoves(cluster.deps)
          return {}
        },
        [MIGRATE_PATH]: async (body) => {
          const { vm, to, key, pool, mode, max_stall_ms } = (body ?? {}) as Partial<MoveAsked>
          if (typeof vm !== 'string' || typeof to !== 'string' || typeof key !== 'string')
            throw fail('malformed', 'This is no request to move a VM.')
          // It may have been changed a moment ago by the host that asks.
          await caughtUp(cluster.deps)
          const wishes = {
            ...(pool === undefined ? {} : { pool }),
            ...(mode === undefined ? {} : { mode }),
            ...(max_stall_ms === undefined ? {} : { max_stall_ms }),
          }
          const caller = systemCaller(key)
          // Of one that has begun the VM would be refused as busy.
          const before = await cluster.services.jobs.replay(caller)
          return { job: before?.id ?? (await cluster.services.vms.migrate(caller, vm, { to, ...wishes })).id }
        },
      },
      opened: {
        ...openedHere(cluster.deps, cluster.services.vms, cluster),
        [PROGRESS_PATH]: progressHere(cluster.services.jobs, systemClock),
      },
      removed: () => end('this host was taken out of the cluster', () => runtime.leave()),
      // systemd starts it again: what it does not start again ends with an error.
      recovered: () => end('the store of the cluster was recovered: wadahd must be started anew', undefined, 1),
    })
  }
  await announce(config, cluster.view, server)
  // Last of all: who finds this file finds the others too.
  await writeFile(pidFile, `${process.pid} ${await startTicks()}\n`, { mode: 0o644 })
  log.info({ url: server.url, fingerprint: server.certificate.fingerprint, socket: config.socket }, 'wadahd listens')
  // Node has no datagram sockets of the UNIX kind, so systemd's own program says it (sd_notify(3)).
  if (config.notify) await notifyReady().catch((err: unknown) => log.error({ err }, 'systemd was not told'))

  process.on('SIGTERM', () => end('SIGTERM'))
  process.on('SIGINT', () => end('SIGINT'))
}

async function changeCluster(config: DaemonConfig, o: NonNullable<DaemonConfig['cluster']>): Promise<void> {
  await awake<unknown>(async () =>
    o.act === 'init' ? await initCluster(config, o) : await joinCluster(config, o, await textOf(process.stdin, 65_536)),
  )
}

/** Does it and says what came of it. Timers and threads of the store let a process end that only waits for them. */
async function awake<T>(work: () => Promise<T>): Promise<void> {
  const alive = setInterval(() => undefined, 60_000)
  try {
    process.stdout.write(`${JSON.stringify(await work())}\n`)
  } finally {
    clearInterval(alive)
  }
}

/** As long as there is no administrator, the one-time link lies where only root can read it. */
async function announce(
  config: DaemonConfig,
  view: { list(kind: { name: string }): readonly unknown[] },
  server: { url: string; setupLink(): Promise<string> },
): Promise<void> {
  const file = join(config.data, 'setup-link')
  await writeFile(join(config.data, 'url'), `${server.url}\n`, { mode: 0o644 })
  if (view.list({ name: 'access/user' }).length > 0) {
    await rm(file, { force: true })
    return
  }
  await rm(file, { force: true })
  await writeFile(file, `${await server.setupLink()}\n`, { mode: 0o600, flag: 'wx' })
}

/** Field 22 of /proc/self/stat: with the pid it names this process for ever. */
async function startTicks(): Promise<string> {
  const stat = await readFile('/proc/self/stat', 'latin1')
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}

function notifyReady(): Promise<void> {
  return new Promise((done, failed) =>
    execFile('systemd-notify', ['--ready'], { timeout: 10_000 }, (error) =>
      error ? failed(new Error('systemd-notify failed', { cause: error })) : done(),
    ),
  )
}

try {
  const config = await readConfig(process.argv.slice(2))
  if (!config) process.stdout.write(HELP)
  else if (config.purge) await purge(config)
  else if (config.restore !== undefined) await restore(config, config.restore)
  else if (config.cluster) await changeCluster(config, config.cluster)
  else if (config.recover) await awake(() => recoverCluster(config, config.recover?.from))
  else await main(config)
} catch (error) {
  const fault = toFault(error)
  const text =
    fault.code === 'internal'
      ? ((error as Error).stack ?? String(error))
      : `${fault.detail}${fault.remedy ? `\n  ${fault.remedy}` : ''}`
  process.stderr.write(`wadahd: ${text}\n`)
  process.exit(1)
}
