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

/** Only this says that a process is gone. Anything else, such as no descriptor left to look with, says nothing. */
function gone(error: unknown): undefined {
  const code = (error as NodeJS.ErrnoException).code
  if (code !== 'ENOENT' && code !== 'ESRCH') throw error
}

/** The start time of a living process; undefined when there is none (a zombie is none). @throws when it can't be told */
export function startOf(pid: number): string | undefined {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch (error) {
    return gone(error)
  }
  const parsed = parseStart(text)
  return parsed && parsed.state !== 'Z' && parsed.state !== 'X' ? parsed.start : undefined
}

/** Alive where it can't be told: nothing is ended or tidied away for that. */
export function isAlive(id: ProcessId): boolean {
  try {
    return startOf(id.pid) === id.start
  } catch {
    return true
  }
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

/** Sends a signal to exactly this process; false when it is gone. @throws when it can't be told */
export function signalProcess(id: ProcessId, signal: NodeJS.Signals): boolean {
  if (startOf(id.pid) !== id.start) return false
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
export function processes(wanted: (argv: string[]) => boolean = () => true): Promise<Process[]> {
  const mine = scans.then(() => scan(wanted))
  scans = mine.catch(() => undefined)
  return mine
}

export type Process = ProcessId & { uid: number; argv: string[] }

/** One after the other, and each in parts: descriptors must last for all VMs of a host that are adopted together. */
let scans: Promise<unknown> = Promise.resolve()
const AT_ONCE = 32

async function scan(wanted: (argv: string[]) => boolean): Promise<Process[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number)
  const found: Process[] = []
  for (let i = 0; i < pids.length; i += AT_ONCE) {
    const part = await Promise.all(pids.slice(i, i + AT_ONCE).map((pid) => processAt(pid, wanted)))
    found.push(...part.filter((p) => p !== undefined))
  }
  return found
}

/** What lives at this pid; undefined when nothing does, or nothing that is wanted. @throws when it can't be told */
export async function processAt(
  pid: number,
  wanted: (argv: string[]) => boolean = () => true,
): Promise<Process | undefined> {
  const cmdline = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(gone)
  if (!cmdline) return undefined
  const argv = cmdline.split('\0').slice(0, -1)
  if (!wanted(argv)) return undefined
  const status = await readFile(`/proc/${pid}/status`, 'latin1').catch(gone)
  const uid = status && /^Uid:\s+\d+\s+(\d+)/m.exec(status)?.[1]
  const start = startOf(pid)
  return uid === undefined || start === undefined ? undefined : { pid, start, uid: Number(uid), argv }
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
