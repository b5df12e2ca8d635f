/** Running a program of the host: argv only, a deadline, an AbortSignal, bounded output. The one place that spawns short-lived tools. */
import { spawn } from 'node:child_process'
import type { Duplex } from 'node:stream'
import { fail } from '@wadah/api/fault'

export type RunOptions = {
  /** The program is killed after this long; every program ends. */
  timeout_ms: number
  signal?: AbortSignal | undefined
  /** Written to stdin: the way for secrets and batches, which never go into argv. */
  input?: string | Uint8Array | undefined
  /** Most bytes of stdout that are kept; more is `tool_failed`. Default 4 MiB. */
  max_output_bytes?: number | undefined
  /** Added to a minimal environment (PATH, LC_ALL=C, HOME); nothing of the daemon's own is passed on. */
  env?: Record<string, string> | undefined
  cwd?: string | undefined
  uid?: number | undefined
  gid?: number | undefined
  /** Exit codes that are an answer rather than a failure, besides 0. */
  ok_codes?: readonly number[] | undefined
  /** Called with stdout as it comes, for progress. */
  on_stdout?: ((text: string) => void) | undefined
  /** The kernel kills the program when this process dies, however it dies. Costs one more exec (setpriv). */
  die_with_us?: boolean | undefined
  /** Open files for stdin and stdout; with `stdout_fd` nothing of it is kept. */
  stdin_fd?: number | undefined
  stdout_fd?: number | undefined
  /** The program gets a connected socket as its descriptor 3; its other end is handed over here, and ends with the program. */
  on_socket?: ((socket: Duplex) => void) | undefined
  /** Between SIGTERM and SIGKILL when it must end early. Default 2000. */
  grace_ms?: number | undefined
}
export type RunResult = { stdout: string; stderr: string; code: number }

const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const STDERR_TAIL = 4096
const DEFAULT_OUTPUT = 4 * 1024 * 1024

/** Which Debian package brings a program, for the remedy of `host_lacks`. */
const PACKAGES: Record<string, string> = {
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-system-x86_64': 'qemu-system-x86',
  xz: 'xz-utils',
  zstd: 'zstd',
  gzip: 'gzip',
  unshare: 'util-linux',
  prlimit: 'util-linux',
  ip: 'iproute2',
  tc: 'iproute2',
  bridge: 'iproute2',
  nft: 'nftables',
  dnsmasq: 'dnsmasq-base',
  mmdebstrap: 'mmdebstrap',
  setpriv: 'util-linux',
  setfacl: 'acl',
  cp: 'coreutils',
  dd: 'coreutils',
  busybox: 'busybox-static',
  mke2fs: 'e2fsprogs',
  sfdisk: 'fdisk',
  mformat: 'mtools',
  mcopy: 'mtools',
  syslinux: 'syslinux',
  lz4: 'lz4',
  cpio: 'cpio',
  depmod: 'kmod',
  modprobe: 'kmod',
  'dpkg-deb': 'dpkg',
  'apt-get': 'apt',
}

/** The fault for a program that is not there. */
export function missingProgram(program: string): Error {
  const name = program.slice(program.lastIndexOf('/') + 1)
  const debian = PACKAGES[name]
  return fail('host_lacks', `The program "${name}" is not installed on this host.`, {
    remedy: debian === undefined ? `install the package that has ${name}` : `apt-get install ${debian}`,
  })
}

/** The environment every program gets, plus what is given. */
export function toolEnv(extra: Record<string, string> = {}): Record<string, string> {
  return { PATH: SYSTEM_PATH, LC_ALL: 'C', HOME: '/nonexistent', ...extra }
}

/** Keeps the last `limit` bytes of what is pushed. */
function tail(limit: number): { push(chunk: Buffer): void; text(): string } {
  let kept = Buffer.alloc(0)
  return {
    push(chunk) {
      kept = Buffer.concat([kept, chunk])
      if (kept.length > limit) kept = kept.subarray(kept.length - limit)
    },
    text: () => kept.toString('utf8'),
  }
}

/**
 * Runs `program` (found in the system's PATH, or absolute) with `argv` and resolves when it has ended.
 * It gets a process group of its own, which is ended (SIGTERM, then SIGKILL) on abort, on the deadline and on too much output.
 * Throws `tool_failed` (an exit code that is not 0 or in `ok_codes`, a signal, too much output; names the program and the end of its
 * stderr), `host_lacks` (not installed), `timeout`, `cancelled` (aborted; before the start: nothing was done).
 */
