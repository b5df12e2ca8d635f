/** Where an instance of the daemon keeps its things. The same rules as wadahd's own; always passed to it, so they cannot drift. */
import { fail } from '@wadah/api/fault'
import { nameProblem } from '@wadah/api/ids'
import type { Cli } from '../cli.ts'

export type Instance = {
  name: string
  data: string
  run: string
  socket: string
  pidFile: string
  logFile: string
  /** What the daemon's program is started by: a host of a lab has a network of its own. */
  enter?: string[]
}

/** The instance that the options of a command on this machine name. */
export function namedInstance(cli: Cli, o: { instance: string; data?: string | undefined }): Instance {
  const uid = process.getuid?.() ?? 0
  return instanceOf(o.instance, { uid, env: cli.io.env, data: o.data, socket: cli.options.socket })
}

/**
 * `default` lies in /var/lib/wadah and /run/wadah, `X` in /var/lib/wadah-X and /run/wadah-X; for anybody but root in the user's
 * own folders (XDG base directories).
 */
export function instanceOf(
  name: string,
  options: {
    uid: number
    env: Record<string, string | undefined>
    data?: string | undefined
    socket?: string | undefined
  },
): Instance {
  const problem =
    nameProblem(name) ??
    (name.length > 16 ? `"${name}" is too long: at most 16 letters, digits and hyphens` : undefined)
  if (problem !== undefined) throw fail('invalid', `--instance: ${problem}`, { field: '--instance' })
  const { uid, env } = options
  const called = name === 'default' ? 'wadah' : `wadah-${name}`
  const home = env['HOME'] ?? '/nonexistent'
  const data =
    options.data ?? (uid === 0 ? `/var/lib/${called}` : `${env['XDG_DATA_HOME'] || `${home}/.local/share`}/${called}`)
  const run = options.socket
    ? options.socket.replace(/\/[^/]*$/, '') || '/'
    : uid === 0
      ? `/run/${called}`
      : `${env['XDG_RUNTIME_DIR'] || `/run/user/${uid}`}/${called}`
  return {
    name,
    data,
    run,
    socket: options.socket ?? `${run}/wadahd.sock`,
    pidFile: `${run}/wadahd.pid`,
    logFile: `${data}/wadahd.log`,
  }
}
