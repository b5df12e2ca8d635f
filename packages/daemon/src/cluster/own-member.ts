/**
 * This host's member of etcd on its way to a vote: added as a learner, started, promoted. Whatever cut that off (a daemon that was
 * killed, an etcd that is not installed, much to catch up with), it goes on from where it was. As long as it has no vote no other
 * host is given a member.
 */
import { WadahError, fail } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { isMemberOf } from '@wadah/cluster/members/voters'
import type { Clock } from '@wadah/store/clock'
import type { EtcdAdmin, EtcdMember } from '@wadah/store/etcd/admin'
import type { Identity } from './identity.ts'

/** The chores wait for it meanwhile. */
const PROMOTE_MS = 10_000
const PAUSE_MS = 5_000
const PAUSE_MOST_MS = 60_000
/** Before that it is on its way. */
const LASTS_MS = 60_000

export type OwnMemberOptions = {
  admin: Pick<EtcdAdmin, 'members' | 'addLearner' | 'promote'>
  clock: Clock
  identity: () => Identity
  keep: (identity: Identity) => Promise<void>
  /** Its etcd runs afterwards; one that runs is left alone. */
  start: () => Promise<void>
  /** Where it says why it does not come up. */
  etcdLog: string
  log: (line: string) => void
  signal: AbortSignal
}

/** Pure. `written`: this host knows that it has a member. `mine`: as etcd knows it, without a name before its first start. */
export function nextStep(
  written: boolean,
  mine: Pick<EtcdMember, 'name' | 'learner'> | undefined,
): 'add' | 'start' | 'promote' | 'nothing' | 'unknown' {
  if (!written) return 'add'
  if (!mine) return 'unknown'
  if (!mine.learner) return 'nothing'
  return mine.name === '' ? 'start' : 'promote'
}

export class OwnMember {
  readonly #o: OwnMemberOptions
  #tries = 0
  #next_ms = Number.NEGATIVE_INFINITY
  #wrong: { since_ms: number; why: string; remedy: string } | undefined

  constructor(options: OwnMemberOptions) {
    this.#o = options
  }

  /**
   * Called again and again; `wanted`: this host is to have one. What keeps it from its vote is said, not thrown: other chores go on.
   * @throws StoreError when etcd can't be asked: it may well have its vote
   */
  async see(wanted: boolean): Promise<void> {
    const { admin, clock, log, signal } = this.#o
    if (!wanted || clock.monotonic_ms() < this.#next_ms) return
    const since_ms = this.#wrong?.since_ms ?? clock.monotonic_ms()
    const members = await admin.members()
    try {
      await this.#advance(members)
      this.#wrong = undefined
      this.#tries = 0
      // It may be taken out by a host that is cut off in the middle of it: looked at again now and then.
      this.#next_ms = clock.monotonic_ms() + PAUSE_MOST_MS
    } catch (error) {
      if (signal.aborted) return
      const why = error instanceof WadahError ? error.fault.detail : (error as Error).message
      if (why !== this.#wrong?.why) log(`this host's copy of the store has no vote yet: ${why}`)
      const remedy = error instanceof WadahError ? error.fault.remedy : undefined
      this.#wrong = { since_ms, why, remedy: remedy ?? `less ${this.#o.etcdLog}` }
      this.#next_ms = clock.monotonic_ms() + Math.min(PAUSE_MS * 2 ** this.#tries, PAUSE_MOST_MS)
      this.#tries += 1
    }
  }

  /** What keeps it from its vote, when that lasts. */
  trouble(): { detail: string; remedy: string } | undefined {
    if (!this.#wrong) return undefined
    const { since_ms, why, remedy } = this.#wrong
    const lasts_ms = this.#o.clock.monotonic_ms() - since_ms
    if (lasts_ms < LASTS_MS) return undefined
    const detail = `This host is to keep a copy of the store, and for ${Math.floor(lasts_ms / 60_000)} min it has no vote: ${why.replace(/\.$/, '')}. It is tried again by itself.`
    return { detail, remedy }
  }

  async #advance(members: readonly EtcdMember[]): Promise<void> {
    const { admin, identity, keep, start, log } = this.#o
    const { address, ports, host, name, member } = identity()
    const url = `https://${hostPort(address, ports.etcd_peer)}`
    const found = members.find((m) => isMemberOf(m, { id: host, address, ports }))
    const step = nextStep(member !== undefined, found)
    if (step === 'nothing') return
    const mine = step === 'add' ? await admin.addLearner(url) : found
    // Not added once more: its data are those of another member. Who answered may also be late.
    if (!mine)
      throw fail('wrong_state', "etcd does not know this host's member", {
        remedy: `etcdctl member list; on another host: wadah host drain ${name}; wadah cluster remove ${name}; then let it join anew`,
      })
    if (step !== 'promote') {
      // At its first start it must name those that are members by then.
      const others = (await admin.members()).filter((m) => m.name !== '' && m.id !== mine.id)
      const initial_cluster = [...others.map((m) => `${m.name}=${m.peer_urls[0] ?? ''}`), `${host}=${url}`].join(',')
      if (initial_cluster !== member?.initial_cluster)
        await keep({ ...identity(), member: { name: host, initial_cluster, initial_state: 'existing' } })
    }
    await start()
    await admin.promote(mine.id, PROMOTE_MS)
    log('this host keeps a copy of the store')
  }
}
