/** Templates that were booted and whose RAM was kept, and clones of them. docs/instant-clones.md says why it is done so. */
import type { BootRecord, LaunchRequest } from './machine.ts'

/** What a machine needs to start a clone: kept with the image. */
export type WarmState = {
  boot: BootRecord
  qemu_version: string
  ram_bytes: number
}
/** What the guest part makes of a clone before its network goes up. */
export type Identity = {
  instance_id: string
  hostname: string
  mac: string
  /** With its prefix length. */
  address: string
  gateway: string
  dns: string
  domain?: string
  /** For what is done after the network is up: user, keys, password. */
  seed: Record<string, string>
}
export interface WarmTemplates {
  /** Boots it with the link down, waits for its guest part, saves RAM beside the image, and ends it. From the start, whatever was there. */
  make(image: string, request: LaunchRequest, signal: AbortSignal, log: (line: string) => void): Promise<WarmState>
  /** Removes the saved RAM. Clones that run keep what they have of it. */
  drop(image: string): Promise<void>
  /** Lets the network of a clone that has become itself up. Its names and rules must be in place. */
  connect(vm: string): Promise<void>
  /**
   * True when the VM runs and is itself, with its network. One that runs and is not yet is ended: it and what it wrote can't be used.
   */
  whole(vm: string): Promise<boolean>
}
