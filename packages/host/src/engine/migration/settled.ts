/** One move right after another: what the first set in QEMU is taken back a moment after its job has ended. */
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { LiveRecord } from '../directory.ts'

const SETTLE_MS = 5_000
const LOOK_MS = 20

/**
 * Resolves once nothing of another move is noted of this QEMU.
 * @throws WadahError `busy` when that is not so within `most_ms`; the signal's reason
 */
export async function settled(
  live: Pick<LiveRecord, 'moving'>,
  signal: AbortSignal,
  most_ms = SETTLE_MS,
): Promise<void> {
  const end_ms = performance.now() + most_ms
  for (;;) {
    signal.throwIfAborted()
    const { moving } = live
    if (!moving) return
    if (performance.now() >= end_ms)
      throw fail('busy', `It is on its way already (${moving.job}).`, { remedy: `wadah job show ${moving.job}` })
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined)
  }
}
