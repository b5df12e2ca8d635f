/**
 * What the scheduler is shown: plain data, taken at one moment by the caller. Units: MiB, bytes, bytes per second, ms since 1970; load in
 * cores (1.5 = one and a half CPUs busy).
 */
import type { VmState } from '@wadah/api/schema/vm'

/** `down`: nobody hears of it. `maintenance`: being emptied is over, nothing is put there. `draining`: it is being emptied. */
export type HostState = 'up' | 'down' | 'maintenance' | 'draining'
export type Accelerator = 'kvm' | 'tcg'

/** A measurement, with its moment: one that is old is treated as such, one that is missing as unknown. */
export type Load = { cores: number; at_ms: number }

/** A pool as one host reaches it. A shared pool has the same id on every host that reaches it. */
export type PoolView = {
  id: string
  name: string
  shared: boolean
  /** Where things go on this host unless another is named. */
  usual?: boolean
  /** What may still be promised of it; absent: not known, and then no local disk is copied there. */
  free_bytes?: number
}

export type HostView = {
  id: string
  name: string
  state: HostState
  /** All of its RAM. */
  memory_mib: number
  /** Kept for the host itself. */
  reserved_mib: number
  /** How many times its RAM may be promised; 1 when not said. */
  memory_overcommit?: number
  /**
   * RAM that the host itself says it has promised. Where that is more than the VMs, moves and reservations of the snapshot add up to, the
   * difference stays counted: it knows of something that the snapshot does not.
   */
  promised_mib?: number
  cpus: number
  load?: Load
  pools: readonly PoolView[]
  /** Shared pools that it sees and may not use, by id, and why. */
  pools_refused?: Readonly<Record<string, { detail: string; remedy: string }>>
  /** Ids of the networks that a NIC can be attached to there. */
  networks: readonly string[]
  accelerator: Accelerator
  /** Flags of its CPU, as Linux names them; those of a VM are named the same. */
  cpu_flags: readonly string[]
  /** `7.2.22` */
  qemu_version: string
  /** Versioned machine types that its QEMU knows: `pc-q35-7.2`. Absent: not known, and nothing is refused for it. */
  machine_types?: readonly string[]
  labels: Readonly<Record<string, string>>
  /** Of the link that moves use; absent: taken as `ASSUMED_LINK_BYTES_PER_S`. */
  link_bytes_per_s?: number
}

export type DiskView = {
  /** Id of the pool it lies in. */
  pool: string
  shared: boolean
  /** What a move needs room for when it is local: the size it may grow to. */
  bytes: number
  /** What of it holds something, with what it stands on: that is sent. Absent: not known, and taken as all of it. */
  used_bytes?: number
}

export type VmView = {
  id: string
  name: string
  /** Where its placement says it is; absent: a new one that has no place yet. */
  host?: string
  state: VmState
  /** RAM that is promised to it while it runs. */
  memory_mib: number
  cpus: number
  load?: Load
  disks: readonly DiskView[]
  /** Ids of the networks of its NICs. */
  networks: readonly string[]
  /** The next four: of the running QEMU, whose guest has seen them. Left out for one that does not run, unless it insists. */
  accelerator?: Accelerator
  cpu_flags?: readonly string[]
  machine?: string
  qemu_version?: string
  /** How fast it dirties its RAM, when it was sampled. */
  dirty_bytes_per_s?: number
  labels: Readonly<Record<string, string>>
  /** Names of devices of its host that it was given. */
  passthrough?: readonly string[]
  /** Id of the only host it may be on. */
  pinned?: string
  /** What else keeps it where it is, as the caller knows it: a job that holds it, snapshots inside its disk … */
  held?: { detail: string; remedy: string }
}

/** It counts on both hosts until it ends: nobody knows how it ends. */
export type Move = { vm: string; from: string; to: string }

/** Promised to a job that has not come that far yet: of a VM being made, or one being started. */
export type Reservation = {
  host: string
  vm?: string
  memory_mib: number
  cpus: number
  pools?: Record<string, number>
}

/** Those named, and those that have all of the labels. */
export type Selector = { ids?: readonly string[]; labels?: Readonly<Record<string, string>> }

/**
 * `together`: all on one host. `apart`: no two on one host. `on`, `not_on`: only on, never on these hosts. `strict` is never broken by a
 * decision (what is broken already may stay so); what is not strict is kept where it can be.
 */
export type Rule = { id: string; name: string; strict: boolean; vms: Selector } & (
  | { kind: 'together' | 'apart' }
  | { kind: 'on' | 'not_on'; hosts: Selector }
)

/** How an earlier move ended. */
export type Outcome = { vm: string; from: string; to: string; at_ms: number; ended: 'done' | 'failed' | 'cancelled' }

export type Snapshot = {
  now_ms: number
  hosts: readonly HostView[]
  vms: readonly VmView[]
  moving: readonly Move[]
  reserved: readonly Reservation[]
  rules: readonly Rule[]
  history: readonly Outcome[]
  /** Names of networks, and of pools that no host reaches, by id: for texts only. */
  names?: Readonly<Record<string, string>>
}

/** Whether its QEMU is there and can move while it runs, or is not there at all, or is on its way from one to the other. */
export function lifeOf(state: VmState): 'live' | 'cold' | 'between' {
  switch (state) {
    case 'running':
    case 'paused':
    case 'suspended':
      return 'live'
    case 'stopped':
    case 'absent':
      return 'cold'
    default:
      return 'between'
  }
}

/** The order of ids: by code units, so that it is the same everywhere. */
export function byId(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
