/** How long a guest whose RAM is saved may be held in the end, by how the saving goes. Pure. */

/** What QEMU may expect the last part to take, ms, by the number of rounds it has gone through. */
const DOWNTIME_MS = [50, 50, 100, 300, 1000] as const
/** More than any RAM takes: QEMU then holds the guest at once. */
export const UNLIMITED_MS = 2_000_000
/** A guest that must be held for longer than this writes too fast for copies of what it has written since. */
const RESTLESS_MS = 300

export type Saving = {
  /** QEMU's `dirty-sync-count`: 1 in the first round. */
  rounds: number
  sent_bytes: number
  ram_bytes: number
}

/** What was written again is sent again: once as much as all of RAM has gone out, there is an end of it. */
export function patience({ rounds, sent_bytes, ram_bytes }: Saving): number {
  return sent_bytes > ram_bytes ? UNLIMITED_MS : (DOWNTIME_MS[rounds] ?? UNLIMITED_MS)
}

export const isRestless = (saving: Saving): boolean => patience(saving) > RESTLESS_MS

/** How many bytes a guest's RAM may become in a file: all of it twice, what goes out between two looks, its devices. */
export const mostBytes = (ram_bytes: number): number => 2 * ram_bytes + 512 * 2 ** 20
