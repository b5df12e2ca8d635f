/**
 * Places in a move, of a VM or of a disk under it, at which a test may hold the daemon, to kill or cut something at exactly that moment (tests/faults/moves, tests/e2e/volume-move.test.ts). Off unless the
 * daemon was started with WADAH_PAUSE_POINTS=FOLDER: then one costs nothing but a comparison. With it, a daemon that comes to the point NAME and
 * finds FOLDER/NAME.stop writes FOLDER/NAME.here and stands there until the first is removed.
 */
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const LOOK_MS = 10
/** Nobody stands for ever for a test that was killed. */
const MOST_MS = 600_000

let folder: string | undefined

/** Said once, by whoever reads the environment. */
export function usePausePoints(dir: string | undefined): void {
  folder = dir
}

/** Undefined, at once, when nobody asked for it: `await` it only when it is something. */
export function pausePoint(name: string): Promise<void> | undefined {
  return folder === undefined ? undefined : stand(join(folder, name))
}

async function stand(path: string): Promise<void> {
  if (!existsSync(`${path}.stop`)) return
  writeFileSync(`${path}.here`, String(process.pid))
  for (const end = performance.now() + MOST_MS; existsSync(`${path}.stop`) && performance.now() < end; )
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  rmSync(`${path}.here`, { force: true })
}
