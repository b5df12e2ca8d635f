/**
 * What the cluster may ask of one machine. Types only: `host` implements them, `cluster` uses them, tests fake them.
 * Plain data and async iterables, so that the implementation can one day be a small privileged process of its own.
 */
import type { ExecResult, GuestInfo } from '@wadah/api/schema/guest'
import type { DiskMoves } from './disk-moves.ts'
import type { DevicesFound } from './devices.ts'
import type { CheckItem, Host } from '@wadah/api/schema/host'
import type { PausedBy, Service, VmSpec, VmState } from '@wadah/api/schema/vm'
import type { NetworkAttachment, NetworkDefinition, Networks } from './networks.ts'
import type { Images } from './images.ts'
import type { Migration } from './migration.ts'
import type { Snapshots } from './snapshots.ts'
import type { Imports } from './imports.ts'
import type { ByteStream, PoolDefinition, VolumeDefinition, Volumes } from './volumes.ts'
import type { Identity, WarmState, WarmTemplates } from './warm.ts'

/** All a machine needs to know to start a VM; resolved from records by the caller. */
export type LaunchRequest = {
  vm: string
  name: string
  /** Of the placement; kept beside the running QEMU, so that an adopted one can be held against the store. */
  epoch: number
  spec: VmSpec
  /** `chain`: the volume, then what it stands on, down to one without a base. */
  disks: { name: string; chain: VolumeDefinition[]; pool: PoolDefinition }[]
  nics: { name: string; network: NetworkDefinition; attachment: NetworkAttachment }[]
  /** Drives, in their order; `image` is one of kind iso. */
  cdroms?: { name: string; image?: string }[]
  /** Present when `spec.boot.kind` is `kernel`. */
  kernel?: { image: string; cmdline: string; has_initrd: boolean }
  /** Handed to the guest as `opt/wadah/seed`; the password is here and nowhere else. */
  seed: Record<string, string>
  /** For guests with cloud-init: handed over on a small read-only disk instead. */
  cloud_seed?: CloudSeed
  /** Goes on from saved RAM: the machine is exactly the one it was saved from. */
  restore?: { boot: BootRecord; qemu_version: string; pool: PoolDefinition; volume: { id: string; format: 'raw' } }
  /** Becomes the warm template of this image. */
  template?: string
  /** Goes on from the warm template of an image, as somebody else. */
  instant?: WarmState & { image: string; identity: Identity }
}
export type CloudSeed = {
  instance_id: string
  hostname: string
  user?: string
  /** In clear; what the guest gets is its hash. */
  password?: string
  ssh_keys: string[]
  user_data?: string
  nics: { name: string; mac: string }[]
}

/** What the guest sees: portable, versioned, the same on every host it may move to. */
export type BootRecord = {
  schema: 1
  vm: string
  uuid: string
  name: string
  machine: string
  accelerator: 'kvm' | 'tcg'
  cpu: { model: string; flags: string[] }
  cpus: number
  memory: { mib: number; max_mib: number; slots: number }
  firmware: { kind: 'bios' } | { kind: 'uefi'; secure_boot: boolean }
  kernel?: { cmdline: string; has_initrd: boolean }
  devices: BootDevice[]
}
/** A device with its place on the PCI bus; `addr` is slot[.function] in hex as QEMU takes it. */
export type BootDevice =
  | { kind: 'root-port'; id: string; addr: string; chassis: number; multifunction?: boolean }
  | { kind: 'disk'; id: string; bus: string; name: string; volume: string; serial?: string; boot_index?: number }
  | { kind: 'nic'; id: string; bus: string; name: string; mac: string; network: string }
  | { kind: 'cdrom'; id: string; bus: string; name: string; boot_index?: number }
  /** `reporting` false: pages the guest frees are not given back; a shared template could not take them. */
  | { kind: 'balloon'; id: string; bus: string; addr: string; reporting?: false }
  | { kind: 'rng'; id: string; bus: string; addr: string }
  | { kind: 'agent'; id: string; bus: string; addr: string }
  | { kind: 'vga'; id: string; bus: string; addr: string }
  | { kind: 'serial'; id: string; index: number }
  | { kind: 'tpm'; id: string }
  /** Devices of the host; where they are there is not the guest's to know. */
  | { kind: 'hostdev-pci'; id: string; bus: string; name: string }
  | { kind: 'usb-bus'; id: string; bus: string; addr: string }
  | { kind: 'hostdev-usb'; id: string; port: string; name: string }
  /** RAM that came while the guest ran, in a slot of its own. */
  | { kind: 'dimm'; id: string; slot: number; mib: number }
  /** The seed disk of cloud-init. */
  | { kind: 'cloud-seed'; id: string; bus: string; addr: string }
  /** The port of the agent's controller through which a clone is told who it is. */
  | { kind: 'identity'; id: string }

