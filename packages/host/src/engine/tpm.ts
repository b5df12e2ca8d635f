/**
 * TPM 2.0: one swtpm per VM, a process of its own in the VM's group and as the VM's user. QEMU connects to it by a socket in `live/`;
 * its secrets lie in `state/tpm`, made at the first start, and go with the VM, never to a clone.
 */
import { spawn } from 'node:child_process'
import { lchown, lstat, mkdir, readFile, readdir, rename, rm } from 'node:fs/promises'
import { basename } from 'node:path'
import { fail } from '@wadah/api/fault'
import { findProgram } from '../images/run.ts'
import { openRegular, syncDir } from '../system/files.ts'
import { run, toolEnv } from '../system/run.ts'
import { sockets } from './argv.ts'
import type { VmDirectory } from './directory.ts'
import { dropPrivileges, unprotectFromOom } from './launch.ts'
import { lastLines, openLog } from './log-file.ts'
import { type ProcessId, processes, signalProcess, startOf, waitGone } from './process.ts'

export type TpmPrograms = { swtpm: string; setup: string }

export const TPM_REMEDY = 'apt-get install swtpm swtpm-tools'
const SETUP_TIMEOUT_MS = 60_000
const LISTEN_TIMEOUT_MS = 10_000
/** It ends by itself when QEMU is gone; this long it is given. */
const END_MS = 1_000
const KILL_MS = 10_000

export function tpmPrograms(): TpmPrograms | undefined {
  const [swtpm, setup] = [findProgram('swtpm'), findProgram('swtpm_setup')]
  return swtpm === undefined || setup === undefined ? undefined : { swtpm, setup }
}

/** The programs for a VM's start. @throws WadahError `host_lacks` */
export function needTpm(directory: VmDirectory): TpmPrograms {
  const programs = tpmPrograms()
  if (!programs)
    throw fail('host_lacks', 'This host has no swtpm, which is the TPM of VMs.', { field: '/tpm', remedy: TPM_REMEDY })
  if (directory.root.includes(','))
    throw fail('host_lacks', `swtpm takes no path with a comma in it: ${directory.root}`, { field: '/tpm' })
  return programs
}

export const stateOf = (directory: VmDirectory): string => `${directory.state}/tpm`

/** Pure: swtpm's own words. It ends when QEMU lets go of it (`--terminate`). */
export function tpmCommand({ swtpm }: TpmPrograms, directory: VmDirectory): string[] {
  return [
    ...[swtpm, 'socket', '--tpm2', '--terminate', '--seccomp', 'action=kill'],
    ...['--tpmstate', `dir=${stateOf(directory)},mode=0600`],
    ...['--ctrl', `type=unixio,path=${sockets(directory.live).tpm},mode=0600`],
  ]
}

export type TpmOptions = {
  programs: TpmPrograms
  directory: VmDirectory
  /** Null when the daemon is not root. */
  uid: number | null
  /** Puts the process into the VM's group. */
  enter: (pid: number) => Promise<void>
  /** It comes from another host: its state comes with RAM, and it begins with none. */
  arriving?: boolean
  signal: AbortSignal
}

/**
 * Starts the TPM of a VM whose `live/` was made and whose QEMU was not started yet.
 * @throws WadahError `tool_failed` with its last words, `cancelled`; then it does not run
 */
