/** The CPU that a guest is shown, and what that asks of a host it may go to. */
import type { BootRecord, Running } from '@wadah/ports/machine'

type Shown = Pick<BootRecord, 'accelerator' | 'cpu'>

/** x86-64-v2 beyond QEMU's `qemu64`: as /proc/cpuinfo calls each, and as QEMU does. */
const V2 = [
  ['cx16', 'cx16'],
  ['lahf_lm', 'lahf-lm'],
  ['popcnt', 'popcnt'],
  ['sse4_1', 'sse4.1'],
  ['sse4_2', 'sse4.2'],
  ['ssse3', 'ssse3'],
] as const

/**
 * The CPU model of the pool's baseline. TCG: QEMU's default, richer ones are slower (docs/engine.md). KVM: what every x86-64-v2
 * machine has, so that a VM can move between unlike hosts.
 */
export function baselineCpu(accelerator: 'kvm' | 'tcg', hostFlags: ReadonlySet<string>): BootRecord['cpu'] {
  if (accelerator === 'tcg') return { model: 'qemu64', flags: [] }
  const hasAll = V2.every(([flag]) => hostFlags.has(flag))
  // qemu64 names AMD's svm, which an Intel host lacks.
  return { model: 'qemu64', flags: hasAll ? [...V2.map(([, flag]) => `+${flag}`), '-svm'] : ['-svm'] }
}

/** Flags of /proc/cpuinfo that a host must have for this guest. What TCG gives depends on QEMU's version alone, and an older one is refused. */
export function hostFlagsOf({ accelerator, cpu }: Shown): string[] {
  if (accelerator === 'tcg') return []
  return V2.flatMap(([flag, qemu]) => (cpu.flags.includes(`+${qemu}`) ? [flag] : []))
}

export const flagsLacked = (boot: Shown, hostFlags: ReadonlySet<string>): string[] =>
  hostFlagsOf(boot).filter((flag) => !hostFlags.has(flag))

/** The CPU as its QEMU has really given it. Without `enforce`, which would keep a VM from starting, QEMU leaves out what it can't give. */
export function exactCpu({ model, flags }: BootRecord['cpu'], missing: readonly string[]): BootRecord['cpu'] {
  const off = missing.filter((flag) => !flags.includes(`-${flag}`)).map((flag) => `-${flag}`)
  return { model, flags: [...flags.filter((flag) => !missing.includes(flag.slice(1)) || flag.startsWith('-')), ...off] }
}

/** What this QEMU was asked for and could not give its guest, by QEMU's names. */
export async function notGiven(running: Pick<Running, 'execute'>): Promise<string[]> {
  const [cpu] = (await running.execute('query-cpus-fast')) as { 'qom-path': string }[]
  if (!cpu) return []
  return (await running.execute('qom-get', {
    path: cpu['qom-path'],
    property: 'unavailable-features',
  })) as string[]
}
