/**
 * How many cores are at work: of the machine, or of the share of it that this host has, and of each VM. From how far the kernel's counters
 * of CPU time went on between two looks (proc(5); kernel docs: admin-guide/cgroup-v1/cpuacct.rst, admin-guide/cgroup-v2.rst).
 */
import { readFile } from 'node:fs/promises'
import type { HostLoad } from '@wadah/ports/machine'
import type { Cgroups } from './cgroup.ts'

/** CPU time used so far, ns; undefined: not known. */
export type Used = { at_ns: number; host: number | undefined; vms: ReadonlyMap<string, number> }

/** USER_HZ is 100 on every architecture that QEMU runs KVM on. */
const TICK_NS = 1e7

/** Pure. The first line of /proc/stat: all that was neither idle, nor waiting, nor taken by a hypervisor below. A guest's time is in `user`. */
export function busyOf(stat: string): number | undefined {
  const numbers = /^cpu +(.*)$/m.exec(stat)?.[1]?.split(' ').map(Number)
  if (!numbers || numbers.length < 7 || numbers.some((n) => !Number.isFinite(n))) return undefined
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = numbers
  return (user + nice + system + irq + softirq) * TICK_NS
}

/** Pure. Of a VM that began anew, or of a counter that did, nothing is said. */
export function loadBetween(before: Used, now: Used): HostLoad {
  const span = now.at_ns - before.at_ns
  const cores = (was: number | undefined, is: number | undefined) =>
    was === undefined || is === undefined || is < was || span <= 0 ? undefined : (is - was) / span
  const host = cores(before.host, now.host)
  const vms = [...now.vms].flatMap(([vm, is]) => {
    const c = cores(before.vms.get(vm), is)
    return c === undefined ? [] : [[vm, c] as const]
  })
  return { ...(host === undefined ? {} : { cores: host }), vms: Object.fromEntries(vms) }
}

/** @returns what was used since it was called before; the first time nothing is known */
export function loadMeter(groups: Cgroups): () => Promise<HostLoad> {
  let before: Used | undefined
  return async () => {
    const now = await look(groups)
    const load = before ? loadBetween(before, now) : { vms: {} }
    before = now
    return load
  }
}

async function look(groups: Cgroups): Promise<Used> {
  const vms = (await groups.list()).filter((name) => name.startsWith('vm-'))
  const [share, host, ...used] = await Promise.all([
    groups.share(),
    readFile('/proc/stat', 'utf8').then(busyOf, () => undefined),
    ...[undefined, ...vms].map((vm) => groups.cpuTime(vm)),
  ])
  const [own, ...each] = used
  return {
    at_ns: Number(process.hrtime.bigint()),
    // What has a limit of its own is a machine of its own.
    host: share.cpus === undefined ? host : own,
    vms: new Map(vms.flatMap((vm, i) => (each[i] === undefined ? [] : [[vm, each[i]] as const]))),
  }
}