/** What this host does for it: never sent to another. */
export type LocalPlan = {
  uid: number
  epoch: number
  /** 0700, the VM's uid: sockets and what QEMU itself writes. */
  directory: string
  cgroup: string | null
  disks: Record<string, LocalDisk>
  nics: Record<
    string,
    | { kind: 'tap'; ifname: string }
    /** Leads nowhere. */
    | { kind: 'none' }
    | {
        kind: 'user'
        subnet: string
        gateway: string
        address: string
        publish: { protocol: 'tcp' | 'udp'; address: string; port: number; to: number }[]
      }
  >
  kernel?: { kernel: string; initrd?: string }
  /** Drive → file of the CD in it at the start. */
  cdroms?: Record<string, string>
  /** UEFI: the code is everybody's, the variables are the VM's own. */
  firmware?: { code: string; vars: string }
  /** Devices of this host, with the nodes that the VM's user must be able to open. */
  devices?: Record<string, { kind: 'pci'; address: string; node: string } | { kind: 'usb'; node: string }>
  /** Programs that are its TPM. */
  tpm?: { swtpm: string; setup: string }
  tb_size_mib: number | null
  qemu: string
  /** A file with saved RAM to start from. */
  incoming?: string
  /** It comes from another machine by this job: QEMU waits for it. */
  arriving?: { job: string; paused?: true }
  /**
   * A warm template (`share`), or a clone of one: RAM lies in a memory file that it inherits. Its link is down until it is said to be up.
   */
  warm?: { image: string; share: boolean; identity?: Identity }
}
/** `chain[0]` is written; what follows is only read. */
export type LocalDisk = {
  chain: { path: string; format: 'qcow2' | 'raw' }[]
  direct_io: boolean
  limits: { iops?: number; bytes_per_s?: number }
}
export type BootPlan = { record: BootRecord; local: LocalPlan }

export type Observed = {
  vm: string
  state: VmState
  paused_by?: PausedBy
  reason?: string
  pid?: number
  /** When its QEMU was started. */
  started_ms?: number
  epoch?: number
  accelerator?: 'kvm' | 'tcg'
  qemu_version?: string
  machine?: string
  /** Flags of /proc/cpuinfo that its guest was shown, and a host must have that it goes to. */
  cpu_flags?: string[]
  agent?: 'unknown' | 'connected' | 'absent'
  /** The guest ended by itself (its own power-off): it is then wanted stopped. */
  by_guest?: boolean
  at_ms: number
}

export type PauseReason = 'user' | 'job'

/** A running QEMU of this machine. */
export interface Running {
  readonly vm: string
  readonly pid: number
  readonly record: BootRecord
  /** Resolves when it is gone: QMP closed and its pid (with start time) no more. */
  readonly gone: Promise<{ reason: string }>
  /** A raw QMP command, for the few callers that need one (migration). */
  execute(
    command: string,
    args?: Record<string, unknown>,
    options?: { timeout_ms?: number; signal?: AbortSignal },
  ): Promise<unknown>
}

export interface Guest {
  ping(signal: AbortSignal): Promise<void>
  info(signal: AbortSignal): Promise<GuestInfo>
  exec(
    request: { argv: string[]; stdin?: Uint8Array; env?: string[]; timeout_ms: number },
    signal: AbortSignal,
  ): Promise<ExecResult>
  readFile(path: string, signal: AbortSignal): AsyncIterable<Uint8Array>
  writeFile(path: string, data: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void>
  freeze(timeout_s: number, signal: AbortSignal): Promise<number>
  thaw(signal: AbortSignal): Promise<number>
}

/** Cores at work since it was asked before: of the host, and of each VM that ran all the while. Absent: not known. */
export type HostLoad = { cores?: number; vms: Record<string, number> }

export interface Machine {
  facts(): Promise<HostFacts>
  load(): Promise<HostLoad>
  /** What of the facts decides about a VM; asked for at requests, so it starts no program. */
  offers(): Promise<HostOffers>
  /** What this machine has and lacks, looked at anew. */
  inspect(): Promise<CheckItem[]>
  /** PCI and USB devices, looked at anew. */
  devices(): Promise<DevicesFound>
  /** VMs that run another QEMU than the one installed now: of another version, or replaced by an upgrade. */
  outdated(): Promise<{ vm: string; running: string; installed: string }[]>
  /** Another one after every start of the machine; the same when only the daemon was started anew. */
  bootId(): Promise<string>
  /** Looks at this host's directory, cgroup, pid and start time, and asks QMP; never by UUID alone, never a guess. */
  observe(vm: string): Promise<Observed>
  /** Every change of state that was seen, as it is seen. One consumer. */
  observations(signal: AbortSignal): AsyncIterable<Observed>
  /** VMs this machine has a directory for. */
  known(): Promise<string[]>
  /** Of the QEMU that this machine started last, until its end was tidied up: the epoch it was started with. */
  lastEpoch(vm: string): Promise<number | undefined>

