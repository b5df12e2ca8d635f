/** What a host that joins brings: of each kind of record what becomes of it, and what an earlier try of the same host has written. */
import { claimKind, idempotencyKind, jobKind } from '../jobs/record.ts'
import { tallyKind } from '../metrics/moves.ts'
import {
  groupKind,
  hostKind,
  imageKind,
  indexKind,
  type IndexRecord,
  networkDownKind,
  networkKind,
  placementKind,
  poolKind,
  ruleKind,
  secretKind,
  snapshotKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { aliveKind, authoritiesKind, clusterKind, factsKind, joinTokenKind, loadKind } from './records.ts'

export type Raw = { kind: string; id: string; value: unknown }

/** Of the daemon: who may ask. The names are records of their own, and who logs in is found by them. */
export const USER = 'access/user'
export const USER_NAME = 'access/user-name'
export const TOKEN = 'access/token'
export const TOKEN_NAME = 'access/token-name'

/** `settled`: settle.ts has a case for it. `left`: why it stays behind. */
export type Fate = 'settled' | 'as it is' | { left: string }

const NOT_ALONE: Fate = { left: 'of a cluster; a single host has none' }
const OF_JOBS: Fate = { left: 'of jobs, and none may be under way; what has ended is read in the store that is kept' }

/** Of every kind there is. */
export const FATES: ReadonlyMap<string, Fate> = new Map<string, Fate>([
  [vmKind.name, 'settled'],
  [placementKind.name, 'as it is'],
  [statusKind.name, 'as it is'],
  [secretKind.name, 'as it is'],
  [snapshotKind.name, 'settled'],
  [poolKind.name, 'settled'],
  [volumeKind.name, 'settled'],
  [imageKind.name, 'settled'],
  [networkKind.name, 'settled'],
  [networkDownKind.name, { left: 'each host says it anew of itself' }],
  [groupKind.name, 'settled'],
  [ruleKind.name, 'settled'],
  [indexKind.name, 'settled'],
  [hostKind.name, { left: 'written by the cluster, last' }],
  [tallyKind.name, 'as it is'],
  [USER, 'settled'],
  [USER_NAME, 'settled'],
  [TOKEN, 'settled'],
  [TOKEN_NAME, 'settled'],
  ['access/session', { left: 'who works in a browser logs in again' }],
  ['access/setup', { left: 'a cluster has administrators' }],
  ['http/reply', { left: 'of requests to a daemon that is no more' }],
  [jobKind.name, OF_JOBS],
  [claimKind.name, OF_JOBS],
  [idempotencyKind.name, OF_JOBS],
  [clusterKind.name, NOT_ALONE],
  [authoritiesKind.name, NOT_ALONE],
  [joinTokenKind.name, NOT_ALONE],
  [aliveKind.name, NOT_ALONE],
  [factsKind.name, NOT_ALONE],
  [loadKind.name, NOT_ALONE],
])

export const isLeft = (kind: string): boolean => typeof (FATES.get(kind) ?? { left: '' }) === 'object'

/** Whose key or name it is: such records have no id of their own. */
function holderOf({ kind, value }: Raw): string | undefined {
  if (kind === indexKind.name) return (value as IndexRecord).holder
  if (kind === USER_NAME) return (value as { user: string }).user
  if (kind === TOKEN_NAME) return (value as { token: string }).token
  return undefined
}

/** What the cluster has beside that which an earlier try of this host, cut off, has written. */
export function othersOf(joining: readonly Raw[], all: readonly Raw[]): Raw[] {
  const own = new Set(joining.map((r) => `${r.kind}/${r.id}`))
  const ids = new Set(joining.filter((r) => holderOf(r) === undefined).map((r) => r.id))
  return all.filter((r) => {
    const holder = holderOf(r)
    return holder === undefined ? !own.has(`${r.kind}/${r.id}`) : !ids.has(holder)
  })
}
