/** Builds of other releases, for hosts of a lab. */
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './daemon.ts'
import { ok, run } from './lab.ts'

const folder = join(tmpdir(), `wadah-releases-${process.pid}`)

/** Of the build that is tried. */
export const VERSION = (
  JSON.parse(readFileSync(join(ROOT, 'packages/daemon/package.json'), 'utf8')) as { version: string }
).version

/** The present version with another minor one: `next(1)` is the release after it. */
export function next(releases: number): string {
  const [major, minor, patch] = VERSION.split('.').map(Number) as [number, number, number]
  return `${major}.${minor + releases}.${patch}`
}

/** @param level the newest level of records that it knows; the oldest is 1. @returns the path of its `wadahd`, for `WADAH_DAEMON` */
export async function buildRelease(version: string, level = 1): Promise<string> {
  mkdirSync(folder, { recursive: true })
  const home = join(folder, `${version}-${level}`)
  await ok(run(process.execPath, [join(ROOT, 'scripts/release.ts'), home, version, '1', String(level)]))
  return join(home, 'bin/wadahd')
}

export const dropReleases = (): void => rmSync(folder, { recursive: true, force: true })