export async function run(program: string, argv: readonly string[], options: RunOptions): Promise<RunResult> {
  const name = program.slice(program.lastIndexOf('/') + 1)
  const { signal, timeout_ms } = options
  if (signal?.aborted) throw fail('cancelled', `Cancelled before ${name} was started.`, { cause: signal.reason })
  const [file, args] = options.die_with_us
    ? ['setpriv', ['--pdeathsig', 'KILL', '--', program, ...argv]]
    : [program, argv]
  const max = options.max_output_bytes ?? DEFAULT_OUTPUT

  return await new Promise<RunResult>((resolve, reject) => {
    const child = spawn(file, args, {
      env: toolEnv(options.env),
      cwd: options.cwd ?? '/',
      stdio: [
        options.stdin_fd ?? (options.input === undefined ? 'ignore' : 'pipe'),
        options.stdout_fd ?? 'pipe',
        'pipe',
        // Between processes Node makes no pipe, but a pair of sockets.
        ...(options.on_socket ? (['pipe'] as const) : []),
      ],
      detached: true,
      ...(options.uid === undefined ? {} : { uid: options.uid }),
      ...(options.gid === undefined ? {} : { gid: options.gid }),
    })
    const socket = child.stdio[3] as Duplex | null | undefined
    if (socket) {
      socket.on('error', () => {})
      options.on_socket?.(socket)
    }
    const out: Buffer[] = []
    let size = 0
    const err = tail(STDERR_TAIL)
    let ended: Error | undefined
    let killer: NodeJS.Timeout | undefined

    const end = (why: Error): void => {
      if (ended !== undefined) return
      ended = why
      killGroup(child.pid, 'SIGTERM')
      killer = setTimeout(() => {
        killGroup(child.pid, 'SIGKILL')
        // Whoever else holds the pipes must not keep us waiting.
        child.stdout?.destroy()
        child.stderr?.destroy()
      }, options.grace_ms ?? 2000)
    }
    const deadline = setTimeout(
      () =>
        end(
          fail('timeout', `${name} did not end within ${timeout_ms / 1000} s and was stopped.`, { effect: 'unknown' }),
        ),
      timeout_ms,
    )
    const onAbort = (): void =>
      end(fail('cancelled', `Cancelled while ${name} was running.`, { effect: 'partial', cause: signal?.reason }))
    signal?.addEventListener('abort', onAbort, { once: true })
    const tidy = (): void => {
      clearTimeout(deadline)
      clearTimeout(killer)
      signal?.removeEventListener('abort', onAbort)
    }

    child.stdout?.on('data', (chunk: Buffer) => {
      options.on_stdout?.(chunk.toString('utf8'))
      size += chunk.length
      if (size <= max) out.push(chunk)
      else end(fail('tool_failed', `${name} printed more than ${max} bytes and was stopped.`, { effect: 'unknown' }))
    })
    child.stderr?.on('data', (chunk: Buffer) => err.push(chunk))
    // EPIPE: a program may end without reading all; its exit code tells.
    child.stdin?.on('error', () => {})
    if (options.input !== undefined) child.stdin?.end(options.input)

    child.on('error', (error: NodeJS.ErrnoException) => {
      tidy()
      socket?.destroy()
      if (error.code === 'ENOENT') reject(missingProgram(file))
      else
        reject(fail('tool_failed', `${name} could not be started: ${error.code ?? error.message}.`, { cause: error }))
    })
    child.on('exit', () => {
      socket?.destroy()
      // A descendant that detached itself may keep the pipes open for ever.
      killer ??= setTimeout(() => {
        child.stdout?.destroy()
        child.stderr?.destroy()
      }, 1000)
    })
    child.on('close', (code, sig) => {
      tidy()
      if (ended !== undefined) {
        killGroup(child.pid, 'SIGKILL')
        reject(ended)
        return
      }
      const stdout = Buffer.concat(out).toString('utf8')
      const stderr = err.text()
      if (code !== null && (code === 0 || options.ok_codes?.includes(code))) resolve({ stdout, stderr, code })
      else if (code === 127 && options.die_with_us && stderr.startsWith('setpriv:')) reject(missingProgram(program))
      // The last of a row of programs that start one another: unshare, prlimit, setpriv.
      else if (code === 127 && /^(unshare|prlimit|setpriv): /.test(stderr))
        reject(missingProgram(/failed to execute ([\w./-]+)/.exec(stderr)?.[1] ?? program))
      else reject(failed(name, code, sig, stderr))
    })
  })
}

function failed(name: string, code: number | null, sig: string | null, stderr: string): Error {
  const how = code === null ? `was ended by ${sig ?? 'a signal'}` : `failed with exit code ${code}`
  const said = stderr.trim().slice(-1000)
  return fail('tool_failed', said === '' ? `${name} ${how} and said nothing.` : `${name} ${how}: ${said}`, {
    effect: 'unknown',
    cause: { stderr, code },
  })
}

function killGroup(pid: number | undefined, sig: NodeJS.Signals): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, sig)
  } catch {
    // Gone already.
  }
}
