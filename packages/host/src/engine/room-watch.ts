/** While a VM waits for room in its pool: looks every two seconds, and lets it go on. A file system has no event for it. */
import { statfs } from 'node:fs/promises'
import type { RunningVm } from './running-vm.ts'

const LOOK_MS = 2_000
/** A pool has room again when it has at least this much. */
const ROOM_BYTES = 64 * 1024 * 1024

export class RoomWatch {
  readonly #running: () => Iterable<RunningVm>
  readonly #log: (line: string) => void
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(running: () => Iterable<RunningVm>, log: (line: string) => void) {
    this.#running = running
    this.#log = log
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
  }

  begin(): void {
    if (this.#timer || this.#closed) return
    this.#timer = setTimeout(() => void this.#look(), LOOK_MS).unref()
  }

  async #look(): Promise<void> {
    this.#timer = undefined
    for (const vm of this.#running()) {
      if (!vm.waitsForRoom) continue
      // Held for a moment by whoever changes its disks; its state is what it was.
      if (vm.live.paused_by === 'job') {
        this.begin()
        continue
      }
      const enough = await Promise.all(
        vm.live.pools.map(async (path) => {
          const { bavail, bsize } = await statfs(path)
          return bavail * bsize >= ROOM_BYTES
        }),
      ).catch(() => [false])
      if (enough.every(Boolean)) await vm.resume().catch((error: unknown) => this.#log(`${vm.vm}: ${String(error)}`))
      if (vm.waitsForRoom) this.begin()
    }
  }
}
