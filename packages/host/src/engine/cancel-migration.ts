/** The ways to end a migration of QEMU's own that does not end by itself. */
import type { RunningVm } from './running-vm.ts'

/** Longer than cancelling takes where nothing holds it up. */
const WAKE_MS = 200
const YANK_MS = 500

/**
 * Cuts its connection, out of band: it fails at once. Nothing else reaches QEMU while it writes the last of RAM, for it holds its lock then (7.2,
 * migration_completion). Not with `multifd`: QEMU 7.2 then lets a guest go on without its disks when it had them let go already, and ends.
 */
export async function cutMigration(running: RunningVm): Promise<void> {
  await running.execute('yank', { instances: [{ type: 'migration' }] }, { oob: true })
}

/**
 * Cancels. What it returns is called with what QEMU's migration is, again and again until that has ended: QEMU 7.2 that is cancelled just as it comes
 * to its pause before the switch waits there for ever, its guest with it, for `cancelling` is set between its look and its wait, and only one that was
 * in the pause before is woken (migration.c, migration_maybe_pause). Told to go on, it looks once more.
 */
export async function cancelMigration(running: RunningVm): Promise<(status: string) => Promise<void>> {
  await running.execute('migrate_cancel')
  const begun = performance.now()
  let [told, cut] = [begun, false]
  return async (status) => {
    if (!cut && performance.now() - begun > YANK_MS) {
      cut = true
      // It may have ended meanwhile.
      await cutMigration(running).catch(() => {})
    }
    if (status !== 'cancelling' || performance.now() - told < WAKE_MS) return
    told = performance.now()
    await running.execute('migrate-continue', { state: status }).catch(() => {})
  }
}
