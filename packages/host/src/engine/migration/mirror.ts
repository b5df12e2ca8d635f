/** Local disks that go over while the guest runs. */
import { fail } from '@wadah/api/fault'
import type { MoveAccepted, MoveProgress } from '@wadah/ports/migration'
import type { RunningVm } from '../running-vm.ts'

export class Mirrors {
  readonly #running: RunningVm
  constructor(running: RunningVm) {
    this.#running = running
  }
  async begin(
    _to: NonNullable<MoveAccepted['exports']>,
    _tls: boolean,
    _tell: { progress(p: MoveProgress): void },
    _signal: AbortSignal,
  ): Promise<void> {
    throw fail('wrong_state', `Local disks of ${this.#running.vm} can't be moved yet.`)
  }
  async end(): Promise<void> {}
  async drop(): Promise<void> {}
}
