/** What a VM that comes from another machine is here. Pure. */
import { fail } from '@wadah/api/fault'
import { olderQemu } from '@wadah/api/qemu-version'
import type { BootDevice, BootPlan, BootRecord } from '@wadah/ports/machine'
import type { MoveFacts } from '@wadah/ports/migration'
import { flagsLacked } from '../cpu.ts'

/** What of this host decides about a VM that comes. */
export type Here = {
  qemu_version: string
  /** Versioned machine types that its QEMU knows. */
  machines: readonly string[]
  /** From /proc/cpuinfo. */
  cpu_flags: ReadonlySet<string>
}

const WORD = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/
const FLAG = /^[+-][a-zA-Z0-9_.-]{1,63}$/
const PCI = /^0x[0-9a-f]{1,2}(\.0x[0-7])?$/
const SERIAL = /^[\w.-]{1,36}$/
const MACHINE = /^pc-q35-\d{1,2}\.\d{1,2}$/
/** Of the fields of a device, those that are text, and what they may be. Anything else does not come over. */
const TEXTS: Record<string, RegExp> = {
  id: WORD,
  bus: WORD,
  addr: PCI,
  name: WORD,
  volume: WORD,
  network: WORD,
  mac: /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/,
  serial: SERIAL,
}
const NUMBERS = new Set(['chassis', 'boot_index', 'index', 'slot', 'mib'])
const SWITCHES = new Set(['multifunction', 'reporting'])
const KINDS = new Set<BootDevice['kind']>([
  'root-port',
  'disk',
  'nic',
  'cdrom',
  'balloon',
  'rng',
  'agent',
  'vga',
  'serial',
  'dimm',
  'cloud-seed',
  'identity',
  'tpm',
])

/** Why a VM with this record can't be moved while it runs; undefined when it can. */
export function immovable(record: BootRecord): string | undefined {
  const has = (kind: BootDevice['kind']) => record.devices.some((d) => d.kind === kind)
  if (has('hostdev-pci') || has('hostdev-usb')) return 'it has devices of its host'
  return undefined
}

/**
 * The machine that the source has, with what this host does for it. The peer is another daemon of the cluster, and its host may be in
 * somebody else's hands: only fields that are known are taken, each held against what it may be, and whatever chooses a disk, a
 * network or a file is this host's own.
 * @throws WadahError `wrong_state` that names what differs, `host_lacks`, `invalid`
 */
export function arrivingPlan(
  plan: BootPlan,
  from: { boot: BootRecord; qemu_version: string; paused?: true },
  here: Here,
  job: string,
): BootPlan {
  const boot = takenOver(from.boot)
  const own = plan.record
  const refuse = (what: string, remedy = 'choose another host: wadah host list') =>
    fail('wrong_state', `It can't come here: ${what}.`, { remedy, retryable: false })
  const restartFirst = `restart it first: wadah vm shutdown ${own.name}, then wadah vm start ${own.name}`
  const why = immovable(boot) ?? immovable(own)
  if (why !== undefined) throw refuse(why, 'wadah vm shutdown NAME, then move it')
  if (boot.vm !== own.vm || boot.uuid !== own.uuid) throw refuse('it is another VM than the one that was promised')
  if (boot.accelerator !== own.accelerator)
    throw refuse(`it runs under ${boot.accelerator.toUpperCase()}, and this host has ${own.accelerator.toUpperCase()}`)
  if (olderQemu(here.qemu_version, from.qemu_version))
    throw fail(
      'host_lacks',
      `It runs on QEMU ${from.qemu_version}, and this host has the older ${here.qemu_version}.`,
      {
        remedy: 'upgrade QEMU here, or choose another host: wadah host list',
      },
    )
  if (!here.machines.includes(boot.machine))
    throw fail('host_lacks', `It is a ${boot.machine}, which QEMU ${here.qemu_version} of this host does not know.`, {
      remedy: `choose another host: wadah host list; or wadah vm shutdown ${own.name}, then move it`,
    })
  const flags = flagsLacked(boot, here.cpu_flags)
  if (flags.length > 0) throw cpuLacks(own.name, flags)
  if (JSON.stringify(boot.firmware) !== JSON.stringify(own.firmware))
    throw refuse('its firmware is to change at the next start', restartFirst)
  for (const kind of ['disk', 'nic', 'cdrom', 'tpm'] as const) {
    const [there, wanted] = [places(boot, kind), places(own, kind)]
    if (there !== wanted)
      throw refuse(
        `the guest has the ${kind}s ${there || 'none'}, and its record says ${wanted || 'none'}`,
        'a change waits for a restart (wadah vm show NAME): restart it first',
      )
  }
  if ((boot.kernel === undefined) !== (own.kernel === undefined) || boot.kernel?.has_initrd !== own.kernel?.has_initrd)
    throw refuse('how it boots is to change at the next start', restartFirst)
  return {
    record: { ...boot, name: own.name },
    local: { ...plan.local, arriving: { job, ...(from.paused ? { paused: true } : {}) } },
  }
}

