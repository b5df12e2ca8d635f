/** A disk of a VM that runs goes to another file of the same host, as the cluster asks a machine for it. */
import type { PoolDefinition, VolumeDefinition, VolumeWork } from './volumes.ts'

export type DiskPlace = { pool: PoolDefinition; volume: VolumeDefinition }
export type DiskCopy = {
  vm: string
  disk: string
  from: DiskPlace
  /** It is there, as large, and the VM's user may write it. What is in it is overwritten. */
  to: DiskPlace
}

/**
 * Every call looks before it acts: done twice, or again after it was cut off, it is done once. What is so is asked of QEMU; where that is
 * gone, the files say it: `from` lies under its name as long as the guest may have written to it alone.
 */
export interface DiskMoves {
  /**
   * Until both files hold the same, and stay so: what the guest writes goes to both. One that is under way is taken up.
   * @throws WadahError `no_room` when the pool of `to` is full; `wrong_state` when the VM does not run (any more)
   */
  copy(move: DiskCopy, work: VolumeWork): Promise<void>
  /** A copying ends, whoever began it; `to` is not open any more, and may be deleted. */
  drop(move: DiskCopy): Promise<void>
  /**
   * The guest goes over to `to`, standing still for a moment. `from` is then put aside: found by nobody, gone with its delete.
   * @returns ms that it stood still, as far as this daemon saw it
   * @throws WadahError with effect `none` as long as the disk is still `from`
   */
  switch(move: DiskCopy): Promise<{ stall_ms?: number }>
  /** After the switch is recorded: `from` is closed. */
  settle(move: DiskCopy): Promise<void>
}
