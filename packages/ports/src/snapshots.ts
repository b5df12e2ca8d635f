/** Snapshots, as the cluster asks a machine for them: layers that are put on top of disks, saved RAM, layers merged again. */
import type { Consistency, Freeze } from '@wadah/api/schema/snapshot'
import type { BootRecord } from './machine.ts'
import type { PoolDefinition, VolumeDefinition, VolumeWork } from './volumes.ts'

/** A new topmost layer of a disk. Its file is there, empty, and belongs to the VM's user. */
export type NewLayer = { disk: string; pool: PoolDefinition; volume: VolumeDefinition }
export type SnapshotRequest = {
  vm: string
  layers: NewLayer[]
  /** RAM too, into this volume. */
  ram?: { pool: PoolDefinition; volume: { id: string; format: 'raw' } }
  freeze: Freeze
}
export type SnapshotTaken = {
  consistency: Consistency
  /** Why it is not better than it is. */
  note?: string
  /** How long the guest stood still, as QEMU's own clock has it; absent when it ran on. */
  stall_ms?: number
  /** How long its file systems were frozen. */
  frozen_ms?: number
  ram?: { bytes: number; boot: BootRecord; qemu_version: string; save_ms: number }
}

export type MergeRequest = {
  vm: string
  disk: string
  pool: PoolDefinition
  /** The layer that goes, then what it stands on: `chain[1]` takes its content. */
  chain: VolumeDefinition[]
  /** Whether the disk of the VM stands on (or is) the layer that goes. */
  active: boolean
  /** Layers that stand on the one that goes; from now on they stand on `chain[1]`. */
  above: VolumeDefinition[]
  uid: number
}

/** Every call looks before it acts: done twice, or again after it was cut off, it is done once. */
export interface Snapshots {
  /** Puts the layers on top of all disks of a running VM in the same instant. A VM that does not run needs nothing done. */
  take(request: SnapshotRequest, work: VolumeWork): Promise<SnapshotTaken>
  /** Which volume each disk of a running VM writes to now; undefined when it does not run. */
  heads(vm: string): Promise<Record<string, string> | undefined>
  /**
   * Merges a layer into the one below. `paused`: the guest was held at the end so that nothing can be written twice; when the
   * change is recorded, it is to be resumed.
   */
  merge(request: MergeRequest, work: VolumeWork): Promise<{ paused: boolean }>
  /** What the machine keeps beside its disks (UEFI variables), put aside under a snapshot's id; taken back; thrown away. */
  keepState(vm: string, snapshot: string): Promise<void>
  restoreState(vm: string, snapshot: string, uid: number): Promise<void>
  dropState(vm: string, snapshot: string): Promise<void>
  /** The same, to go to another host with its VM: file → base64. */
  readKept(vm: string, snapshot: string): Promise<Record<string, string>>
  /** As another host's daemon says it was; it is flushed. @throws WadahError `invalid` for what no firmware keeps */
  writeKept(vm: string, snapshot: string, state: Record<string, string>): Promise<void>
}
