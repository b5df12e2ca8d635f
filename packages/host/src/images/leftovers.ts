import { mkdtemp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './run.ts'
import { startTime } from './sandbox.ts'

const PREFIX = 'build-'

/** A folder of its own for one build, gone when disposed. */
export async function openWork(workDir: string): Promise<{ dir: string; [Symbol.asyncDispose](): Promise<void> }> {
  await mkdir(workDir, { recursive: true })
  const dir = await mkdtemp(join(workDir, PREFIX))
  await writeFile(join(dir, 'owner'), `${process.pid} ${await startTime(process.pid)}\n`)
  return { dir, [Symbol.asyncDispose]: () => remove(dir) }
}

/**
 * Remove what builds left that died with their process: folders, and processes should one still be about. Mounts need
 * no care: they were in namespaces that ended with the build. Builds whose process is alive are left alone.
 * @returns the folders removed
 */
export async function cleanBuildLeftovers(workDir: string): Promise<string[]> {
  const removed: string[] = []
  for (const name of await readdir(workDir).catch(() => [])) {
    if (!name.startsWith(PREFIX)) continue
    const dir = join(workDir, name)
    if (await alive(join(dir, 'owner'))) continue
    const holder = await alive(join(dir, 'holder'))
    if (holder) {
      try {
        process.kill(holder, 'SIGKILL')
      } catch {
        // ended meanwhile
      }
    }
    await remove(dir)
    removed.push(dir)
  }
  return removed
}

/** The process named in a file of "pid start-time", if it is that very one and still runs. */
async function alive(file: string): Promise<number | undefined> {
  const [pid, started] = (await readFile(file, 'utf8').catch(() => '')).trim().split(' ')
  if (!pid || !started) return undefined
  return (await startTime(Number(pid))) === started ? Number(pid) : undefined
}

async function remove(dir: string): Promise<void> {
  try {
    await rm(dir, { recursive: true, force: true })
  } catch (error) {
    // A tree made by an ordinary user holds files of its subordinate ids, which only its user namespace may remove.
    if (process.getuid?.() === 0) throw error
    await run(['unshare', '--user', '--map-root-user', '--map-auto', '--', 'rm', '-rf', '--', dir], {
      timeout_ms: 300_000,
    })
  }
}
