/** After a break: what both QEMUs say they are → what is right. Pure. R1 of the design stands on this table. */
import type { ArrivalState, MoveLimits, MoveMode, QemuAnswer } from '@wadah/ports/migration'

export type Resolution =
  /** The guest runs on the target: placement, then the source's QEMU ends. */
  | 'finish'
  /** The source has let go and the target waits: `go`. */
  | 'go'
  /** The source has not let go, or the target gave its word that it never ran it: the guest goes on at the source. */
  | 'take-back'
  /** The target still waits, and the source's guest may still run: the target gives its word first, then `take-back`. */
  | 'undo-target'
  /** No QEMU has the guest whole any more; what is left of it on the source must not run: the disks may be further than its RAM. */
  | 'lost'
  /** Somebody has to be asked again. */
  | 'ask-again'

/** Whether a move may leave RAM on both sides for a while. */
export const mayGoPostcopy = ({
  mode,
  limits,
}: {
  mode: MoveMode
  limits: Pick<MoveLimits, 'may_postcopy'>
}): boolean => mode === 'postcopy' || mode === 'hybrid' || (mode === 'auto' && limits.may_postcopy === true)

/** Migration states from which a QEMU never goes on by itself. */
const LET_GO = new Set(['completed'])
/** Post-copy: the guest's RAM is on both sides; only the target may run it. */
const BETWEEN = new Set(['postcopy-active', 'postcopy-paused', 'postcopy-recover'])

export function resolveMove(source: QemuAnswer, target: ArrivalState): Resolution {
  if (target === 'running' || target === 'committed') return 'finish'
  if (source.is === 'unknown') return 'ask-again'
  if (source.is === 'gone') {
    if (target === 'cannot-tell') return 'ask-again'
    return target === 'waiting' ? 'go' : 'lost'
  }
  const isBetween = BETWEEN.has(source.migration)
  // One that was taken back stays `completed`, and runs: QEMU never does that by itself.
  const hasLetGo = isBetween || (LET_GO.has(source.migration) && source.status !== 'running')
  // Only one that has let go can have said `go`: whatever the target is, it will not run.
  if (!hasLetGo) return target === 'waiting' ? 'undo-target' : 'take-back'
  if (target === 'cannot-tell') return 'ask-again'
  if (target === 'waiting') return 'go'
  if (isBetween) return 'lost'
  // `unknown`: no QEMU is there and nobody remembers. It may have run, written to the disks, and ended with its host.
  return target === 'undone' ? 'take-back' : 'lost'
}
