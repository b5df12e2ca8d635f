/** Units on this machine: written, started, taken away. */
import { existsSync } from 'node:fs'
import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { runProgram } from './process.ts'
import type { Instance } from './instance.ts'
import { unitNames } from './units.ts'

const FOLDER = '/etc/systemd/system'
/** Guests may take minutes to shut down when their unit is stopped. */
const SYSTEMCTL_MS = 180_000

/** sd_booted(3): systemd is what started this machine. */
export const hasSystemd = (): boolean => existsSync('/run/systemd/system')

/** Whether `wadah init` was here: then it is systemd that starts the daemon. */
export const hasUnit = (instance: Instance): boolean =>
  hasSystemd() && existsSync(join(FOLDER, unitNames(instance).daemon))

/** @throws WadahError `tool_failed` with what systemctl said */
export async function systemctl(...argv: string[]): Promise<string> {
  const ran = await runProgram('systemctl', argv, { timeout_ms: SYSTEMCTL_MS })
  if (ran.code === 0) return ran.stdout.trim()
  throw fail('tool_failed', `systemctl ${argv.join(' ')}: ${ran.stderr.trim() || `exit code ${ran.code}`}`, {
    remedy: argv.length > 1 ? `systemctl status ${argv.at(-1)}; journalctl -u ${argv.at(-1)}` : undefined,
    effect: 'unknown',
  })
}

export async function isActive(unit: string): Promise<boolean> {
  return (await runProgram('systemctl', ['is-active', '--quiet', unit], { timeout_ms: 30_000 })).code === 0
}

/** Whole or not at all; false when it says so already. */
export async function writeUnit(name: string, text: string): Promise<boolean> {
  const path = join(FOLDER, name)
  if ((await readFile(path, 'utf8').catch(() => undefined)) === text) return false
  const temporary = `${path}.wadah-new`
  try {
    await writeFile(temporary, text, { mode: 0o644 })
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true })
    const { code } = cause as NodeJS.ErrnoException
    throw fail(code === 'EACCES' ? 'forbidden' : 'tool_failed', `${path} cannot be written (${code})`, {
      remedy: 'sudo wadah init',
      cause,
    })
  }
  return true
}

export async function removeUnit(name: string): Promise<boolean> {
  const path = join(FOLDER, name)
  const there = existsSync(path)
  await rm(path, { force: true })
  return there
}
