/** How busy a host is taken to be: what was measured, where it was, and prudence where it was not. */
import type { HostView, Load, VmView } from './snapshot.ts'
import { lifeOf } from './snapshot.ts'

/** A measurement older than this says what was, not what is. */
export const STALE_AFTER_MS = 5 * 60_000
/** What a vCPU is taken to use when nobody has measured it. */
export const ASSUMED_VCPU_USE = 0.5
/** What a stopped VM's RAM weighs beside that of one that runs: it may be started. */
export const STOPPED_WEIGHT = 0.25
/** How much the mean of memory and CPU weighs beside the fuller of the two: it tells apart hosts that are equally full in that one. */
const MEAN_WEIGHT = 0.1

export type Freshness = 'measured' | 'stale' | 'unknown'

export function freshness(load: Load | undefined, now_ms: number): Freshness {
  if (load === undefined || !Number.isFinite(load.cores) || load.cores < 0) return 'unknown'
  return now_ms - load.at_ms > STALE_AFTER_MS ? 'stale' : 'measured'
}

/** Cores that a VM will use where it runs; 0 for one that does not run. */
export function expectedCores(vm: VmView, live: boolean, now_ms: number): number {
  if (!live) return 0
  const assumed = vm.cpus * ASSUMED_VCPU_USE
  // What a stopped VM used when it last ran says little about the next time.
  const fresh = lifeOf(vm.state) === 'cold' ? 'unknown' : freshness(vm.load, now_ms)
  if (fresh === 'unknown') return assumed
  const measured = Math.min(vm.load?.cores ?? 0, vm.cpus)
  return fresh === 'stale' ? Math.max(measured, assumed) : measured
}

/**
 * Cores in use on a host. Unknown: at least half of it, and every vCPU there at full use; stale: what was measured, and no less than its
 * vCPUs suggest. @param vcpus of the VMs that run there
 */
export function hostCores(host: HostView, vcpus: number, now_ms: number): number {
  const within = (cores: number) => Math.min(host.cpus, cores)
  switch (freshness(host.load, now_ms)) {
    case 'measured':
      return host.load?.cores ?? 0
    case 'stale':
      return Math.max(host.load?.cores ?? 0, within(vcpus * ASSUMED_VCPU_USE))
    case 'unknown':
      return Math.max(host.cpus / 2, within(vcpus))
  }
}

/** One number for how full a host is, less is better. @param memory share of its RAM, @param cpu share of its cores */
export function fullness(memory: number, cpu: number): number {
  return Math.max(memory, cpu) + (MEAN_WEIGHT * (memory + cpu)) / 2
}
