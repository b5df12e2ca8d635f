/** What the store keeps. Every value carries `schema`; unknown fields are kept. Keys are ids; names are index records. */
import type { Image, Volume } from '@wadah/api/schema/storage'
import type { Network } from '@wadah/api/schema/network'
import type { FirewallRule } from '@wadah/api/schema/firewall'
import type { Autostart, PausedBy, Placement, RestartPolicy, VmSpec, VmState, Wanted } from '@wadah/api/schema/vm'
import type { Consistency, SnapshotSchedule } from '@wadah/api/schema/snapshot'
import type { BootRecord } from '@wadah/ports/machine'
import type { Kind } from '@wadah/store/store'

type Named = { schema: 1; id: string; name: string; project: string; created_at: string }

export type VmRecord = Named & {
  description: string
  labels: Record<string, string>
  /** Absent in records of before: not protected, not started with the host. */
  protected?: boolean
  autostart?: Autostart
  /** Absent: `on_failure`. */
  restart?: RestartPolicy
  wanted: Wanted
  spec: VmSpec
  /** The snapshot its disks go on from. */
  at_snapshot?: string
  snapshot_schedule?: SnapshotSchedule
}
export const vmKind: Kind<VmRecord> = { name: 'vm/spec' }

export type PlacementRecord = Placement & { schema: 1 }
export const placementKind: Kind<PlacementRecord> = { name: 'vm/placement' }

/** Written only by the host that runs the VM. */
export type StatusRecord = {
  schema: 1
  state: VmState
  paused_by?: PausedBy
  reason?: string
  since_ms: number
  started_ms?: number
  pid?: number
  accelerator?: 'kvm' | 'tcg'
  qemu_version?: string
  /** This and the next: what a host must have that it goes to while it runs. */
  machine?: string
  cpu_flags?: string[]
  agent?: 'unknown' | 'connected' | 'absent'
  ready_ms?: number
  /** Addresses that its NICs have got from somebody else, as its agent says. */
  inside?: { nic: string; address: string }[]
  /** Its last end was one that nobody asked for: which try in a row the next start is, and when. Kept while it runs, to know the next wait. */
  restart?: { tries: number; at_ms: number }
  /** What the running QEMU was started with, to say what waits for a restart. */
  booted?: {
    cpus: number
    memory_mib: number
    cmdline?: string
    disks: string[]
    nics: string[]
    firmware?: string
    tpm?: boolean
    hostdevs?: string[]
    serial_ports?: number
    cdroms?: string[]
    boot_order?: string[]
  }
}
export const statusKind: Kind<StatusRecord> = { name: 'vm/status' }

/** Whether there is, or may be, a QEMU of it: anything but proof of the contrary. Nothing is known of one without a status. */
export const isLive = (state: VmState | undefined): boolean =>
  state !== undefined && state !== 'stopped' && state !== 'absent'

/** Given to the guest at its start and to nobody else. */
export type SecretRecord = { schema: 1; password?: string; user_data?: string }
export const secretKind: Kind<SecretRecord> = { name: 'vm/secret' }

export type PoolRecord = Named & {
  kind: 'dir'
  path: string
  overcommit: number
  direct_io: boolean
  host: string
  /** Every host has it at the same path: `host` is only who made it. */
  shared?: boolean
  /** What a host finds in it that has the right one. */
  mark?: string
  /** By host: what it had mounted when its locks and caches were tried with another (storage/proven.ts). Absent: of a release that kept none. */
  tried?: Record<string, string>
  /** It is being deleted: nothing new may be put there. */
  closing?: boolean
}
export const poolKind: Kind<PoolRecord> = { name: 'pool' }

export type VolumeRecord = Named &
  Pick<Volume, 'pool' | 'format' | 'size_bytes' | 'base' | 'vm' | 'image' | 'read_only'> & {
    /** Not there yet: a job makes it. */
    making?: boolean
    /** The VM whose edit had it made: until that edit's commit nobody else's. Found so at a start, nobody waits for it any more. */
    added_to?: string
    /** A move of its VM copies it into this pool, which has promised the room (`bytes`, or its size); it is there once the move is committed. */
    moving_to?: { pool: string; job: string; bytes?: number }
    /** Bytes that a job is making it grow to; the pool has promised them. */
    growing_to?: number
    /** What snapshots hold: `layer`: nobody writes it any more, disks stand on it; `ram`. */
    role?: 'layer' | 'ram'
    /** Of a layer: what it takes, for it grows no more. */
    held_bytes?: number
    /** A layer that was merged or given up: its file goes. */
    dropped?: true
  }
export const volumeKind: Kind<VolumeRecord> = { name: 'volume' }

export type SnapshotRecord = Named & {
  vm: string
  description: string
  state: 'making' | 'ready' | 'deleting'
  parent?: string
  scheduled?: true
  consistency?: Consistency
  note?: string
  stall_ms?: number
  frozen_ms?: number
  /** What the VM was. */
  spec: VmSpec
  /** Layers with what its disks held. */
  disks: { name: string; volume: string }[]
  ram?: { volume: string; bytes: number; boot: BootRecord; qemu_version: string; save_ms: number }
}
export const snapshotKind: Kind<SnapshotRecord> = { name: 'snapshot' }

