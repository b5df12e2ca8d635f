/** Post-copy wants a setting of the whole machine (docs/migration.md): for as long as it is tried. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

const USERFAULTS = '/proc/sys/vm/unprivileged_userfaultfd'
let was: string | undefined

/** As often as wanted: others on this machine may take it back. Nothing where the kernel has no such setting. */
export function allowPostcopy(): void {
  if (!existsSync(USERFAULTS)) return
  was ??= readFileSync(USERFAULTS, 'utf8')
  writeFileSync(USERFAULTS, '1\n')
}

/** What it was before. */
export function giveBackPostcopy(): void {
  if (was !== undefined) writeFileSync(USERFAULTS, was)
}
