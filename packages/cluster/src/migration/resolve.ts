/** After a break: what both QEMUs say they are → what is right. Pure. R1 of the design stands on this table. */
import type { ArrivalState, QemuAnswer } from '@wadah/ports/migration'

export type Resolution =
  /** The guest runs on the target: placement, then the source's QEMU ends. */
  | 'finish'
  /** The source has let go and the target waits: `go`. */
  | 'go'
  /** The source has not let go, or the target never will run it: the guest goes on at the source, the target is undone. */
  | 'take-back'
  /** The target still waits, and the source's guest may still run: the target gives its word first, then `take-back`. */
  | 'undo-target'
  /** There is no QEMU of it any more on either side. */
  | 'lost'
  /** Somebody has to be asked again. */
  | 'ask-again'

/** Migration states from which a QEMU never goes on by itself. */
const LET_GO = new Set(['completed'])
/** Post-copy: the guest's RAM is on both sides; only the target may run it. */
const BETWEEN = new Set(['postcopy-active', 'postcopy-paused', 'postcopy-recover'])

export function resolveMove(source: QemuAnswer, target: ArrivalState): Resolution {
  if (target === 'running' || target === 'committed') return 'finish'
  if (target === 'cannot-tell' || source.is === 'unknown') return 'ask-again'
  const targetNever = target === 'undone' || target === 'unknown'
  if (source.is === 'gone') return targetNever ? 'lost' : 'go'
  // Between the two there is no whole guest on the source any more.
  if (BETWEEN.has(source.migration)) return targetNever ? 'lost' : 'go'
  if (targetNever) return 'take-back'
  return LET_GO.has(source.migration) ? 'go' : 'undo-target'
}