export type ImageRecord = Named &
  Pick<
    Image,
    | 'kind'
    | 'description'
    | 'recipe'
    | 'volume'
    | 'size_bytes'
    | 'cmdline'
    | 'kernel_version'
    | 'min_memory_mib'
    | 'agent'
    | 'service'
    | 'sha256'
    | 'packages'
    | 'more_volumes'
    | 'hardware'
    | 'seed'
    | 'source'
    | 'notes'
  > & {
    /** A job builds it, or its files are not uploaded yet. */
    ready: boolean
    /** Of one without volumes (kernel, iso): where its files are. Absent in records of a single host. */
    host?: string
    has_initrd: boolean
    has_kernel: boolean
    /** Its template, booted and kept; `volume`: what that wrote to its disk. */
    warm?: NonNullable<Image['warm']> & { boot: BootRecord; volume?: string }
  }
export const imageKind: Kind<ImageRecord> = { name: 'image' }

/** Ids of its disks, in order. */
export function imageVolumes(image: Pick<ImageRecord, 'volume' | 'more_volumes'>): string[] {
  return image.volume === undefined ? [] : [image.volume, ...(image.more_volumes ?? [])]
}

/** Besides, what its warm template wrote: everything that disks of VMs may stand on. */
export function imageLayers(image: Pick<ImageRecord, 'volume' | 'more_volumes' | 'warm'>): string[] {
  return [...imageVolumes(image), ...(image.warm?.volume === undefined ? [] : [image.warm.volume])]
}

export type NetworkRecord = Named &
  Pick<Network, 'kind' | 'subnet' | 'gateway' | 'bridge' | 'nic' | 'vlan' | 'domain' | 'host_access'> & {
    /** Of release 0.1.0, and read no more: what each host says of it is `NetworkDownRecord`. */
    state?: 'up' | 'down'
    reason?: string
  }
export const networkKind: Kind<NetworkRecord> = { name: 'network' }

/** `<network>/<host>`: there as long as the network is down on that host, which alone writes it. */
export type NetworkDownRecord = { schema: 1; network: string; host: string; reason?: string }
export const networkDownKind: Kind<NetworkDownRecord> = { name: 'network/down' }

/** Rules name other groups by their ids. */
export type FirewallGroupRecord = Named & { description: string; rules: FirewallRule[] }
export const groupKind: Kind<FirewallGroupRecord> = { name: 'firewall-group' }

/** VMs by labels and by ids; hosts by ids, of `on` and `not-on` only. Ids of what is gone count for nothing. */
export type RuleRecord = Named & {
  kind: 'together' | 'apart' | 'on' | 'not-on'
  strict: boolean
  selector?: string
  vms: string[]
  hosts: string[]
}
export const ruleKind: Kind<RuleRecord> = { name: 'rule' }

export type HostRecord = {
  schema: 1
  id: string
  name: string
  created_at: string
  /** The boot that VMs were last started with, as seen by this store: a copy that was put back has seen none. */
  boot?: { id: string; store: string }
  /** In a cluster: where the others reach it. */
  address?: string
  ports?: HostPorts
  /** Nothing new comes to it. */
  maintenance?: boolean
  /** What a drain took from it, and where to; `pool`: where its local disks lay. */
  drained?: { vm: string; to: string; pool?: string }[]
  /** It runs a member of etcd, or is to. */
  member?: boolean
  /** In a cluster: what it last started with, whether it runs now or not. */
  build?: Build
}
/** A wadahd: its version, and the levels of the cluster's records at which it can work. */
export type Build = { version: string; oldest: number; newest: number }
/** Of one host: peers, etcd's clients, etcd's members among each other. */
export type HostPorts = { peer: number; etcd_client: number; etcd_peer: number }
export const hostKind: Kind<HostRecord> = { name: 'host' }

/** `<what>/<key>` → who holds it: written in the same transaction as the holder, so two can never have the same. */
export type IndexRecord = { schema: 1; holder: string }
export const indexKind: Kind<IndexRecord> = { name: 'index' }

/** What is found by its name. */
export type NamedKind = 'vm' | 'pool' | 'volume' | 'image' | 'network' | 'firewall-group' | 'rule'

export const indexKeys = {
  name: (kind: NamedKind, project: string, name: string) => `name/${kind}/${project}/${name}`,
  snapshot: (vm: string, name: string) => `name/snapshot/${vm}/${name}`,
  uid: (uid: number) => `uid/${uid}`,
  mac: (mac: string) => `mac/${mac}`,
  address: (network: string, address: string) => `address/${network}/${address}`,
  port: (host: string, protocol: string, address: string, port: number) =>
    `port/${host}/${protocol}/${address}/${port}`,
}

/** Which resource of the API a record belongs to, for events; undefined for what clients never see. */
export function resourceOf(kind: string): NamedKind | 'job' | 'snapshot' | undefined {
  switch (kind) {
    case 'vm/spec':
    case 'vm/placement':
    case 'vm/status':
      return 'vm'
    case 'network/down':
      return 'network'
    case 'pool':
    case 'volume':
    case 'image':
    case 'network':
    case 'firewall-group':
    case 'rule':
    case 'job':
    case 'snapshot':
      return kind
    default:
      return undefined
  }
}
