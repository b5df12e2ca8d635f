/** Processes by what the kernel says of them: pid and start time together name one process for ever. */
import { readFile, readdir, stat } from 'node:fs/promises'
import { readFileSync } from 'node:fs'

export type ProcessId = {
  pid: number /** Clock ticks since boot: field 22 of /proc/PID/stat (proc(5)). */
  start: string
}

function parseStart(stat: string): { start: string; state: string } | undefined {
  // The name in parentheses may itself hold parentheses and spaces: count from the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const [state, start] = [fields[0], fields[19]]
  return state && start ? { start, state } : undefined
}

/** The start time of a living process; undefined when there is none (a zombie is none). */
export function startOf(pid: number): string | undefined {
  try {
    const parsed = parseStart(readFileSync(`/proc/${pid}/stat`, 'latin1'))
    return parsed && parsed.state !== 'Z' && parsed.state !== 'X' ? parsed.start : undefined
  } catch {
    return undefined
  }
}

export function isAlive(id: ProcessId): boolean {
  return startOf(id.pid) === id.start
}

/** Waits until a process is gone. Its end cannot be awaited by event when it is no child of ours. */
export async function waitGone(id: ProcessId, timeout_ms: number): Promise<boolean> {
  const end = performance.now() + timeout_ms
  let pause = 2
  while (isAlive(id)) {
    if (performance.now() > end) return false
    await new Promise((resolve) => setTimeout(resolve, pause))
    pause = Math.min(pause * 2, 50)
  }
  return true
}

/** Sends a signal to exactly this process; false when it is gone. */
export function signalProcess(id: ProcessId, signal: NodeJS.Signals): boolean {
  if (!isAlive(id)) return false
  try {
    process.kill(id.pid, signal)
    return true
  } catch {
    return false
  }
}

/**
 * The living processes that `wanted` says by their argv, as `{pid, start, uid, argv}`; those that end while we look are left
 * out. What else there is to know is read only of those: this stands in the way of every start.
 */
export async function processes(
  wanted: (argv: string[]) => boolean = () => true,
): Promise<(ProcessId & { uid: number; argv: string[] })[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  const all = await Promise.all(
    pids.map(async (name) => {
      try {
        const cmdline = await readFile(`/proc/${name}/cmdline`, 'utf8')
        const argv = cmdline.split('\0').slice(0, -1)
        if (cmdline === '' || !wanted(argv)) return undefined
        const status = await readFile(`/proc/${name}/status`, 'latin1')
        const uid = /^Uid:\s+\d+\s+(\d+)/m.exec(status)?.[1]
        const start = startOf(Number(name))
        if (uid === undefined || start === undefined) return undefined
        return { pid: Number(name), start, uid: Number(uid), argv }
      } catch {
        return undefined
      }
    }),
  )
  return all.filter((p) => p !== undefined)
}

/** The QEMU that was started with this directory's pid file as this user. */
export function qemuOf(
  list: Awaited<ReturnType<typeof processes>>,
  directory: string,
  uid: number,
): ProcessId | undefined {
  const pidfile = `${directory}/qemu.pid`
  return list.find((p) => p.uid === uid && p.argv.some((arg, i) => arg === pidfile && p.argv[i - 1] === '-pidfile'))
}

/** Whether the program file of a process is another one than lies at `path` now: an upgrade puts a new file in its place. */
export async function isReplaced(pid: number, path: string): Promise<boolean> {
  // /proc/PID/exe leads to the file itself, also when no name is left of it (proc(5)).
  const [running, installed] = await Promise.all([
    stat(`/proc/${pid}/exe`).catch(() => undefined),
    stat(path).catch(() => undefined),
  ])
  if (!running || !installed) return false
  return running.dev !== installed.dev || running.ino !== installed.ino
}
