/** The parts that begin, joining and an ordinary start have in common: certificates of a host, its member of etcd, the store over it. */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { AuthoritiesRecord } from '@wadah/cluster/members/records'
import type { HostPorts } from '@wadah/cluster/records'
import { type MemberPlan, memberLog } from '@wadah/host/etcd/member'
import { systemClock } from '@wadah/store/clock'
import type { Tls } from '@wadah/store/etcd/client'
import { type EtcdStore, openEtcdStore } from '@wadah/store/etcd/etcd-store'
import { QUOTA_BYTES } from '@wadah/store/etcd/upkeep'
import type { DaemonConfig } from '../config.ts'
import { type Certificates, clusterDir, etcdDir, type Identity } from './identity.ts'
import type { Given } from './given.ts'
import { issue } from './pki.ts'

/** Three in a row, so that a firewall needs one rule. */
export const portsFrom = (peer: number): HostPorts => ({ peer, etcd_client: peer + 1, etcd_peer: peer + 2 })

/** After the uids of VMs, the one that probes the accelerator and the one for qemu-img. */
export const etcdUid = (config: Pick<DaemonConfig, 'uid_base' | 'uid_count'>): number | null =>
  process.getuid?.() === 0 ? config.uid_base + config.uid_count + 2 : null

/** What its certificates say of a host: its id is its name among peers. */
export const namesOf = (host: { id: string; address: string }) => [host.id, host.address]

/** New keys and certificates of a host. */
export async function certify(
  authorities: Pick<AuthoritiesRecord, 'hosts' | 'etcd'>,
  host: { id: string; address: string },
  now_ms: number,
): Promise<Certificates> {
  const names = namesOf(host)
  const [own, client, member] = await Promise.all([
    issue(authorities.hosts, { name: host.id, names, now_ms }),
    issue(authorities.etcd, { name: `client ${host.id}`, names: [host.id], now_ms }),
    issue(authorities.etcd, { name: `member ${host.id}`, names: [...names, MEMBER_NAME], now_ms }),
  ])
  return {
    hosts_ca: authorities.hosts.cert,
    host: own,
    etcd_ca: authorities.etcd.cert,
    etcd_client: client,
    etcd_member: member,
  }
}

export function memberPlan(config: DaemonConfig, identity: Identity): MemberPlan | undefined {
  if (!identity.member) return undefined
  return {
    directory: etcdDir(config.data),
    tls: clusterDir(config.data),
    address: identity.address,
    client_port: identity.ports.etcd_client,
    peer_port: identity.ports.etcd_peer,
    token: identity.cluster,
    quota_bytes: QUOTA_BYTES,
    uid: etcdUid(config),
    ...identity.member,
  }
}

/** With what was given for the administrator's etcd, in place of ours. */
export function withGiven(certificates: Certificates, given: Pick<Given, 'ca' | 'client'>): Certificates {
  const { etcd_member: _, ...rest } = certificates
  return { ...rest, etcd_ca: given.ca, etcd_client: given.client }
}

/** Every member of our own has it in its certificate beside its own. */
const MEMBER_NAME = 'etcd.wadah.internal'

/** `given`: its members are known by their own names and addresses. */
export function storeTls(c: Certificates, given: boolean): Tls {
  return {
    ...(given ? {} : { server_name: MEMBER_NAME }),
    ca: Buffer.from(c.etcd_ca),
    client: { cert: Buffer.from(c.etcd_client.cert), key: Buffer.from(c.etcd_client.key) },
  }
}

/** Tries until a majority of etcd answers, or `timeout_ms` is over. */
export async function openStore(
  o: Pick<Identity, 'endpoints' | 'etcd'> & { certificates: Certificates; data: string; timeout_ms: number },
  log: (line: string) => void = () => undefined,
): Promise<EtcdStore> {
  const until = systemClock.monotonic_ms() + o.timeout_ms
  for (let told = false; ; told = true) {
    try {
      const { endpoints, etcd } = o
      const tls = storeTls(o.certificates, etcd !== undefined)
      return await openEtcdStore({ endpoints, tls, ...(etcd ? { prefix: etcd.prefix, shared: true } : {}) })
    } catch (error) {
      const why = (error as Error).message
      if (systemClock.monotonic_ms() > until) {
        if (o.etcd)
          throw fail('store_failed', `The cluster's store, an etcd that is not its own, does not answer: ${why}`, {
            remedy: `etcdctl --endpoints ${o.endpoints.join(',')} endpoint status --cluster`,
            effect: 'none',
            cause: error,
          })
        const said = await memberLog(etcdDir(o.data))
        throw fail('store_failed', `The cluster's store does not answer: ${why}${said === '' ? '' : `\n${said}`}`, {
          remedy: `less ${join(etcdDir(o.data), 'etcd.log')}`,
          effect: 'none',
          cause: error,
        })
      }
      if (!told) log(`the cluster's store does not answer yet: ${why}`)
      await sleep(200)
    }
  }
}
