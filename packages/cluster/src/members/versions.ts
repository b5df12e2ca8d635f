/**
 * Which builds of wadahd may be hosts of one cluster, and at which level they write. Hosts are one release apart while they are upgraded,
 * one after the other; what is new in a record is written only once every host can read it.
 */
import { randomUUID } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import { type Rec, type Store, put, unchanged } from '@wadah/store/store'
import { type Build, type HostRecord, hostKind } from '../records.ts'
import { CLUSTER, clusterKind, type ClusterRecord } from './records.ts'

type Host = Pick<HostRecord, 'id' | 'name' | 'build'>
export type Refusal = { detail: string; remedy: string }

const HOSTS_MOST = 1000
const TRIES = 20

/** Pure: why a host of this build can't be beside these others; undefined when it can. Of one that never said what it runs nothing is held against it. */
export function judgeBuild(
  host: { name: string; build: Build },
  others: readonly Pick<Host, 'name' | 'build'>[],
  level: number,
): Refusal | undefined {
  const { name, build } = host
  const own = read(build.version)
  if (!own)
    return { detail: `"${build.version}", as ${name} calls its wadahd, is no version.`, remedy: 'install a release' }
  const known = others.flatMap((o) => {
    const release = o.build && read(o.build.version)
    return o.build && release ? [{ name: o.name, version: o.build.version, ...release }] : []
  })
  const far = known.find((o) => o.major !== own.major || Math.abs(o.minor - own.minor) > 1)
  if (far) {
    const detail = `${name} has wadahd ${build.version}, and ${far.name} ${far.version}: hosts of one cluster may be one release apart, not more.`
    return { detail, remedy: rightFor(name, known) }
  }
  if (level >= build.oldest && level <= build.newest) return undefined
  const versions = [...new Set(known.map((o) => o.version))].toSorted().join(', ')
  const knows = build.oldest === build.newest ? `${build.newest}` : `${build.oldest} to ${build.newest}`
  return {
    detail: `The records of the cluster are of level ${level}; wadahd ${build.version}, which ${name} has, knows level ${knows}.`,
    remedy:
      level < build.oldest
        ? `install an older release on ${name}, one that knows level ${level}: hosts are upgraded one release after the other`
        : `install on ${name} ${versions === '' ? 'a newer release' : `the release that the others have (${versions})`}`,
  }
}

/** Pure: the level that all of these can write; undefined when it is the present one, or some have not said what they can. */
export function nextLevel(level: number, hosts: readonly Pick<Host, 'build'>[]): number | undefined {
  const newest = hosts.map((h) => h.build?.newest)
  if (newest.length === 0 || newest.includes(undefined)) return undefined
  const all = Math.min(...(newest as number[]))
  return all > level ? all : undefined
}

/**
 * A host that starts says which build it runs, or is refused. The record of the cluster is what those that start, join or raise the level
 * at the same moment meet in: each writes it anew. @throws WadahError `wrong_state`, and nothing was written
 */
export async function enterBuild(store: Pick<Store, 'get' | 'list' | 'txn'>, id: string, build: Build): Promise<void> {
  for (let i = 1; ; i++) {
    const { cluster, hosts } = await together(store)
    const own = hosts.find((h) => h.id === id)
    if (!own) throw fail('gone', 'This host is not of the cluster any more.', { remedy: 'wadah cluster show' })
    const others = hosts.filter((h) => h.id !== id).map((h) => h.value)
    const wrong = judgeBuild({ name: own.value.name, build }, others, cluster.value.level)
    if (wrong)
      throw fail('wrong_state', `This host does not serve as it is; its VMs run on. ${wrong.detail}`, {
        remedy: `${wrong.remedy}; is a host gone for ever: wadah cluster remove HOST --lost, on one that serves`,
        effect: 'none',
      })
    if (JSON.stringify(own.value.build) === JSON.stringify(build)) return
    const done = await store.txn(
      [unchanged(cluster), unchanged(own)],
      [put(hostKind, id, { ...own.value, build }), put(clusterKind, CLUSTER, cluster.value)],
      randomUUID(),
    )
    if (done.ok) return
    if (i >= TRIES) throw fail('conflict', 'The records of the cluster change all the time.', { remedy: 'try again' })
  }
}

/** Raises what hosts write, once all can read it. @returns the new level, when it was raised */
export async function raiseLevel(store: Pick<Store, 'get' | 'list' | 'txn'>): Promise<number | undefined> {
  const { cluster, hosts } = await together(store)
  const level = nextLevel(
    cluster.value.level,
    hosts.map((h) => h.value),
  )
  if (level === undefined) return undefined
  const raised: ClusterRecord = { ...cluster.value, level }
  const done = await store.txn([unchanged(cluster)], [put(clusterKind, CLUSTER, raised)], randomUUID())
  return done.ok ? level : undefined
}

/** The cluster first: whoever changed a host's build after it was read has written it anew. */
export async function together(
  store: Pick<Store, 'get' | 'list'>,
): Promise<{ cluster: Rec<ClusterRecord>; hosts: readonly Rec<HostRecord>[] }> {
  const cluster = await store.get(clusterKind, CLUSTER)
  const page = await store.list(hostKind, { limit: HOSTS_MOST })
  if (!cluster || page.type !== 'page') throw fail('internal', 'the record of the cluster is not in its store')
  return { cluster, hosts: page.items }
}

/** Which releases could be beside all of them. */
function rightFor(name: string, others: readonly { name: string; major: number; minor: number }[]): string {
  const [majors, minors] = [new Set(others.map((o) => o.major)), others.map((o) => o.minor)]
  const [from, to] = [Math.max(0, Math.max(...minors) - 1), Math.min(...minors) + 1]
  const fits = Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => `${[...majors][0]}.${from + i}`)
  if (majors.size > 1 || fits.length === 0)
    return 'bring the hosts of the cluster to one release first, the oldest before the others'
  const last = fits.pop()
  return `install wadahd ${fits.length === 0 ? '' : `${fits.join(', ')} or `}${last} on ${name}: hosts are upgraded one release after the other`
}

function read(version: string): { major: number; minor: number } | undefined {
  const m = /^(\d{1,6})\.(\d{1,6})\.\d+/.exec(version)
  return m ? { major: Number(m[1]), minor: Number(m[2]) } : undefined
}