export async function startTpm(o: TpmOptions): Promise<ProcessId> {
  const { directory, uid } = o
  // Of a start that was cut off.
  await endStray(directory)
  await manufacture(o)
  const words = [...(uid === null ? [] : dropPrivileges(uid, [])), ...tpmCommand(o.programs, directory)]
  const log = await openLog(directory.tpmLog)
  let child: ReturnType<typeof spawn>
  try {
    child = spawn(words[0] as string, words.slice(1), {
      detached: true,
      cwd: '/',
      env: toolEnv(),
      stdio: ['ignore', log.fd, log.fd],
    })
  } finally {
    await log.close()
  }
  let ended: string | undefined
  child.once('error', (error) => (ended = error.message))
  child.once('exit', (code, signal) => (ended = signal ? `ended by ${signal}` : `exit code ${code}`))
  child.unref()
  const start = child.pid === undefined ? undefined : startOf(child.pid)
  if (child.pid === undefined || start === undefined) throw await lastWords(directory, ended)
  const id: ProcessId = { pid: child.pid, start }
  try {
    await unprotectFromOom(id.pid)
    await o.enter(id.pid)
    const socket = sockets(directory.live).tpm
    for (const end = performance.now() + LISTEN_TIMEOUT_MS; !(await listens(socket)); ) {
      if (o.signal.aborted) throw fail('cancelled', 'The start was cancelled.', { cause: o.signal.reason })
      if (ended !== undefined || performance.now() > end) throw await lastWords(directory, ended)
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    return id
  } catch (error) {
    await endTpm(id, 0)
    throw error
  }
}

/** Waits for its own end, then ends it. */
export async function endTpm(id: ProcessId, wait_ms = END_MS): Promise<void> {
  if (await waitGone(id, wait_ms)) return
  signalProcess(id, 'SIGKILL')
  if (!(await waitGone(id, KILL_MS)))
    throw fail('tool_failed', `swtpm (process ${id.pid}) does not end even by SIGKILL.`, { effect: 'unknown' })
}

/** The TPM of a VM whose QEMU is gone, also one that a daemon started and had no time to write down. */
export async function endTpmOf(directory: VmDirectory): Promise<void> {
  const live = await directory.readLive()
  if (live?.tpm) return endTpm(live.tpm)
  if ((await directory.readBoot())?.devices.some((d) => d.kind === 'tpm')) await endStray(directory)
}

/** TPMs whose state lies in this folder: a process is one by what it is and by whose state it has. */
export function tpmsWithin(folder: string): Promise<ProcessId[]> {
  return processes(
    (argv) => argv.some((a) => a.includes(folder)) && argv.some((a) => ['swtpm', 'swtpm_setup'].includes(basename(a))),
  )
}

async function endStray(directory: VmDirectory): Promise<void> {
  for (const tpm of await tpmsWithin(stateOf(directory))) await endTpm(tpm, 0)
}

/** A new TPM: its keys are made by swtpm_setup. Beside and whole before it has its name, for half a TPM would never start. */
async function manufacture({ programs, directory, uid, arriving, signal }: TpmOptions): Promise<void> {
  await directory.makeState(uid)
  const state = stateOf(directory)
  if (arriving) {
    await mkdir(state, { mode: 0o700 })
    if (uid !== null) await lchown(state, uid, uid)
    return
  }
  if (await lstat(state).catch(() => undefined)) return
  for (const name of await readdir(directory.state))
    if (name.startsWith('tpm.part')) await rm(`${directory.state}/${name}`, { recursive: true, force: true })
  const part = `${state}.part`
  await mkdir(part, { mode: 0o700 })
  if (uid !== null) await lchown(part, uid, uid)
  const words = [
    ...(uid === null ? [] : dropPrivileges(uid, [])),
    ...[programs.setup, '--tpm2', '--tpmstate', part, '--createek', '--pcr-banks', 'sha256'],
  ]
  await run(words[0] as string, words.slice(1), { timeout_ms: SETUP_TIMEOUT_MS, signal })
  for (const name of await readdir(part)) {
    const file = await openRegular(`${part}/${name}`)
    await file.sync().finally(() => file.close())
  }
  await syncDir(part)
  await rename(part, state)
  await syncDir(directory.state)
}

/** Whether somebody listens there: /proc/net/unix has 00010000 among the flags then (SO_ACCEPTCON; unix(7), proc(5)). */
async function listens(path: string): Promise<boolean> {
  const lines = (await readFile('/proc/net/unix', 'utf8')).split('\n')
  return lines.some((line) => line.endsWith(` ${path}`) && line.split(' ')[3] === '00010000')
}

async function lastWords(directory: VmDirectory, ended: string | undefined): Promise<Error> {
  const last = await lastLines(directory.tpmLog, 2048, 2)
  const what = ended === undefined ? 'did not begin to listen' : `ended at once (${ended})`
  return fail('tool_failed', `The TPM of the VM (swtpm) ${what}${last === '' ? '' : `: ${last}`}`)
}
