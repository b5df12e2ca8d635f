/**
 * A member of etcd on this machine: a process of its own user that outlives the daemon. It is known by its command line, which
 * names a folder that is only ours.
 */
import { spawn } from 'node:child_process'
import { chmod, lchown, lstat, mkdir, open, readdir, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import {
  isAlive,
  type Process,
  type ProcessId,
  processes,
  signalProcess,
  startOf,
  waitGone,
} from '../engine/process.ts'
import { missingProgram } from '../system/run.ts'

export type MemberPlan = {
  /** `data`, and its log; certificates lie in `tls`. */
  directory: string
  tls: string
  name: string
  address: string
  client_port: number
  peer_port: number
  /** `name=url,…` of all members, this one among them. */
  initial_cluster: string
  /** `existing`: it joins members that are there. */
  initial_state: 'new' | 'existing'
  /** The same for all members of one cluster and no other's. */
  token: string
  quota_bytes: number
  /** Its user; null: the daemon's own. */
  uid: number | null
  /** It begins a cluster of its own with the data it has: after the loss of a majority, once. */
  force_new_cluster?: boolean
}

/** In the folder `tls`: its key with its certificate, and whom it trusts. */
export const MEMBER_PAIR = 'etcd-member.pem'
export const MEMBER_TRUSTS = 'etcd-ca.crt'

const ENDS_MS = 10_000

/** Pure: the command line. Election and heartbeat are etcd's own, for hosts of one site (https://etcd.io/docs/v3.4/tuning/): a leader that hangs has a successor in two seconds. */
export function memberArguments(p: MemberPlan): string[] {
  const own = (port: number) => `https://${hostPort(p.address, port)}`
  return [
    ...['--name', p.name, '--data-dir', join(p.directory, 'data')],
    ...['--listen-client-urls', own(p.client_port), '--advertise-client-urls', own(p.client_port)],
    ...['--listen-peer-urls', own(p.peer_port), '--initial-advertise-peer-urls', own(p.peer_port)],
    ...['--initial-cluster', p.initial_cluster, '--initial-cluster-state', p.initial_state],
    ...['--initial-cluster-token', p.token],
    ...['--cert-file', join(p.tls, MEMBER_PAIR), '--key-file', join(p.tls, MEMBER_PAIR)],
    ...['--trusted-ca-file', join(p.tls, MEMBER_TRUSTS), '--client-cert-auth'],
    ...['--peer-cert-file', join(p.tls, MEMBER_PAIR), '--peer-key-file', join(p.tls, MEMBER_PAIR)],
    ...['--peer-trusted-ca-file', join(p.tls, MEMBER_TRUSTS), '--peer-client-cert-auth'],
    ...['--quota-backend-bytes', String(p.quota_bytes), '--heartbeat-interval', '100', '--election-timeout', '1000'],
    // Of two that want to lead at the same moment, most often one does at once; who comes back disturbs nobody.
    '--pre-vote',
    // What is asked for without TLS is answered to everybody: nothing is.
    ...['--enable-v2=false', '--logger', 'zap', '--log-level', 'warn', '--log-outputs', 'stderr'],
    ...(p.force_new_cluster ? ['--force-new-cluster'] : []),
  ]
}

/**
 * The member of this folder, when it runs. `uid`: its user (null: the daemon's own); what another user started under the same words is
 * not it, and gets no signal.
 */
export async function findMember(directory: string, uid: number | null): Promise<Process | undefined> {
  const data = join(directory, 'data')
  const found = await processes((argv) => {
    const at = argv.indexOf('--data-dir')
    return at > 0 && argv[at + 1] === data && basename(argv[0] ?? '') === 'etcd'
  })
  const user = uid ?? process.geteuid?.() ?? 0
  return found.find((p) => p.uid === user)
}

/** Makes it run; one that runs already is left alone. @throws WadahError `host_lacks`, `tool_failed` */
export async function ensureMember(p: MemberPlan, signal: AbortSignal): Promise<ProcessId & { started: boolean }> {
  const there = await findMember(p.directory, p.uid)
  if (there) return { pid: there.pid, start: there.start, started: false }
  signal.throwIfAborted()
  const data = join(p.directory, 'data')
  await mkdir(data, { recursive: true, mode: 0o700 })
  if (p.uid !== null) {
    await chmod(p.directory, 0o711)
    await giveTo(p.uid, data)
  }
  await using log = await open(join(p.directory, 'etcd.log'), 'a', 0o600)
  const child = spawn('etcd', memberArguments(p), {
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
    cwd: '/',
    env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', GOMAXPROCS: '2' },
    ...(p.uid === null ? {} : { uid: p.uid, gid: p.uid }),
  })
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', (error: NodeJS.ErrnoException) =>
      reject(
        error.code === 'ENOENT'
          ? missingProgram('etcd')
          : fail('tool_failed', `etcd could not be started: ${error.message}`, { cause: error }),
      ),
    )
  })
  child.unref()
  const pid = child.pid as number
  // One that has ended already is no process of any time.
  return { pid, start: startOf(pid) ?? '', started: true }
}

/** Ends it in order; one that does not go is killed: what it acknowledged is on its disk. */
export async function stopMember(directory: string, uid: number | null): Promise<void> {
  const there = await findMember(directory, uid)
  if (!there) return
  signalProcess(there, 'SIGTERM')
  if (await waitGone(there, ENDS_MS)) return
  signalProcess(there, 'SIGKILL')
  if (!(await waitGone(there, ENDS_MS)))
    throw fail('tool_failed', `etcd (pid ${there.pid}) does not end.`, { effect: 'unknown' })
}

/** Ends it and removes what it kept. */
export async function removeMember(directory: string, uid: number | null): Promise<void> {
  await stopMember(directory, uid)
  await rm(join(directory, 'data'), { recursive: true, force: true })
}

/** The last lines it said, for a fault that has to say why it does not come up. */
export async function memberLog(directory: string): Promise<string> {
  const file = await open(join(directory, 'etcd.log'), 'r').catch(() => undefined)
  if (!file) return ''
  try {
    const { size } = await file.stat()
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4096), 0, 4096, Math.max(0, size - 4096))
    return buffer.toString('utf8', 0, bytesRead).trimEnd().split('\n').slice(-3).join('\n')
  } finally {
    await file.close()
  }
}

/** Looks after it until `signal` aborts: one that ended is started again, more slowly each time it ends soon. */
export async function superviseMember(
  plan: () => MemberPlan | undefined,
  log: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  let pause_ms = 1_000
  // Looking for it among all processes is dear where there are many.
  let known: ProcessId | undefined
  while (!signal.aborted) {
    const wanted = plan()
    try {
      const isThere = wanted !== undefined && known !== undefined && isAlive(known)
      const done = wanted && !isThere ? await ensureMember(wanted, signal) : undefined
      if (!isThere) known = done
      if (done?.started) log(`etcd was started (pid ${done.pid})`)
      pause_ms = done?.started ? Math.min(pause_ms * 2, 30_000) : 1_000
    } catch (error) {
      if (signal.aborted) return
      log(`etcd: ${(error as Error).message}`)
      pause_ms = Math.min(pause_ms * 2, 30_000)
    }
    await sleep(pause_ms, undefined, { signal }).catch(() => undefined)
  }
}

/** All that lies in the folder, without following a link; the folder itself last, so that what was cut off is done again. */
async function giveTo(uid: number, folder: string): Promise<void> {
  const { uid: owner } = await lstat(folder)
  if (owner === uid) return
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await giveTo(uid, path)
    else await lchown(path, uid, uid)
  }
  await lchown(folder, uid, uid)
}
