/** Starting QEMU: spawn without root, into its group, and hear it say that it is there. */
import { spawn } from 'node:child_process'
import { type FileHandle, readFile, writeFile } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import type { BootPlan } from '@wadah/ports/machine'
import { isQmpError } from '@wadah/qmp/errors'
import { type Qmp, connectQmp } from '@wadah/qmp/client'
import { argv, sockets } from './argv.ts'
import { openRegular } from '../system/files.ts'
import { lastLines, openLog, trimLog } from './log-file.ts'
import { type ProcessId, startOf, waitGone } from './process.ts'

/** Its end is noticed at once; a machine on which fifty guests boot at once may let it wait for long. */
const CONNECT_TIMEOUT_MS = 120_000
const KILL_TIMEOUT_MS = 30_000
/** Mapped registers of devices; libvirt leaves as much (qemuDomainGetMemLockLimitBytes). */
const LOCKED_BESIDE_MIB = 1024

export type Spawned = { qemu: ProcessId; qmp: Qmp; exit: Promise<string> }

/** What stands before QEMU in argv: gives up root and everything that could bring it back. */
export function dropPrivileges(uid: number, groups: readonly number[]): string[] {
  return [
    '/usr/bin/setpriv',
    `--reuid=${uid}`,
    `--regid=${uid}`,
    ...(groups.length > 0 ? [`--groups=${groups.join(',')}`] : ['--clear-groups']),
    '--bounding-set=-all',
    '--inh-caps=-all',
    '--no-new-privs',
    '--',
  ]
}

/** A device that reads and writes RAM by itself needs all of it in place: RAM and room for what is mapped beside it, in bytes. */
export function lockedBytes(record: BootPlan['record']): number | undefined {
  if (!record.devices.some((d) => d.kind === 'hostdev-pci')) return undefined
  return (record.memory.max_mib + LOCKED_BESIDE_MIB) * 2 ** 20
}

export type SpawnOptions = {
  plan: BootPlan
  logs: { serial: string; qemu: string }
  /** Null when the daemon is not root: QEMU then has the daemon's own user. */
  uid: number | null
  /** Supplementary groups, e.g. `kvm`. */
  groups: readonly number[]
  /** Called at once after the spawn, before QEMU has done anything of weight. */
  onSpawn(pid: number): Promise<void>
  signal: AbortSignal
  /** A memory file that QEMU inherits as MEMORY_FD. */
  memory?: FileHandle | undefined
}

/**
 * Spawns QEMU, stopped (-S), as a session of its own so that it outlives the daemon.
 * @throws WadahError `qemu_failed` with QEMU's last words, `host_lacks`, `monitor_silent`
 */
export async function spawnQemu(options: SpawnOptions): Promise<Spawned> {
  const { plan, uid } = options
  const qemu = plan.local.qemu
  const locked = lockedBytes(plan.record)
  const words = [
    ...(locked === undefined ? [] : ['/usr/bin/prlimit', `--memlock=${locked}:${locked}`, '--']),
    ...(uid === null ? [] : dropPrivileges(uid, options.groups)),
    ...[qemu, ...argv(plan)],
  ]
  const [serialLog, qemuLog] = await Promise.all([openLog(options.logs.serial), openLog(options.logs.qemu)])
  const ram = plan.local.incoming === undefined ? undefined : await openRegular(plan.local.incoming)
  let child: ReturnType<typeof spawn>
  try {
    child = spawn(words[0] as string, words.slice(1), {
      detached: true,
      cwd: '/',
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', HOME: '/nonexistent' },
      stdio: ['ignore', qemuLog.fd, qemuLog.fd, serialLog.fd, ...memoryFds(ram, options.memory)],
    })
  } finally {
    // The child has its own copies once spawn returned.
    await Promise.all([serialLog.close(), qemuLog.close(), ram?.close()])
  }
  const exit = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('exit', (code, signal) => resolve(signal ? `ended by ${signal}` : `exit code ${code}`))
  })
  child.unref()
  const pid = child.pid
  const start = pid === undefined ? undefined : startOf(pid)
  if (pid === undefined || start === undefined) {
    throw await lastWords(options.logs.qemu, `QEMU could not be started: ${await exit}`)
  }
  const id: ProcessId = { pid, start }
  try {
    await unprotectFromOom(pid)
    await options.onSpawn(pid)
    const qmp = await connectQmp({
      path: sockets(plan.local.directory).monitor,
      connect_timeout_ms: CONNECT_TIMEOUT_MS,
      // It listens long before it has made its machine, and only then speaks.
      greeting_timeout_ms: CONNECT_TIMEOUT_MS,
      gone: exit,
      signal: options.signal,
    })
    return { qemu: id, qmp, exit }
  } catch (error) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It is gone already.
    }
    const how = await Promise.race([exit, waitGone(id, KILL_TIMEOUT_MS).then((gone) => (gone ? exit : undefined))])
    if (how === undefined) {
      throw fail('monitor_silent', `The start failed, and process ${pid} does not end even by SIGKILL.`, {
        effect: 'unknown',
        cause: error,
      })
    }
    if (isQmpError(error, 'aborted')) throw fail('cancelled', 'The start was cancelled.', { cause: error })
    if (how !== 'ended by SIGKILL') throw await lastWords(options.logs.qemu, `QEMU ended at once (${how})`, error)
    if (!isQmpError(error))
      throw fail('qemu_failed', `QEMU could not be started: ${(error as Error).message}`, { cause: error })
    throw fail('monitor_silent', `QEMU did not come up, and was ended: ${error.message}.`, {
      cause: error,
    })
  }
}

/** Descriptors 4 and 5. */
function memoryFds(ram: FileHandle | undefined, memory: FileHandle | undefined): (number | 'ignore')[] {
  if (memory) return [ram?.fd ?? 'ignore', memory.fd]
  return ram ? [ram.fd] : []
}

/** The daemon may be spared by the kernel when memory runs out (`OOMScoreAdjust=`); its guests inherit that, and must not be. */
export async function unprotectFromOom(pid: number): Promise<void> {
  const own = Number(await readFile('/proc/self/oom_score_adj', 'utf8').catch(() => '0'))
  if (own < 0) await writeFile(`/proc/${pid}/oom_score_adj`, '0')
}

/** What QEMU wrote before its end. */
export async function lastWords(log: string, what: string, cause?: unknown): Promise<Error> {
  await trimLog(log)
  const last = await lastLines(log, 4096, 3)
  return fail('qemu_failed', `${what}${last === '' ? '' : `: ${last}`}`, { cause })
}
