/** `wadahd --purge`: takes away everything of one instance, also what a broken store does not know any more. */
import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { Cgroups } from '@wadah/host/engine/cgroup'
import { VmDirectory } from '@wadah/host/engine/directory'
import { processes, signalProcess, waitGone } from '@wadah/host/engine/process'
import { endTpm, tpmsWithin } from '@wadah/host/engine/tpm'
import { removeMember } from '@wadah/host/etcd/member'
import { fileName, folders, removeFolders } from '@wadah/host/storage/pool-folder'
import { poolKind, volumeKind, type VolumeRecord } from '@wadah/cluster/records'
import type { PoolDefinition } from '@wadah/ports/volumes'
import { everything } from '@wadah/store/copy'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { workerUrl } from './worker-url.ts'
import { createNetworks } from '@wadah/host/network/networks'
import { etcdDir } from './cluster/identity.ts'
import { etcdUid } from './cluster/parts.ts'
import { type DaemonConfig, runOf, servedBy } from './config.ts'

/** Ends QEMUs (found by their pid file inside our folder) and their TPMs, networks, control groups; then removes the folders. */
export async function purge(config: DaemonConfig): Promise<void> {
  const own = `${config.data}/vms/`
  const list = await processes()
  const daemon = list.find((p) => p.pid !== process.pid && servedBy(p.argv) === config.data)
  if (daemon) {
    signalProcess(daemon, 'SIGTERM')
    if (!(await waitGone(daemon, 20_000)))
      throw fail('timeout', `wadahd (process ${daemon.pid}) does not end.`, { remedy: `kill -9 ${daemon.pid}` })
  }
  const qemus = (await processes()).filter((p) =>
    p.argv.some((arg, i) => arg.startsWith(own) && p.argv[i - 1] === '-pidfile'),
  )
  for (const qemu of qemus) signalProcess(qemu, 'SIGKILL')
  for (const qemu of qemus) {
    if (!(await waitGone(qemu, 30_000))) throw fail('timeout', `QEMU (process ${qemu.pid}) does not end.`)
  }
  for (const tpm of await tpmsWithin(own)) await endTpm(tpm, 0)
  await removeMember(etcdDir(config.data), etcdUid(config))
  if (process.getuid?.() === 0) {
    const networks = createNetworks({ instance: config.instance, dataDir: config.data, watch_ms: 0 })
    if ((await networks.support()).nat) await networks.removeAll()
    networks.close()
    // Of a folder that is broken, or that a file system was taken away from: by what they were started with.
    const left = (await processes()).filter((p) =>
      p.argv.some((arg) => arg.startsWith(`--conf-file=${config.data}/networks/`)),
    )
    for (const dnsmasq of left) signalProcess(dnsmasq, 'SIGKILL')
    for (const dnsmasq of left) await waitGone(dnsmasq, 5_000)
    const cgroups = await Cgroups.open(config.instance === 'default' ? 'wadah' : `wadah-${config.instance}`)
    await cgroups.removeAll()
  }
  for (const line of await emptyPools(config)) process.stderr.write(`${line}\n`)
  // Only what a daemon made: a folder without a store is somebody else's.
  if (
    existsSync(`${config.data}/store.db`) ||
    (await VmDirectory.list(config.data)).length > 0 ||
    existsSync(`${config.data}/pools`)
  ) {
    await rm(config.data, { recursive: true, force: true })
  }
  for (const name of ['wadahd.sock', 'wadahd.pid']) await rm(`${dirname(config.socket)}/${name}`, { force: true })
  if (config.instance !== 'default') {
    await rm(runOf(config.instance), { recursive: true, force: true })
    await rm(`/var/cache/wadah-${config.instance}`, { recursive: true, force: true })
  }
  process.stdout.write(`removed: everything of the instance "${config.instance}"\n`)
}

/** Volumes of this instance that lie in pools elsewhere: nobody would know whose they are once its store is gone. Says what stays. */
async function emptyPools(config: DaemonConfig): Promise<string[]> {
  if (!existsSync(`${config.data}/store.db`)) return []
  const said: string[] = []
  try {
    const store = await openSqliteStore({ file: `${config.data}/store.db`, ...workerUrl() })
    try {
      const pools: PoolDefinition[] = []
      const volumes: VolumeRecord[] = []
      for await (const { kind, value } of everything(store)) {
        if (kind === poolKind.name) pools.push(value as PoolDefinition)
        if (kind === volumeKind.name) volumes.push(value as VolumeRecord)
      }
      for (const pool of pools.filter((p) => !p.path.startsWith(`${config.data}/`))) {
        for (const volume of volumes.filter((v) => v.pool === pool.id))
          await rm(join(folders(pool).volumes, fileName(volume)), { force: true })
        await removeFolders(pool).catch((error: unknown) =>
          said.push(`left: ${pool.path}: ${(error as Error).message}`),
        )
      }
    } finally {
      await store.close()
    }
  } catch (error) {
    said.push(`left: volumes in other pools, for the store can't be read: ${(error as Error).message}`)
  }
  return said
}
