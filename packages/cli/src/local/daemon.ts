/** Starts and stops a daemon of this machine. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { clean } from '../text/clean.ts'
import type { Instance } from './instance.ts'
import { hasUnit, systemctl } from './systemd.ts'
import { unitNames } from './units.ts'
import { isDaemon, lookAt, type ProcessFacts, runProgram } from './process.ts'

const START_MS = 60_000
const STOP_MS = 30_000

export type StartOptions = { listen?: string | undefined; config?: string | undefined }

/** Whether a daemon answers on the instance's socket; its version. */
export async function answers(cli: Cli, instance: Instance): Promise<string | undefined> {
  if (!existsSync(instance.socket)) return undefined
  try {
    const api = await cli.api({ socket: instance.socket })
    return (await api.call(endpoints.system.ping, { timeout_ms: 5000 })).version
  } catch {
    return undefined
  }
}

export function daemonArguments(instance: Instance, options: StartOptions): string[] {
  return [
    '--instance',
    instance.name,
    '--data',
    instance.data,
    '--socket',
    instance.socket,
    ...(options.listen === undefined ? [] : ['--listen', options.listen]),
    ...(options.config === undefined ? [] : ['--config', options.config]),
  ]
}

/** Path of the program that starts the daemon. */
export function daemonProgram(cli: Cli): string {
  const program = cli.io.env['WADAH_DAEMON'] || join(cli.io.home, 'bin', 'wadahd')
  if (!existsSync(program)) {
    throw fail('host_lacks', `The daemon's program ${program} is not there`, { remedy: 'make setup' })
  }
  return program
}

/** Starts the daemon apart from this process and waits until it answers. Does nothing when it answers already. */
export async function startDaemon(cli: Cli, instance: Instance, options: StartOptions): Promise<'started' | 'was-up'> {
  if ((await answers(cli, instance)) !== undefined) return 'was-up'
  // Where systemd starts it, a daemon beside the unit would only be in the unit's way.
  if (hasUnit(instance)) {
    await systemctl('start', unitNames(instance).daemon)
    return 'started'
  }
  const running = await findDaemon(instance)
  // It runs but does not answer yet: it may be starting, so it is waited for and no second one started.
  let pid = running?.pid
  let ended: number | null | undefined
  if (pid === undefined) {
    const program = daemonProgram(cli)
    // Passed through by the VMs' own users, read by nobody but the daemon's.
    await mkdir(instance.data, { recursive: true, mode: 0o711 })
    const log = await open(instance.logFile, 'a', 0o600)
    try {
      const [file = program, ...args] = [...(instance.enter ?? []), program, ...daemonArguments(instance, options)]
      const child = spawn(file, args, {
        detached: true,
        stdio: ['ignore', log.fd, log.fd],
        cwd: '/',
      })
      child.once('exit', (code, signal) => {
        ended = signal === null ? code : null
      })
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve)
        child.once('error', (cause) =>
          reject(fail('tool_failed', `${program} could not be started: ${cause.message}`, { cause })),
        )
      })
      child.unref()
      pid = child.pid
    } finally {
      await log.close()
    }
  }
  const deadline = cli.io.now() + START_MS
  for (let wait = 50; ; wait = Math.min(wait * 1.5, 500)) {
    if ((await answers(cli, instance)) !== undefined) return running ? 'was-up' : 'started'
    if (ended !== undefined) {
      throw fail(
        'tool_failed',
        `wadahd ended at once${ended === null ? '' : ` (exit code ${ended})`}:\n${await logTail(instance)}`,
        {
          remedy: `less ${instance.logFile}`,
        },
      )
    }
    if (cli.io.now() > deadline) {
      throw fail(
        'timeout',
        `wadahd (pid ${pid}) runs, but does not answer on ${instance.socket} after ${START_MS / 1000} s:\n${await logTail(instance)}`,
        {
          remedy: `less ${instance.logFile}`,
        },
      )
    }
    await delay(wait, undefined, { signal: cli.signal })
  }
}

async function logTail(instance: Instance): Promise<string> {
  const text = await readFile(instance.logFile, 'utf8').catch(() => '')
  return text
    .trimEnd()
    .split('\n')
    .slice(-8)
    .map((line) => `  | ${clean(line).slice(0, 300)}`)
    .join('\n')
}

/** The daemon named by the pid file, proved by /proc: a stale file may name anybody's process. */
export async function findDaemon(instance: Instance): Promise<ProcessFacts | undefined> {
  const text = await readFile(instance.pidFile, 'utf8').catch(() => '')
  const [pid, start] = (text.match(/\d+/g) ?? []).map(Number)
  if (pid === undefined || pid <= 1) return undefined
  const found = await lookAt(pid)
  if (!found || !isDaemon(found, instance)) return undefined
  // A second number in the file is the start time that it wrote itself.
  if (start !== undefined && start !== found.start_ticks) return undefined
  return found
}

/** Asks the daemon to end and waits until it has. VMs are processes of their own and run on. */
export async function stopDaemon(cli: Cli, instance: Instance): Promise<'stopped' | 'was-down'> {
  const found = await findDaemon(instance)
  if (!found) {
    if ((await answers(cli, instance)) === undefined) return 'was-down'
    throw fail(
      'wrong_state',
      `A daemon answers on ${instance.socket}, but ${instance.pidFile} does not name it: it was not started by \`wadah up\``,
      {
        remedy: 'systemctl stop wadahd',
      },
    )
  }
  try {
    process.kill(found.pid, 'SIGTERM')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EPERM') {
      throw fail('forbidden', `wadahd (pid ${found.pid}) belongs to another user`, { remedy: 'sudo wadah down', cause })
    }
    if ((cause as NodeJS.ErrnoException).code !== 'ESRCH') throw cause
  }
  const deadline = cli.io.now() + STOP_MS
  while ((await lookAt(found.pid))?.start_ticks === found.start_ticks) {
    if (cli.io.now() > deadline) {
      throw fail('timeout', `wadahd (pid ${found.pid}) did not end within ${STOP_MS / 1000} s`, {
        remedy: `less ${instance.logFile}; as a last resort: kill -9 ${found.pid} (VMs run on)`,
      })
    }
    await delay(50)
  }
  return 'stopped'
}

/** Lets the daemon's own program remove by force what the instance left on this machine. Returns what it said. */
export async function purge(cli: Cli, instance: Instance): Promise<{ ok: boolean; detail: string }> {
  const args = [...daemonArguments(instance, {}), '--purge']
  const [file = '', ...rest] = [...(instance.enter ?? []), daemonProgram(cli), ...args]
  const ran = await runProgram(file, rest, { timeout_ms: 120_000 })
  return { ok: ran.code === 0, detail: `${ran.stdout}\n${ran.stderr}`.trim() }
}
