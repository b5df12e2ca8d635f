/** A host's share of CPU and memory: a control group that the daemon's own groups lie in, from which it reads what it has. */
import { existsSync } from 'node:fs'
import { mkdir, readdir, rmdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { LabHost, LabState } from './plan.ts'

const V1 = ['/sys/fs/cgroup/cpu', '/sys/fs/cgroup/memory', '/sys/fs/cgroup/cpuacct']
const V2 = '/sys/fs/cgroup'
const PERIOD_US = 100_000
const INSIDE = 'host'

const isV2 = () => existsSync(`${V2}/cgroup.controllers`)
const foldersOf = ({ instance }: LabHost) =>
  (isV2() ? [V2] : V1.filter((dir) => existsSync(dir))).map((dir) => join(dir, `wadah-${instance}`))

/** False where this machine has no control groups that could be used: its hosts then share all of it. */
export async function makeShare(lab: LabState, host: LabHost): Promise<boolean> {
  const quota = String(Math.round(lab.cpus * PERIOD_US))
  const bytes = String(lab.memory_mib * 2 ** 20)
  try {
    if (isV2()) await writeFile(`${V2}/cgroup.subtree_control`, '+cpu +memory')
    for (const folder of foldersOf(host)) {
      await mkdir(join(folder, INSIDE), { recursive: true })
      const files: Record<string, string> = isV2()
        ? { 'cgroup.subtree_control': '+cpu +memory', 'cpu.max': `${quota} ${PERIOD_US}`, 'memory.max': bytes }
        : folder.includes('/memory/')
          ? { 'memory.limit_in_bytes': bytes }
          : folder.includes('/cpuacct/')
            ? {}
            : { 'cpu.cfs_period_us': String(PERIOD_US), 'cpu.cfs_quota_us': quota }
      for (const [file, value] of Object.entries(files)) await writeFile(join(folder, file), value)
    }
    return foldersOf(host).length > 0
  } catch {
    return false
  }
}

/** VMs have groups of their own in it; whatever else the host runs goes here. */
export async function enterShare(host: LabHost, pids: readonly number[]): Promise<void> {
  for (const folder of foldersOf(host))
    for (const pid of pids) await writeFile(join(folder, INSIDE, 'cgroup.procs'), String(pid)).catch(() => undefined)
}

export async function dropShare(host: LabHost): Promise<void> {
  for (const folder of foldersOf(host)) {
    const inside = await readdir(folder, { withFileTypes: true }).catch(() => [])
    for (const entry of inside) if (entry.isDirectory()) await rmdir(join(folder, entry.name)).catch(() => undefined)
    await rmdir(folder).catch(() => undefined)
  }
}
