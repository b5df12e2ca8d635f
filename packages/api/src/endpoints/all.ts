import type { Endpoint } from '../endpoint.ts'
import { images, pools, volumes } from './storage.ts'
import { imageTransfers, volumeTransfers } from './transfers.ts'
import { access, jobs, networks, system, tokens } from './system.ts'
import { snapshots } from './snapshots.ts'
import { firewallGroups } from './firewall.ts'
import { rules } from './rules.ts'
import { vms } from './vms.ts'
import { cluster } from './cluster.ts'

export const endpoints = {
  vms,
  snapshots,
  images: { ...images, ...imageTransfers },
  pools,
  volumes: { ...volumes, ...volumeTransfers },
  networks,
  firewallGroups,
  rules,
  jobs,
  access,
  tokens,
  system,
  cluster,
} as const

/** Every endpoint, in the order of the document. */
export const allEndpoints: readonly Endpoint[] = Object.values(endpoints).flatMap(
  (group) => Object.values(group) as Endpoint[],
)
