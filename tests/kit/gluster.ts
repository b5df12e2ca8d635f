/** A GlusterFS for a lab: one server in the first host's network, and on each host a client and a view of the mounts of its own. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT, until } from './daemon.ts'
import { LAB, ok, run, SHARED } from './lab.ts'

const PROGRAMS = ['/usr/sbin/glusterd', '/usr/sbin/glusterfs', '/usr/sbin/mount.glusterfs', '/dev/fuse']
/** Why there can be none here; undefined where there can. */
export function whyNoGluster(): string | undefined {
  const missing = PROGRAMS.find((path) => !existsSync(path) && !existsSync(path.replace('/usr', '')))
  return missing === undefined ? undefined : `${missing} is missing: apt-get install glusterfs-server glusterfs-client`
}

const wadahd = join(ROOT, 'bin/wadahd')
const folder = `/var/lib/wadah-lab-${LAB}/gluster`
const namespace = (i: number) => `/run/netns/w${LAB}${i}`
const address = () =>
  (JSON.parse(readFileSync(`/var/lib/wadah-lab-${LAB}/lab.json`, 'utf8')) as { hosts: { address: string }[] }).hosts[0]
    ?.address ?? ''

/** Its folders are the lab's, and it ends with the first host: everything in that network does. */
export async function startGluster(): Promise<void> {
  for (const name of ['lib', 'log', 'run', 'brick']) mkdirSync(`${folder}/${name}`, { recursive: true })
  for (const path of ['/var/lib/glusterd', '/var/log/glusterfs', '/run/gluster']) mkdirSync(path, { recursive: true })
  const script = `
    set -e
    mount --bind ${folder}/lib /var/lib/glusterd
    mount --bind ${folder}/log /var/log/glusterfs
    mount --bind ${folder}/run /run/gluster
    glusterd --pid-file=${folder}/glusterd.pid --log-file=${folder}/log/glusterd.log
    until gluster --mode=script pool list >/dev/null 2>&1; do sleep 0.2; done
    gluster --mode=script volume create disks ${address()}:${folder}/brick force
    gluster --mode=script volume start disks`
  const inside = ['unshare', '--mount', '--propagation', 'private', '--', 'sh', '-c', script]
  await ok(run('nsenter', [`--net=${namespace(1)}`, '--', 'timeout', '60', ...inside]))
}

/** A cache of the clients' own (`stat-prefetch`, `io-cache` …), all of them on by default. Clients hear of it and change what they do at once. */
export async function setCache(name: string, value: 'on' | 'off'): Promise<void> {
  const pid = readFileSync(`${folder}/glusterd.pid`, 'utf8').trim()
  const words = ['gluster', '--mode=script', 'volume', 'set', 'disks', `performance.${name}`, value]
  await ok(run('nsenter', [`--net=${namespace(1)}`, `--mount=/proc/${pid}/ns/mnt`, '--', ...words]))
}

/**
 * The daemon of each host is started again with mounts of its own: the GlusterFS where all hosts have their common folder, and in it, at
 * `apart`, a file system that is each host's alone. What the lab starts from now on is started so.
 * @param options of the mount, besides
 */
export async function mountOnHosts(
  hosts: readonly number[],
  start: (i: number) => Promise<unknown>,
  options = '',
): Promise<void> {
  const program = `${folder}/wadahd`
  const script = `
    set -e
    mount -t glusterfs -o log-file=${folder}/log/client-$$.log${options && `,${options}`} ${address()}:/disks ${SHARED}
    mkdir -p ${SHARED}/apart
    mount -t tmpfs -o mode=0755,size=16m wadah-test ${SHARED}/apart
    exec ${wadahd} "$@"`
  writeFileSync(`${folder}/start`, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  // One that takes everything away needs no mounts, and its server may be gone.
  const choose = `case " $* " in *" --purge "*) exec ${wadahd} "$@" ;; esac`
  const apart = `exec unshare --mount --propagation private -- ${folder}/start "$@"`
  writeFileSync(program, `#!/bin/sh\n${choose}\n${apart}\n`, { mode: 0o755 })
  process.env['WADAH_DAEMON'] = program
  for (const i of hosts) {
    const pid = pidOf(i)
    process.kill(pid, 'SIGTERM')
    await until('the daemon to end', () => !existsSync(`/proc/${pid}`))
    await start(i)
  }
}

export const pidOf = (i: number): number =>
  Number(readFileSync(`/run/wadah-${LAB}${i}/wadahd.pid`, 'utf8').split(' ')[0])

/** A command that sees what the daemon of that host sees. */
export const inView = (i: number, ...argv: string[]) =>
  ok(run('nsenter', [`--mount=/proc/${pidOf(i)}/ns/mnt`, '--', ...argv]))
