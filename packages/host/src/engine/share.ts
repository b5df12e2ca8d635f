/**
 * What a control group above our VMs leaves them of the machine: a daemon in a container, or a host of a lab, has that and no more.
 * kernel docs: admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst, admin-guide/cgroup-v2.rst.
 */
import { readFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { CgroupLayout } from './cgroup.ts'

export type Share = { cpus?: number; memory_bytes?: number; memory_used_bytes?: number }
/** A group's files by name; absent ones are undefined. */
export type GroupFiles = Record<string, string | undefined>

/** v1 writes "no limit" as the largest number of pages. */
const NO_LIMIT = 2 ** 60

/** Pure: of one group and of those above it the least. */
export function shareOf(
  version: 'v1' | 'v2',
  groups: { cpu: readonly GroupFiles[]; memory: readonly GroupFiles[] },
): Share {
  const share: Share = {}
  for (const g of groups.cpu) {
    const [quota, period] =
      version === 'v2'
        ? (g['cpu.max'] ?? '').split(' ').map(Number)
        : [num(g['cpu.cfs_quota_us']), num(g['cpu.cfs_period_us'])]
    if (!quota || !period || !(quota > 0)) continue
    // A part of a CPU still runs one virtual CPU.
    share.cpus = Math.min(share.cpus ?? Number.POSITIVE_INFINITY, Math.max(1, Math.round(quota / period)))
  }
  for (const g of groups.memory) {
    const limit = num(g[version === 'v2' ? 'memory.max' : 'memory.limit_in_bytes'])
    if (!(limit < NO_LIMIT) || limit >= (share.memory_bytes ?? NO_LIMIT)) continue
    const used = num(g[version === 'v2' ? 'memory.current' : 'memory.usage_in_bytes'])
    // The page cache that the kernel gives back first is free, as in MemAvailable.
    const cache = num(/^(?:total_)?inactive_file (\d+)$/m.exec(g['memory.stat'] ?? '')?.[1])
    share.memory_bytes = limit
    share.memory_used_bytes = Math.max(0, (used || 0) - (cache || 0))
  }
  return share
}
const num = (text: string | undefined): number => (text === undefined || text.trim() === '' ? Number.NaN : Number(text))

/** Reads it for a group and all above it. Unknown where there is no such group. */
export async function readShare(layout: CgroupLayout, parent: string): Promise<Share> {
  if (layout.version === 'none') return {}
  const roots =
    layout.version === 'v2' ? { cpu: layout.root, memory: layout.root } : { cpu: layout.cpu, memory: layout.memory }
  const files =
    layout.version === 'v2'
      ? { cpu: ['cpu.max'], memory: ['memory.max', 'memory.current', 'memory.stat'] }
      : {
          cpu: ['cpu.cfs_quota_us', 'cpu.cfs_period_us'],
          memory: ['memory.limit_in_bytes', 'memory.usage_in_bytes', 'memory.stat'],
        }
  const read = async (controller: 'cpu' | 'memory') => {
    const groups: GroupFiles[] = []
    for (let at = parent; at !== '.' && at !== '/' && at !== ''; at = dirname(at)) {
      const pairs = files[controller].map(async (name) => [
        name,
        await readFile(`${roots[controller]}/${at}/${name}`, 'utf8').catch(() => undefined),
      ])
      groups.push(Object.fromEntries(await Promise.all(pairs)) as GroupFiles)
    }
    return groups
  }
  return shareOf(layout.version, { cpu: await read('cpu'), memory: await read('memory') })
}