/**
 * What this host's QEMU, which waits for the guest, could not give of the CPU that the guest has. Nothing was begun yet. A source of the
 * release before says what it asked of its QEMU, not what it got: against that nothing can be held.
 * @throws WadahError `host_lacks`
 */
export function judgeGiven(name: string, missing: readonly string[], from: Pick<MoveFacts, 'cpu_exact'>): void {
  if (missing.length > 0 && from.cpu_exact) throw cpuLacks(name, missing)
}

const cpuLacks = (name: string, flags: readonly string[]) =>
  fail('host_lacks', `Its guest was shown CPU flags that this host lacks: ${flags.toSorted().join(', ')}.`, {
    remedy: `choose a host that has them: wadah host list; or wadah vm shutdown ${name}, then move it`,
  })

/** What identifies devices of a kind: the cluster's records on both sides must mean the same. */
function places(record: BootRecord, kind: 'disk' | 'nic' | 'cdrom' | 'tpm'): string {
  return record.devices
    .flatMap((d) => {
      if (d.kind !== kind) return []
      if (d.kind === 'tpm') return [d.id]
      // What the guest sees of it; a snapshot has put other files below since.
      if (d.kind === 'disk') return [`${d.name} (${d.serial ?? d.volume})`]
      return [d.kind === 'nic' ? `${d.name} (${d.mac}, ${d.network})` : d.name]
    })
    .sort()
    .join(', ')
}

/** The record with known fields only. @throws WadahError `invalid` that names the first one that can't be */
function takenOver(from: BootRecord): BootRecord {
  const wrong = (field: string) =>
    fail('invalid', `The other host says of this VM what can't be (${field}).`, {
      field,
      remedy: 'are both of one release?',
    })
  const text = (value: unknown, is: RegExp, field: string): string => {
    if (typeof value !== 'string' || !is.test(value)) throw wrong(field)
    return value
  }
  const number = (value: unknown, field: string): number => {
    if (!Number.isSafeInteger(value) || (value as number) < 0) throw wrong(field)
    return value as number
  }
  const device = (d: BootDevice, i: number): BootDevice => {
    if (!KINDS.has(d?.kind)) throw wrong(`/devices/${i}/kind`)
    const out: Record<string, unknown> = { kind: d.kind }
    for (const [name, value] of Object.entries(d)) {
      const field = `/devices/${i}/${name}`
      const is = TEXTS[name]
      if (is) out[name] = text(value, is, field)
      else if (NUMBERS.has(name)) out[name] = number(value, field)
      else if (SWITCHES.has(name) && typeof value === 'boolean') out[name] = value
    }
    if (typeof out['id'] !== 'string') throw wrong(`/devices/${i}/id`)
    return out as BootDevice
  }
  if (from?.schema !== 1 || !Array.isArray(from.devices) || from.devices.length > 512) throw wrong('/schema')
  const { memory, firmware, cpu, kernel } = from
  return {
    schema: 1,
    vm: text(from.vm, WORD, '/vm'),
    uuid: text(from.uuid, /^[0-9a-f-]{36}$/, '/uuid'),
    name: text(from.name, WORD, '/name'),
    machine: text(from.machine, MACHINE, '/machine'),
    accelerator: text(from.accelerator, /^(kvm|tcg)$/, '/accelerator') as 'kvm' | 'tcg',
    cpu: {
      model: text(cpu?.model, WORD, '/cpu/model'),
      flags: (Array.isArray(cpu.flags) ? cpu.flags : []).map((f) => text(f, FLAG, '/cpu/flags')),
    },
    cpus: number(from.cpus, '/cpus'),
    memory: {
      mib: number(memory?.mib, '/memory/mib'),
      max_mib: number(memory?.max_mib, '/memory/max_mib'),
      slots: number(memory?.slots, '/memory/slots'),
    },
    firmware:
      firmware?.kind === 'uefi' ? { kind: 'uefi', secure_boot: firmware.secure_boot === true } : { kind: 'bios' },
    ...(kernel
      ? {
          kernel: {
            cmdline: text(kernel.cmdline, /^[^\0\n\r]{0,4096}$/, '/kernel/cmdline'),
            has_initrd: kernel.has_initrd === true,
          },
        }
      : {}),
    devices: from.devices.map(device),
  }
}
