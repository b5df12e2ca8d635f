/** Programs run for a short answer, and processes looked at through /proc. */
import { execFile } from 'node:child_process'
import { readFile, readlink } from 'node:fs/promises'
import { access } from 'node:fs/promises'
import { constants } from 'node:fs'
import { basename, join } from 'node:path'

export type Ran = { code: number; stdout: string; stderr: string }

/** Runs a program to its end; a deadline or a signal ends it (code -1). Never rejects for what the program did. */
export async function runProgram(
  file: string,
  args: string[],
  options: {
    signal?: AbortSignal
    timeout_ms: number
    env?: Record<string, string | undefined>
    cwd?: string
    input?: string
  },
): Promise<Ran> {
  return await new Promise((resolve) => {
    const child = execFile(
      file,
      args,
      {
        timeout: options.timeout_ms,
        killSignal: 'SIGKILL',
        maxBuffer: 4 * 2 ** 20,
        encoding: 'utf8',
        ...(options.signal ? { signal: options.signal } : {}),
        ...(options.env ? { env: options.env as NodeJS.ProcessEnv } : {}),
        ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
        resolve({ code, stdout, stderr: stderr || (code === -1 && error ? error.message : '') })
      },
    )
    child.stdin?.on('error', () => {})
    child.stdin?.end(options.input ?? '')
  })
}

/** Whether a program is on PATH. */
export async function hasProgram(name: string, path = process.env['PATH'] ?? ''): Promise<boolean> {
  for (const folder of path.split(':').filter((f) => f !== '')) {
    try {
      await access(join(folder, name), constants.X_OK)
      return true
    } catch {
      // Not in this folder.
    }
  }
  return false
}

export type ProcessFacts = { pid: number; exe: string; argv: string[]; start_ticks: number }

/** What /proc says of a process; undefined when there is none. `start_ticks` tells two processes of one pid apart (proc(5), field 22). */
export async function lookAt(pid: number): Promise<ProcessFacts | undefined> {
  try {
    const [stat, cmdline, exe] = await Promise.all([
      readFile(`/proc/${pid}/stat`, 'utf8'),
      readFile(`/proc/${pid}/cmdline`, 'utf8'),
      readlink(`/proc/${pid}/exe`).catch(() => ''),
    ])
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields[0] === 'Z') return undefined
    return { pid, exe, argv: cmdline.split('\0').slice(0, -1), start_ticks: Number(fields[19]) }
  } catch {
    return undefined
  }
}

/** Whether a process is the daemon of this socket: run by Node, our program, our socket or instance among its arguments. */
export function isDaemon(p: ProcessFacts, instance: { name: string; socket: string }): boolean {
  const program = p.argv.find((a) => /(^|\/)(wadahd(\.mjs)?|daemon\/(dist|src)\/main\.[jt]s)$/.test(a))
  if (!program || !basename(p.exe).startsWith('node')) return false
  const socket = valueOf(p.argv, '--socket')
  if (socket !== undefined) return socket === instance.socket
  return (valueOf(p.argv, '--instance') ?? 'default') === instance.name
}

function valueOf(argv: string[], option: string): string | undefined {
  const at = argv.indexOf(option)
  if (at >= 0) return argv[at + 1]
  return argv.find((a) => a.startsWith(`${option}=`))?.slice(option.length + 1)
}
