import { type ChildProcess, spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { cleanEnv, type Ran, run, type RunOptions } from './run.ts'

/**
 * Mount and process namespaces of a build. Everything mounted and everything started in it ends with its first process,
 * and that one ends with us: no mount and no process of a build can be left behind, however it ends.
 * As an ordinary user it is a user namespace too, where we are root over our range of subordinate ids.
 */
export class Sandbox {
  private readonly holder: ChildProcess
  /** Process id, seen from outside, of the first process inside. */
  private readonly inner: number
  private readonly asRoot: boolean
  private readonly signal: AbortSignal | undefined

  private constructor(holder: ChildProcess, inner: number, asRoot: boolean, signal: AbortSignal | undefined) {
    this.holder = holder
    this.inner = inner
    this.asRoot = asRoot
    this.signal = signal
  }

  /**
   * @param dir an empty folder; with `tmpfs_bytes` a private memory file system is mounted on `dir`/tree
   * @throws WadahError `host_lacks` when this host lets us make no namespaces.
   */
  static async open(options: {
    dir: string
    tmpfs_bytes?: number | undefined
    signal?: AbortSignal | undefined
  }): Promise<Sandbox> {
    options.signal?.throwIfAborted()
    const asRoot = process.getuid?.() === 0
    const holder = spawn(
      'setpriv',
      [
        '--pdeathsig',
        'KILL',
        '--',
        'unshare',
        ...unshareArgs(asRoot),
        'sh',
        '-c',
        HOLD,
        'hold',
        join(options.dir, 'tree'),
        String(options.tmpfs_bytes ?? 0),
      ],
      {
        env: cleanEnv(),
        detached: true,
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    let stderr = ''
    holder.stderr?.on('data', (d) => {
      stderr += d
    })
    const ready = await new Promise<boolean>((done) => {
      holder.stdout?.once('data', () => done(true))
      holder.once('exit', () => done(false))
      holder.once('error', () => done(false))
    })
    const outer = holder.pid
    const children =
      ready && outer ? await readFile(`/proc/${outer}/task/${outer}/children`, 'utf8').catch(() => '') : ''
    const inner = Number(children.trim().split(' ')[0])
    if (!ready || !outer || !inner) {
      holder.kill('SIGKILL')
      throw fail(
        'host_lacks',
        `this host does not let a build have namespaces of its own: ${stderr.trim() || 'no reason given'}`,
        {
          remedy: asRoot
            ? 'run wadahd where it may use unshare(1)'
            : 'apt install uidmap, give the user a range in /etc/subuid and /etc/subgid, and allow user namespaces',
        },
      )
    }
    await writeFile(join(options.dir, 'holder'), `${outer} ${await startTime(outer)}\n`)
    return new Sandbox(holder, inner, asRoot, options.signal)
  }

  /** Run a command inside. As `run`, with the sandbox's own signal unless another is given. */
  async run(argv: readonly string[], options: RunOptions = {}): Promise<Ran> {
    const user = this.asRoot ? [] : ['-U', '-S', '0', '-G', '0']
    return run(['nsenter', '-t', String(this.inner), ...user, '-m', '-p', '--', ...argv], {
      signal: this.signal,
      ...options,
    })
  }

  /** Run a program of the tree in it (chroot). */
  async chroot(root: string, argv: readonly string[], options: RunOptions = {}): Promise<Ran> {
    return this.run(['chroot', root, ...argv], options)
  }

  /** Ends everything inside; mounts are gone when this returns. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.holder.exitCode !== null || this.holder.signalCode !== null) return
    const gone = new Promise((done) => this.holder.once('exit', done))
    try {
      // The first process inside takes all others of its namespace with it.
      process.kill(this.inner, 'SIGKILL')
    } catch {
      this.holder.kill('SIGKILL')
    }
    await gone
  }
}

function unshareArgs(asRoot: boolean): string[] {
  const user = asRoot ? [] : ['--user', '--map-root-user', '--map-auto']
  return [...user, '--mount', '--pid', '--fork', '--kill-child=KILL', '--propagation', 'private', '--mount-proc', '--']
}

const HOLD = `set -e
mkdir -p "$1"
[ "$2" = 0 ] || mount -t tmpfs -o "size=$2,mode=755" wadah-build "$1"
echo ready
exec sleep infinity`

/** When a process started, in clock ticks since boot; with its id it names a process for good (proc(5), stat field 22). */
export async function startTime(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}
