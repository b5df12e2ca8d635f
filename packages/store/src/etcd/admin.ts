/** Members of an etcd and what keeps them in order: added as learners, promoted, removed, compacted, defragmented. */
import { type ServiceError, status as code } from '@grpc/grpc-js'
import { type Clock, sleep } from '../clock.ts'
import { StoreError } from '../errors.ts'
import type { EtcdClient } from './client.ts'
import { translate } from './errors.ts'
import type { AlarmType, Member, StatusReply } from './wire.ts'

export type EtcdMember = {
  id: string
  /** Empty until it was started for the first time. */
  name: string
  peer_urls: string[]
  client_urls: string[]
  learner: boolean
}
export type EtcdStatus = {
  member: string
  version: string
  /** Bytes of its file, and those of them that hold something. */
  size_bytes: number
  in_use_bytes: number
  leader: boolean
  learner: boolean
  /** etcd's own revision. */
  revision: number
}

const CALL_MS = 10_000
/** A file of 2 GiB is written anew in less. */
const DEFRAGMENT_MS = 120_000
const PROMOTE_PAUSE_MS = 200

export class EtcdAdmin {
  readonly #client: EtcdClient
  readonly #clock: Clock

  constructor(client: EtcdClient, clock: Clock) {
    this.#client = client
    this.#clock = clock
  }

  async members(): Promise<EtcdMember[]> {
    const { members } = await this.#call<{ members: Member[] }>('Cluster', 'MemberList', {})
    return members.map(memberOf)
  }

  /** Learners follow without a vote, so that one that never comes up can't cost the majority. */
  async addLearner(peer_url: string): Promise<EtcdMember> {
    const there = (await this.members()).find((m) => m.peer_urls.includes(peer_url))
    if (there) return there
    const { member } = await this.#call<{ member: Member }>('Cluster', 'MemberAdd', {
      peerURLs: [peer_url],
      isLearner: true,
    })
    return memberOf(member)
  }

  /** Waits until it has caught up. @throws StoreError `timeout` */
  async promote(id: string, timeout_ms: number): Promise<void> {
    const deadline_ms = this.#clock.monotonic_ms() + timeout_ms
    for (;;) {
      const member = (await this.members()).find((m) => m.id === id)
      if (!member) throw new StoreError({ kind: 'invalid', detail: `etcd has no member ${id}` })
      if (!member.learner) return
      try {
        await this.#call('Cluster', 'MemberPromote', { ID: id })
        return
      } catch (error) {
        if (this.#clock.monotonic_ms() > deadline_ms) {
          throw new StoreError({
            kind: 'timeout',
            detail: `the new member of etcd did not catch up in ${Math.round(timeout_ms / 1000)} s: ${(error as Error).message}`,
            retryable: true,
            cause: error,
          })
        }
      }
      await sleep(this.#clock, PROMOTE_PAUSE_MS)
    }
  }

  /** One that is no member any more is no error. */
  async remove(id: string): Promise<void> {
    try {
      await this.#client.call('Cluster', 'MemberRemove', { ID: id }, this.#deadline())
    } catch (error) {
      if ((error as ServiceError).code !== code.NOT_FOUND) throw translate(error)
    }
  }

  /** Of one member; undefined when it does not answer. */
  async status(endpoint: string): Promise<EtcdStatus | undefined> {
    try {
      const s = await this.#client.callAt<StatusReply>(endpoint, 'Maintenance', 'Status', {}, 2_000)
      return {
        member: s.header.member_id,
        version: s.version,
        size_bytes: Number(s.dbSize),
        in_use_bytes: Number(s.dbSizeInUse),
        leader: s.leader === s.header.member_id,
        learner: s.isLearner,
        revision: Number(s.header.revision),
      }
    } catch {
      return undefined
    }
  }

  /** The member answers nobody meanwhile: one after the other, the leader last. */
  async defragment(endpoint: string): Promise<void> {
    await this.#client
      .callAt(endpoint, 'Maintenance', 'Defragment', {}, DEFRAGMENT_MS)
      .catch((error: unknown) => Promise.reject(translate(error)))
  }

  /** Forgets what was before this revision of etcd. One that is forgotten already is no error. */
  async compact(revision: number): Promise<void> {
    try {
      await this.#client.call('KV', 'Compact', { revision, physical: true }, this.#deadline())
    } catch (error) {
      if ((error as ServiceError).code !== code.OUT_OF_RANGE) throw translate(error)
    }
  }

  async alarms(): Promise<{ member: string; alarm: AlarmType }[]> {
    const { alarms } = await this.#call<{ alarms: { memberID: string; alarm: AlarmType }[] }>('Maintenance', 'Alarm', {
      action: 'GET',
    })
    return alarms.map(({ memberID, alarm }) => ({ member: memberID, alarm }))
  }

  async disarm(member: string, alarm: AlarmType): Promise<void> {
    await this.#call('Maintenance', 'Alarm', { action: 'DEACTIVATE', memberID: member, alarm })
  }

  #deadline(): number {
    return this.#clock.monotonic_ms() + CALL_MS
  }

  async #call<R>(service: 'Cluster' | 'Maintenance', method: string, request: object): Promise<R> {
    try {
      return await this.#client.call<R>(service, method, request, this.#deadline())
    } catch (error) {
      throw translate(error)
    }
  }
}

const memberOf = (m: Member): EtcdMember => ({
  id: m.ID,
  name: m.name,
  peer_urls: m.peerURLs,
  client_urls: m.clientURLs,
  learner: m.isLearner,
})
