/** `wadahd --purge`: takes away everything of one instance, also what a broken store does not know any more. */
import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fail } from '@wadah/api/fault'
import { Cgroups } from '@wadah/host/engine/cgroup'
import { VmDirectory } from '@wadah/host/engine/directory'
import { processes, signalProcess, waitGone } from '@wadah/host/engine/process'
import { endTpm, tpmsWithin } from '@wadah/host/engine/tpm'
import { removeMember } from '@wadah/host/etcd/member'
import { createNetworks } from '@wadah/host/network/networks'
import { etcdDir } from './cluster/identity.ts'
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
  await removeMember(etcdDir(config.data))
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
