/** What this machine is: CPU, memory, QEMU. Parsing is pure and apart from reading. */
import { readFile, stat } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import { run } from '../system/run.ts'

export function parseCpuinfo(text: string): { model: string; cpus: number; flags: Set<string> } {
  const model = /^model name\s*:\s*(.+)$/m.exec(text)?.[1] ?? /^Model\s*:\s*(.+)$/m.exec(text)?.[1] ?? 'unknown'
  const cpus = [...text.matchAll(/^processor\s*:/gm)].length || 1
  const flags = new Set((/^flags\s*:\s*(.+)$/m.exec(text)?.[1] ?? '').split(' ').filter((f) => f !== ''))
  return { model, cpus, flags }
}

/** kB lines of /proc/meminfo → MiB. */
export function parseMeminfo(text: string): { total_mib: number; available_mib: number } {
  const kb = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0)
  return { total_mib: Math.floor(kb('MemTotal') / 1024), available_mib: Math.floor(kb('MemAvailable') / 1024) }
}

/** `qemu -machine help` → the version that plain `q35` stands for, e.g. `pc-q35-7.2`. */
export function parseMachineHelp(text: string): string | undefined {
  return /^q35\s.*\(alias of (pc-q35-[\d.]+)\)/m.exec(text)?.[1]
}
/** The same → every version of q35 that this QEMU can be. */
export function parseMachineTypes(text: string): string[] {
  return [...text.matchAll(/^(pc-q35-[\d.]+)\s/gm)].map((m) => m[1] as string)
}
export function parseQemuVersion(text: string): string | undefined {
  return /version (\d+\.\d+(?:\.\d+)?)/.exec(text)?.[1]
}

/** `machine`: what a new VM gets; `machines`: what one that comes may have. */
export type QemuFacts = { path: string; version: string; machine: string; machines: string[] }

let cached: { key: string; facts: QemuFacts } | undefined

/** The installed QEMU; asked anew when the binary changed. `host_lacks` when there is none. */
export async function qemuFacts(path: string): Promise<QemuFacts> {
  const binary = await stat(path).catch(() => undefined)
  if (!binary) {
    throw fail('host_lacks', `QEMU is not installed (${path} is not there).`, {
      remedy: 'apt-get install qemu-system-x86 qemu-utils',
    })
  }
  const key = `${path} ${binary.size} ${binary.mtimeMs} ${binary.ino}`
  if (cached?.key === key) return cached.facts
  const options = { timeout_ms: 20_000 }
  const [version, machines] = await Promise.all([
    run(path, ['--version'], options),
    run(path, ['-machine', 'help'], options),
  ])
  const facts = {
    path,
    version: parseQemuVersion(version.stdout),
    machine: parseMachineHelp(machines.stdout),
    machines: parseMachineTypes(machines.stdout),
  }
  if (!facts.version || !facts.machine) {
    throw fail('host_lacks', `${path} does not offer the q35 machine.`, {
      remedy: 'apt-get install --reinstall qemu-system-x86',
    })
  }
  cached = { key, facts: facts as QemuFacts }
  return facts as QemuFacts
}

export async function cpuFacts() {
  return parseCpuinfo(await readFile('/proc/cpuinfo', 'utf8'))
}
export async function memoryFacts() {
  return parseMeminfo(await readFile('/proc/meminfo', 'utf8'))
}

/** What of this host decides whether a guest that runs elsewhere can come. */
export async function guestNeeds(path: string) {
  const [{ version, machines }, { flags }] = await Promise.all([qemuFacts(path), cpuFacts()])
  return { qemu_version: version, machines, cpu_flags: flags }
}