  plan(request: LaunchRequest): Promise<BootPlan>
  /** Directory, seed, taps, cgroup; idempotent. */
  prepare(plan: BootPlan, signal: AbortSignal): Promise<void>
  /** Starts QEMU (`fresh`: and lets the guest run). Returns when QEMU runs the guest. If it runs already, returns that. */
  launch(plan: BootPlan, how: 'fresh' | 'paused', signal: AbortSignal): Promise<Running>
  /** Finds a QEMU of this VM that already runs, after a restart of the daemon. */
  attach(vm: string): Promise<Running | undefined>
  running(vm: string): Running | undefined
  /** Takes back what prepare and launch made (never disks): ends QEMU if it is there, taps, cgroup, directory. */
  clean(vm: string): Promise<void>
  /** The same, and its logs and whole directory. */
  forget(vm: string): Promise<void>

  /** Presses the power button. */
  powerDown(vm: string): Promise<void>
  /** Asks the guest agent to power down; rejects with `agent_silent` when there is none. */
  agentPowerDown(vm: string, signal: AbortSignal): Promise<void>
  /** Ends QEMU: `quit`, then SIGKILL when it does not go. Resolves when it is gone. */
  stop(vm: string): Promise<void>
  /** Resolves with the observation once the VM is `stopped`, or undefined after `timeout_ms`. */
  waitStopped(vm: string, timeout_ms: number, signal: AbortSignal): Promise<Observed | undefined>
  reset(vm: string): Promise<void>
  pause(vm: string, by: PauseReason): Promise<void>
  resume(vm: string): Promise<void>

  /**
   * Changes the CD in a drive of a VM that runs; `undefined` takes it out.
   * @throws WadahError `busy` when the guest has locked the drive and `force` is not given
   */
  setMedium(vm: string, cdrom: string, image: string | undefined, force: boolean, signal: AbortSignal): Promise<void>
  /** Puts disks of the request that a running VM lacks into it, as far as ports are free; the names of all that it then has. */
  plugDisks(request: LaunchRequest): Promise<string[]>
  /** Takes a disk out of a running VM; `busy` when the guest does not let go. */
  unplugDisk(vm: string, disk: string): Promise<void>
  /** The same for NICs; what went wrong with one is logged, and it comes at the next start. */
  plugNics(request: LaunchRequest): Promise<string[]>
  /** Takes a NIC out of a running VM, its tap too; `busy` when the guest does not let go. */
  unplugNic(vm: string, nic: string): Promise<void>
  /** Gives a running VM the RAM of the request if that is more and can be had now; the MiB that it then has. */
  growMemory(request: LaunchRequest): Promise<number>
  /** Makes a disk of a VM that runs larger; the guest is told. */
  growDisk(vm: string, disk: string, to_bytes: number, signal: AbortSignal): Promise<void>
  /** What belongs to a VM beside its disks (UEFI variables) goes over to its clone. */
  copyState(from: string, to: string, uid: number): Promise<void>
  /** The same and its TPM, of a VM that does not run, to go to another host: name → base64. */
  readState(vm: string): Promise<Record<string, string>>
  /** As it was read on another host, checked and flushed; what an earlier life of the VM left here goes. @throws WadahError `invalid` */
  writeState(vm: string, state: Record<string, string>, uid: number): Promise<void>
  /** Makes limits hold for a VM that runs. */
  applyLimits(vm: string, spec: VmSpec): Promise<void>
  guest(vm: string): Guest
  /** A raw connection to a serial port or the VNC server of a VM; several may share a serial one. */
  console(vm: string, target: ConsoleTarget): Promise<ConsoleStream>
  /** The picture on its screen, as PNG. */
  screenshot(vm: string, signal: AbortSignal): Promise<Uint8Array>
  /** The end of the serial log. */
  serialLog(vm: string, bytes: number): Promise<{ text: string; size_bytes: number }>
  /** Makes a recipe's health check against the guest, once. */
  check(
    vm: string,
    service: Service,
    target: { address?: string; port?: number },
    signal: AbortSignal,
  ): Promise<{ ok: boolean; detail: string; took_ms: number }>

  readonly snapshots: Snapshots
  readonly migration: Migration
  readonly diskMoves: DiskMoves
  readonly warm: WarmTemplates
  readonly volumes: Volumes
  readonly networks: Networks
  readonly images: Images
  readonly imports: Imports
}

/** `port`: of the serial ones, from 0 on; 0 unless said. */
export type ConsoleTarget = { kind: 'serial' | 'vnc'; port?: number }

export type ConsoleStream = ByteStream

export type HostFacts = Omit<Host, 'id' | 'name' | 'version' | 'promised_memory_mib'>
export type HostOffers = Pick<HostFacts, 'accelerator' | 'qemu_version' | 'firmware' | 'tpm'>
