/**
 * The dnsmasq of a network: started, told of changes, found again, ended. It detaches itself and outlives the daemon. It is known by
 * its command line, which names a configuration file that is only ours: a pid alone proves nothing.
 */
import { chmod, chown, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail, WadahError } from '@wadah/api/fault'
import type { NetworkAttachment } from '@wadah/ports/networks'
import { errno } from '../system/files.ts'
import { freeLeases, renderDnsmasq, renderHosts, renderReservations, type DnsmasqFiles } from './dnsmasq.ts'
import type { NatNetwork } from './links.ts'
import type { Shell } from './shell.ts'

export type Dnsmasqs = {
  /** Makes dnsmasq of this network run with exactly these names and reservations. Throws a fault that says why it can't. */
  ensure(network: NatNetwork, attachments: NetworkAttachment[], signal: AbortSignal): Promise<void>
  /** Whether it runs; reads one file of /proc, starts nothing. */
  alive(network: string): Promise<boolean>
  /** Ends it and takes its files away. */
  remove(network: string): Promise<void>
  /** Networks there are files of. */
  known(): Promise<string[]>
}

const NETWORK_ID = /^net-[a-z2-7]{10}$/

export function createDnsmasqs(shell: Shell, dataDir: string): Dnsmasqs {
  const root = join(dataDir, 'networks')
  const folder = (network: string): string => join(root, network)
  const files = (network: string): DnsmasqFiles => {
    const dir = folder(network)
    return {
      conf: join(dir, 'dnsmasq.conf'),
      hosts: join(dir, 'hosts'),
      dhcp: join(dir, 'reservations'),
      leases: join(dir, 'leases'),
      pid: join(dir, 'pid'),
    }
  }

  async function pidOf(network: string): Promise<number | undefined> {
    const { pid: pidFile, conf } = files(network)
    const pid = Number((await readText(pidFile))?.trim())
    if (!Number.isInteger(pid) || pid <= 1) return undefined
    const argv = ((await readText(`/proc/${pid}/cmdline`)) ?? '').split('\0')
    return argv.includes(`--conf-file=${conf}`) ? pid : undefined
  }

  async function stop(network: string): Promise<void> {
    for (let waited = 0; ; waited += 20) {
      const pid = await pidOf(network)
      if (pid === undefined) return
      signalProcess(pid, waited === 0 ? 'SIGTERM' : waited >= 2000 ? 'SIGKILL' : 0)
      if (waited > 4000)
        throw fail('tool_failed', `dnsmasq of ${network} (pid ${pid}) does not end.`, { effect: 'unknown' })
      await sleep(20)
    }
  }

  async function start(network: NatNetwork, signal: AbortSignal): Promise<void> {
    try {
      await shell.run('dnsmasq', [`--conf-file=${files(network.id).conf}`], { signal })
    } catch (error) {
      const detail = error instanceof WadahError && error.fault.code === 'tool_failed' ? error.fault.detail : undefined
      if (detail === undefined) throw error
      // Exit code 2 of dnsmasq: a network access problem (dnsmasq(8), EXIT CODES).
      if (detail.includes('exit code 2')) {
        throw fail(
          'address_taken',
          `The name server of network "${network.name}" can't listen on ${network.gateway}: another program has port 53 or 67 there (${detail}).`,
          {
            remedy: `ss -lnptu 'sport = :53 or sport = :67'; keep that program off ${network.bridge} (for dnsmasq: bind-interfaces and except-interface=${network.bridge})`,
            cause: error,
          },
        )
      }
      throw error
    }
  }

  return {
    async ensure(network, attachments, signal) {
      const dir = folder(network.id)
      const f = files(network.id)
      await mkdir(dir, { recursive: true })
      const user = await dnsmasqUser()
      // dnsmasq reads names again after it has given up root. Nobody else does: whoever escapes from a QEMU sees no other VM's.
      await chmod(root, 0o711)
      await chown(dir, 0, user.gid)
      await chmod(dir, 0o750)
      await passable(root)
      const names = await replaceIfChanged(f.hosts, renderHosts(network, attachments))
      const addresses = await replaceIfChanged(f.dhcp, renderReservations(network, attachments))
      const conf = await replaceIfChanged(f.conf, renderDnsmasq(network, f, user))
      const freed = addresses ? freeLeases((await readText(f.leases)) ?? '', network, attachments) : undefined
      const pid = await pidOf(network.id)
      if (pid !== undefined && !conf && freed === undefined) {
        // Reads hosts and reservations anew (dnsmasq(8), NOTES).
        if (names || addresses) signalProcess(pid, 'SIGHUP')
        return
      }
      await stop(network.id)
      if (freed !== undefined) await writeFile(f.leases, freed)
      await start(network, signal)
    },
    async alive(network) {
      return (await pidOf(network)) !== undefined
    },
    async remove(network) {
      if (!NETWORK_ID.test(network)) return
      await stop(network)
      await rm(folder(network), { recursive: true, force: true })
    },
    async known() {
      const names = await readdir(root).catch((error: unknown) => {
        if (errno(error) === 'ENOENT') return []
        throw error
      })
      return names.filter((name) => NETWORK_ID.test(name))
    },
  }
}

/** dnsmasq says nothing when it can't reach its files; guests would then get no address, without a reason anywhere. */
async function passable(dir: string): Promise<void> {
  for (let at = dir; ; at = dirname(at)) {
    if (((await stat(at)).mode & 0o001) === 0) {
      throw fail('host_lacks', `dnsmasq runs as a user of its own and can't pass through ${at}.`, {
        remedy: `chmod o+x ${at}`,
      })
    }
    if (at === dirname(at)) return
  }
}

/** The user and group that dnsmasq becomes: the distribution's own where there are. */
async function dnsmasqUser(): Promise<{ user: string; group: string; gid: number }> {
  const passwd = (await readText('/etc/passwd')) ?? ''
  const groups = (await readText('/etc/group')) ?? ''
  for (const user of ['dnsmasq', 'nobody']) {
    const gid = new RegExp(`^${user}:[^:]*:\\d+:(\\d+):`, 'm').exec(passwd)?.[1]
    const group = gid === undefined ? undefined : new RegExp(`^([^:]+):[^:]*:${gid}:`, 'm').exec(groups)?.[1]
    if (gid !== undefined && group !== undefined) return { user, group, gid: Number(gid) }
  }
  throw fail('host_lacks', 'There is neither a user "dnsmasq" nor "nobody" in /etc/passwd, with a group in /etc/group.')
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(errno(error))) return undefined
    throw error
  }
}

/** Writes beside and renames, so that a reader sees the old or the new text. True when there was something to change. */
async function replaceIfChanged(path: string, text: string): Promise<boolean> {
  if ((await readText(path)) === text) return false
  await writeFile(`${path}.new`, text, { mode: 0o644 })
  await rename(`${path}.new`, path)
  return true
}

function signalProcess(pid: number, signal: NodeJS.Signals | 0): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if (errno(error) !== 'ESRCH') throw error
  }
}
