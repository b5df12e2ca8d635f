import type { Job } from '@wadah/api/schema/job'
import type { Cli } from '../cli.ts'
import { formatTook } from '../text/format.ts'

/** What was done, and for how long a guest stood still for it, if one did. */
export function withStall(cli: Cli, done: string, job: Job): string {
  const { stall_ms } = (job.result ?? {}) as { stall_ms?: number }
  return stall_ms === undefined ? done : `${done}, ${cli.t('snapshot.stalled', { took: formatTook(stall_ms) })}`
}
