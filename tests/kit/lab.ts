/** Labs of tests. Each is called after the process it belongs to, so that two can be there at once, and one whose test was killed is found. */
import { execFile, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CACHE, ROOT } from './daemon.ts'

export const LAB = `t${process.pid.toString(36)}`

export const WADAH = join(ROOT, 'bin/wadah')
/** The folder that all its hosts see. */
export const SHARED = `/srv/wadah-lab-${LAB}`
export type Ran = { code: number; out: string; err: string }

export function run(
  file: string,
  args: readonly string[],
  input = '',
  more: Record<string, string> = {},
): Promise<Ran> {
  return new Promise((resolve) => {
    const env = { ...process.env, WADAH_LAB_CACHE: CACHE, NO_COLOR: '1', ...more }
    const child = execFile(file, args, { env, timeout: 240_000, maxBuffer: 2 ** 24 }, (error, out, err) =>
      resolve({ code: error ? Number(error.code ?? 1) : 0, out, err }),
    )
    // One that refuses before it reads leaves a pipe without a reader.
    child.stdin?.on('error', () => {})
    child.stdin?.end(input)
  })
}
export async function ok(ran: Promise<Ran>): Promise<string> {
  const { code, out, err } = await ran
  if (code !== 0) throw new Error(`exit code ${code}: ${out}${err}`)
  return out
}
export const lab = (...args: string[]) => ok(run(WADAH, ['lab', ...args, '--lab', LAB]))
/** Asked of that host's own socket. */
export const at = (i: number, ...args: string[]) =>
  run(WADAH, ['--socket', `/run/wadah-${LAB}${i}/wadahd.sock`, ...args])
export const json = async <T>(i: number, ...args: string[]) => JSON.parse(await ok(at(i, '--json', ...args))) as T
/** By the administrator of that host, who sees its network. `wadahd`: the program of its daemon, where it is another one. */
export const on = (i: number, args: string[], input?: string, wadahd?: string) =>
  run(
    'nsenter',
    [`--net=/run/netns/w${LAB}${i}`, '--', WADAH, ...args, '--instance', `${LAB}${i}`],
    input,
    wadahd === undefined ? {} : { WADAH_DAEMON: wadahd },
  )

/** Ends the daemon of that host in order, and starts this program in its place; its VMs and its member of etcd run on. */
export async function restartAs(i: number, wadahd?: string): Promise<Ran> {
  await ok(on(i, ['down']))
  const more: Record<string, string> = wadahd === undefined ? {} : { WADAH_DAEMON: wadahd }
  return await run(WADAH, ['lab', 'start', `${LAB}${i}`, '--lab', LAB], '', more)
}

/**
 * Hosts of a lab share this machine's files, and machines do not: each daemon is started again with mounts of its own, in which the folders of the
 * other hosts are empty. What the lab starts from now on is started so.
 */
export async function hideOthers(hosts: readonly number[]): Promise<void> {
  const wadahd = join(ROOT, 'bin/wadahd')
  const program = `/var/lib/wadah-lab-${LAB}/apart`
  const folders = hosts.map((i) => `/var/lib/wadah-${LAB}${i}`)
  const script = `#!/bin/sh
case " $* " in *" --purge "*) exec ${wadahd} "$@" ;; esac
[ "$APART" = yes ] || APART=yes exec unshare --mount --propagation private -- "$0" "$@"
unset APART
for folder in ${folders.join(' ')}; do
  case " $* " in *" --instance \${folder#/var/lib/wadah-} "*) ;; *) mount -t tmpfs -o size=1m,mode=0755 hidden "$folder" || exit 1 ;; esac
done
exec ${wadahd} "$@"
`
  writeFileSync(program, script, { mode: 0o755 })
  process.env['WADAH_DAEMON'] = program
  for (const i of hosts) await ok(restartAs(i))
}

/** Two hosts that know nothing of each other yet; the first has the image and the network of the tests. @returns their addresses, from 1 */
export async function twoApart(): Promise<string[]> {
  const made = JSON.parse(await lab('up', '--hosts', '2', '--apart', '--json')) as { hosts: { address: string }[] }
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
  return ['', ...made.hosts.map((h) => h.address)]
}

/** Takes away labs of tests that are no more. */
export function purgeDeadLabs(): void {
  for (const folder of readdirSync('/var/lib')) {
    const [, lab, pid] = /^wadah-lab-(t([0-9a-z]+))$/.exec(folder) ?? []
    if (lab === undefined || existsSync(`/proc/${Number.parseInt(pid as string, 36)}`)) continue
    spawnSync(WADAH, ['lab', 'down', '--lab', lab], { timeout: 120_000 })
  }
}
