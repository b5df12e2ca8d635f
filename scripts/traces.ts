/** What belongs to Wadah on this machine: tests must leave nothing of it. */
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const FOLDERS = ['/var/lib', '/run', '/var/cache', tmpdir()]
/** cgroup v2, or the controllers of v1. */
const CGROUPS = ['', 'unified', 'cpu', 'memory', 'blkio', 'pids', 'net_cls', 'freezer', 'cpuset', 'devices']

/** From `ps -eo pid=,args=`: our QEMUs, dnsmasqs and daemons. Pure. */
export function processTraces(text: string): string[] {
  return text
    .split('\n')
    .filter(
      (line) =>
        (/^\s*\d+ \S*(qemu-system|dnsmasq)/.test(line) && /process=wadah:|\/wadah(-[^ /]+)?\//.test(line)) ||
        /^\s*\d+ \S*node .*\/wadahd\.mjs( |$)/.test(line),
    )
    .map((line) => `process ${line.trim().slice(0, 160)}`)
}

/** From `ip -json link`: what carries our alias, and the names that tests give. Pure. */
export function interfaceTraces(text: string): string[] {
  const links = JSON.parse(text || '[]') as { ifname: string; ifalias?: string }[]
  return links
    .filter(({ ifname, ifalias }) => ifalias?.startsWith('wadah') || /^w(adah|br-|d|t)/.test(ifname))
    .map(({ ifname, ifalias }) => `interface ${ifname}${ifalias === undefined ? '' : ` (${ifalias})`}`)
}

/** From `ip netns list`: all of them; a test's have no common name, and it is new ones that count. Pure. */
export function namespaceTraces(text: string): string[] {
  return text.split('\n').flatMap((line) => (line === '' ? [] : [`network namespace ${line.split(' ')[0]}`]))
}

/** From `nft list tables`. Pure. */
export function tableTraces(text: string): string[] {
  return text.split('\n').filter((line) => / wadah/.test(line))
}

export function traces(): Set<string> {
  const found = [
    ...processTraces(output('ps', ['-ww', '-eo', 'pid=,args='])),
    ...interfaceTraces(output('ip', ['-json', 'link'])),
    ...namespaceTraces(output('ip', ['netns', 'list'])),
    ...tableTraces(output('nft', ['list', 'tables'])),
  ]
  for (const dir of [...FOLDERS, ...CGROUPS.map((name) => join('/sys/fs/cgroup', name))]) {
    for (const name of namesIn(dir)) {
      // A list of the end-to-end tests: what counts is what is on it.
      if (name === 'wadah-test-instances') found.push(...namesIn(join(dir, name)).map((n) => join(dir, name, n)))
      else if (name.startsWith('wadah')) found.push(join(dir, name))
    }
  }
  return new Set(found)
}

function output(program: string, argv: string[]): string {
  return spawnSync(program, argv, { encoding: 'utf8', maxBuffer: 64 * 2 ** 20 }).stdout ?? ''
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    // Not on this machine.
    return []
  }
}
