/** Labs of tests. Each is called after the process it belongs to, so that two can be there at once, and one whose test was killed is found. */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from './daemon.ts'

export const LAB = `t${process.pid.toString(36)}`

/** Takes away labs of tests that are no more. */
export function purgeDeadLabs(): void {
  for (const folder of readdirSync('/var/lib')) {
    const [, lab, pid] = /^wadah-lab-(t([0-9a-z]+))$/.exec(folder) ?? []
    if (lab === undefined || existsSync(`/proc/${Number.parseInt(pid as string, 36)}`)) continue
    spawnSync(join(ROOT, 'bin/wadah'), ['lab', 'down', '--lab', lab], { timeout: 120_000 })
  }
}
