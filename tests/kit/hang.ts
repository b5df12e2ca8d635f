/** A lab of three hosts of whose members of etcd one hangs: it keeps its connections and answers nothing. How long until writes go on. */
import { readdirSync, readFileSync } from 'node:fs'
import { request } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'
import type { Cluster } from '@wadah/api/schema/cluster'
import { until } from './daemon.ts'
import { json, LAB, lab } from './lab.ts'

export const HOSTS = [1, 2, 3]
/** Shorter than a lease: of one, etcd 3.4.23 ends leases that are kept when a leader wakes that stood still for longer (docs/store.md). */
const HUNG_MS = 5_000
const REST_MS = 3_000
const cluster = (i: number) => json<Cluster>(i, 'cluster', 'show')

export async function threeMembers(): Promise<void> {
  await lab('up', '--hosts', '3')
  await until(
    'three copies of the store',
    async () => {
      const { members } = (await cluster(3)).store
      return members.length === 3 && members.every((m) => ['leader', 'follower'].includes(m.state))
    },
    90_000,
  )
}

const memberOf = (i: number) =>
  readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .map(Number)
    .find((pid) => {
      const argv = cmdline(pid).split('\0')
      return argv[0] === 'etcd' && argv.includes(`/var/lib/wadah-${LAB}${i}/etcd/data`)
    }) ?? 0
function cmdline(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return ''
  }
}

let n = 0
/** A network is made: nothing but a record. @returns the status of the answer, 0 for none */
export function write(i: number): Promise<number> {
  const body = JSON.stringify({ name: `n${(n += 1)}`, kind: 'user' })
  return new Promise((resolve) => {
    const sent = request(
      {
        socketPath: `/run/wadah-${LAB}${i}/wadahd.sock`,
        path: '/v1/networks',
        method: 'POST',
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
        timeout: 30_000,
      },
      (answer) => {
        answer.resume()
        answer.once('end', () => resolve(answer.statusCode ?? 0))
      },
    )
    sent.once('error', () => resolve(0))
    sent.end(body)
  })
}

/** Milliseconds from now to the first write that succeeds; infinite when none does for half a minute. */
async function resumes(i: number): Promise<number> {
  const begun = performance.now()
  while (performance.now() - begun < 30_000) {
    if ((await write(i)) < 300) return Math.round(performance.now() - begun)
    await pause(20)
  }
  return Number.POSITIVE_INFINITY
}

/** How often a host lost its lease, by its log. */
export const leasesLost = (): number[] =>
  HOSTS.map(
    (i) =>
      readFileSync(`/var/lib/wadah-${LAB}${i}/wadahd.log`, 'utf8').split('the lease of this host was lost').length - 1,
  )

/**
 * Each member hangs in turn, then twice whoever leads by then.
 * @returns ms through each host until its first write, and until one some seconds later; and all of it in words
 */
export async function hangInTurn(): Promise<{ first: number[]; later: number[]; said: string[] }> {
  const seen = { first: [] as number[], later: [] as number[], said: [] as string[] }
  for (const turn of [...HOSTS, 0, 0]) {
    const { store, hosts } = await cluster(1)
    const leader = Number(
      hosts.find((h) => h.id === store.members.find((m) => m.state === 'leader')?.host)?.name.at(-1),
    )
    const held = turn === 0 ? leader : turn
    const pid = memberOf(held)
    if (pid <= 1) throw new Error(`host ${held} has no member of etcd`)
    process.kill(pid, 'SIGSTOP')
    try {
      const took = await Promise.all(HOSTS.map(resumes))
      seen.said.push(`host ${held}${held === leader ? ' (leader)' : ''}: ${took.join(', ')} ms`)
      await pause(Math.max(0, HUNG_MS - Math.max(...took)))
      seen.first.push(...took)
      // And all go on like that, not only the first.
      seen.later.push(...(await Promise.all(HOSTS.map(resumes))))
    } finally {
      process.kill(pid, 'SIGCONT')
    }
    await until('the member to follow again', async () =>
      (await cluster(1)).store.members.every((m) => ['leader', 'follower'].includes(m.state)),
    )
    await pause(REST_MS)
  }
  return seen
}
