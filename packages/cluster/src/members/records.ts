/** What the store keeps of the cluster itself. None of it is on a single host. */
import type { Kind } from '@wadah/store/store'

export type ClusterRecord = {
  schema: 1
  id: string
  created_at: string
  /** What hosts may write: raised by itself when every one of them can (members/versions.ts). */
  level: number
  /** Networks between hosts on which VMs move unencrypted (members/plain.ts). */
  plain_networks?: string[]
  /** The store went back in time; ids of the hosts that have not said yet what runs on them. `id`: of this one recovery. */
  recovery?: { id: string; at: string; waiting: string[] }
}
export const clusterKind: Kind<ClusterRecord> = { name: 'cluster' }
export const CLUSTER = 'cluster'

type Pair = { key: string; cert: string }
/** The keys that sign for hosts and for etcd. Every host of the cluster can read them. */
export type AuthoritiesRecord = { schema: 1; hosts: Pair; etcd: Pair }
export const authoritiesKind: Kind<AuthoritiesRecord> = { name: 'cluster/authorities' }

/** `hash`: SHA-256 of the secret; the secret itself is nowhere. */
export type JoinTokenRecord = {
  schema: 1
  id: string
  hash: string
  created_by: string
  expires_ms: number
  /** The one host that came with it. */
  used_by?: string
}
export const joinTokenKind: Kind<JoinTokenRecord> = { name: 'cluster/join-token' }

/** Bound to a lease that its host keeps: there as long as the host is. */
export type AliveRecord = { schema: 1; host: string; since_ms: number }
export const aliveKind: Kind<AliveRecord> = { name: 'host/alive' }

/** `untried`: it is being tried, and may well pass in a moment. */
export type PoolRefusal = { mounted: string; detail: string; remedy: string; untried?: boolean }

/** What a host can do and has, as it last said itself. */
export type FactsRecord = {
  schema: 1
  version: string
  cpu_model: string
  cpu_flags: string[]
  cpus: number
  memory_mib: number
  memory_free_mib: number
  accelerator: 'kvm' | 'tcg'
  qemu_version: string
  firmware: string[]
  tpm: boolean
  /** Versioned machine types that its QEMU knows. A host of the release before says neither this nor the next. */
  machine_types?: string[]
  /** Whether a VM may come here by post-copy. */
  postcopy?: boolean
  /** Ids of the pools it reaches and of the networks it can give VMs. */
  pools: string[]
  networks: string[]
  /** Of shared pools that it sees and may not use: what was mounted then, and why not. */
  pools_refused?: Record<string, PoolRefusal>
  /** Moves from it, and to it, at a time; absent: an older release wrote this. */
  moves_at_once?: number
  at_ms: number
}
/** What of a host's CPU and QEMU decides which running guests can come there. */
export type GuestFacts = Required<Pick<FactsRecord, 'cpu_flags' | 'machine_types'>>
export const factsKind: Kind<FactsRecord> = { name: 'host/facts' }

/** How busy a host is, and each of its VMs, in cores; as it last found worth saying. */
export type LoadRecord = { schema: 1; cores?: number; vms: Record<string, number>; at_ms: number }
export const loadKind: Kind<LoadRecord> = { name: 'host/load' }

/** The newest level that this release can write; a cluster that begins has it. */
export const LEVEL = 1
/** The oldest one at which it can still work: that of the release before, as long as hosts are upgraded one after the other. */
export const OLDEST_LEVEL = 1
