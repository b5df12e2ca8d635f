import { spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

/** What a finished command left behind. */
export interface Ran {
  stdout: string
  stderr: string
}

export interface RunOptions {
  signal?: AbortSignal | undefined
  cwd?: string | undefined
  env?: Record<string, string> | undefined
  /** Bytes for the command's standard input; without it the command reads end-of-file at once. */
  stdin?: Readable | Uint8Array | undefined
  /** Called with every complete line of stdout and stderr. */
  log?: ((line: string) => void) | undefined
  /** The whole process group is killed after this time. */
  timeout_ms?: number | undefined
}

/** A command that ended badly: not startable, non-zero exit, killed by a signal or by its deadline. */
export class CommandError extends Error {
  readonly argv: readonly string[]
  readonly exitCode: number | null
  declare readonly stdout: string
  declare readonly stderr: string
  readonly timedOut: boolean
  constructor(
    argv: readonly string[],
    how: { exitCode: number | null; signal: string | null; stdout: string; stderr: string; timedOut: boolean },
    cause?: unknown,
  ) {
    const end = how.timedOut ? 'did not end in time' : `ended with ${how.signal ?? `exit code ${how.exitCode}`}`
    super(`${argv[0]} ${end}: ${lastLines(how.stderr || how.stdout, 5)}`, { cause })
    this.name = 'CommandError'
    this.argv = argv
    this.exitCode = how.exitCode
    // For those who look for a reason; not printed with the error.
    Object.defineProperty(this, 'stdout', { value: how.stdout, enumerable: false })
    Object.defineProperty(this, 'stderr', { value: how.stderr, enumerable: false })
    this.timedOut = how.timedOut
  }
}

const KEEP_BYTES = 4 * 1024 * 1024
const DEFAULT_TIMEOUT_MS = 30 * 60_000

/** The last `n` non-empty lines of a text, joined for one line of an error message. */
export function lastLines(text: string, n: number): string {
  return text
    .split('\n')
    .map((l) => l.trim())
    .filter(Boolean)
    .slice(-n)
    .join(' | ')
}

/** Where a program is, or undefined; administrators' folders are searched even when PATH lacks them. */
export function findProgram(name: string): string | undefined {
  const dirs = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/bin', '/bin']
  for (const dir of dirs) {
    if (!dir) continue
    try {
      accessSync(join(dir, name), constants.X_OK)
      return join(dir, name)
    } catch {
      // not here
    }
  }
  return undefined
}

/** The environment builds run in: nothing of ours leaks in but the proxy settings. */
export function cleanEnv(extra: Record<string, string> = {}): Record<string, string> {
  const env: Record<string, string> = {
    PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
    LC_ALL: 'C.UTF-8',
    HOME: '/nonexistent',
    DEBIAN_FRONTEND: 'noninteractive',
  }
  for (const key of ['http_proxy', 'https_proxy', 'no_proxy', 'TMPDIR']) {
    const value = process.env[key]
    if (value) env[key] = value
  }
  return { ...env, ...extra }
}

/**
 * Run one command to its end, in a process group of its own. An abort or the deadline kills the whole group; the
 * death of this process kills the command (setpriv --pdeathsig).
 * @throws {CommandError} unless it exits 0; the signal's reason when aborted.
 */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<Ran> {
  options.signal?.throwIfAborted()
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...argv], {
    cwd: options.cwd,
    env: options.env ?? cleanEnv(),
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let timedOut = false
  const kill = (): void => {
    if (child.pid === undefined) return
    try {
      process.kill(-child.pid, 'SIGKILL')
    } catch {
      // already gone
    }
  }
  const timer = setTimeout(() => {
    timedOut = true
    kill()
  }, options.timeout_ms ?? DEFAULT_TIMEOUT_MS)
  options.signal?.addEventListener('abort', kill, { once: true })
  const out = collect(child.stdout, options.log)
  const err = collect(child.stderr, options.log)
  // A command may end without reading all of its input (EPIPE): its exit code tells what that meant.
  const feed = options.stdin === undefined ? void child.stdin.end() : feedInput(options.stdin, child.stdin)
  try {
    const [exitCode, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, sig) => resolve([code, sig]))
    })
    await feed
    options.signal?.throwIfAborted()
    const how = { exitCode, signal, stdout: out(), stderr: err(), timedOut }
    if (exitCode !== 0) throw new CommandError(argv, how)
    return how
  } finally {
    clearTimeout(timer)
    options.signal?.removeEventListener('abort', kill)
  }
}

async function feedInput(from: Readable | Uint8Array, to: NodeJS.WritableStream): Promise<void> {
  try {
    if (from instanceof Uint8Array) {
      await new Promise<void>((resolve) => {
        to.once('error', () => resolve())
        to.end(from, () => resolve())
      })
    } else await pipeline(from, to)
  } catch {
    // EPIPE, see above
  }
}

function collect(stream: Readable, log: ((line: string) => void) | undefined): () => string {
  let text = ''
  let rest = ''
  stream.setEncoding('utf8')
  stream.on('data', (chunk: string) => {
    // The end of a long output is what explains a failure.
    text = text.length + chunk.length > KEEP_BYTES ? (text + chunk).slice(-KEEP_BYTES / 2) : text + chunk
    if (!log) return
    const lines = (rest + chunk).split('\n')
    rest = (lines.pop() ?? '').slice(-4096)
    for (const line of lines) log(line.trimEnd())
  })
  stream.on('end', () => {
    if (log && rest) log(rest)
  })
  return () => text
}
