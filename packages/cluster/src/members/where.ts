/** Which host a request belongs to. Pure over the view: every host answers it alike. */
import { isId } from '@wadah/api/ids'
import type { CachedView } from '@wadah/store/cache'
import type { Kind } from '@wadah/store/store'
import { jobKind } from '../jobs/record.ts'
import {
  hostKind,
  imageKind,
  imageVolumes,
  indexKeys,
  indexKind,
  placementKind,
  poolKind,
  volumeKind,
} from '../records.ts'

type View = Pick<CachedView, 'get' | 'list'>
export type Asked = {
  /** Of the endpoint: `vms.start`. */
  id: string
  params: Record<string, string | undefined>
  query: Record<string, unknown>
  body: unknown
}

/** What any host answers from the records it sees itself, or what concerns the host that is asked. */
const ANYWHERE = new Set([
  'vms.list',
  'vms.get',
  'vms.console',
  'vms.firewall',
  'snapshots.list',
  'snapshots.get',
  'images.list',
  'images.get',
  'volumes.list',
  'volumes.get',
  'pools.list',
  'jobs.list',
])

/** The id of the host that must carry it out; undefined: whoever was asked. */
export function whereIs(view: View, project: string, asked: Asked): string | undefined {
  const { id, params, query, body } = asked
  if (typeof query['host'] === 'string') return hostNamed(view, query['host'])
  if (ANYWHERE.has(id)) return undefined
  // To wait for it one must be where it is carried out; to look at it not.
  if (id === 'jobs.get' && query['wait'] === undefined) return undefined
  if (id === 'cluster.drain' || id === 'cluster.undrain') return hostNamed(view, params['host'] ?? '')
  if (params['vm'] !== undefined) return ofVm(view, project, params['vm'])
  if (params['job'] !== undefined) return view.get(jobKind, params['job'])?.value.executor.host
  if (params['volume'] !== undefined) return ofVolume(view, find(view, 'volume', project, params['volume']))
  if (params['pool'] !== undefined) return ofPool(view, find(view, 'pool', project, params['pool']))
  if (params['image'] !== undefined) return ofImage(view, find(view, 'image', project, params['image']))
  const text = (field: string) => {
    const value = (body as Record<string, unknown> | undefined)?.[field] ?? query[field]
    return typeof value === 'string' ? value : undefined
  }
  const pool = text('pool')
  if (pool !== undefined && (id === 'volumes.create' || id === 'volumes.upload' || id.startsWith('images.')))
    return ofPool(view, find(view, 'pool', project, pool))
  const vm = text('vm')
  if (vm !== undefined && (id.startsWith('images.') || id.startsWith('volumes.'))) return ofVm(view, project, vm)
  return undefined
}

/** What it is called; its id when it is not of the cluster any more. */
export const hostName = (view: Pick<View, 'get'>, id: string): string => view.get(hostKind, id)?.value.name ?? id

/** By name or id. */
export function hostNamed(view: View, ref: string): string | undefined {
  return view.list(hostKind).find(({ id, value }) => id === ref || value.name === ref)?.id
}

export function ofImage(view: View, image: string | undefined): string | undefined {
  const record = image === undefined ? undefined : view.get(imageKind, image)?.value
  if (!record) return undefined
  const [first] = imageVolumes(record)
  return first === undefined ? record.host : ofVolume(view, first)
}

function ofVm(view: View, project: string, ref: string): string | undefined {
  const vm = find(view, 'vm', project, ref)
  return vm === undefined ? undefined : view.get(placementKind, vm)?.value.host
}

export function ofVolume(view: View, volume: string | undefined): string | undefined {
  const record = volume === undefined ? undefined : view.get(volumeKind, volume)?.value
  if (!record) return undefined
  // Of a VM's disk: where the VM is, so that whoever may write it does.
  const placed = record.vm === undefined ? undefined : view.get(placementKind, record.vm)?.value.host
  return placed ?? ofPool(view, record.pool)
}

/** A shared pool is everybody's. */
function ofPool(view: View, pool: string | undefined): string | undefined {
  const record = pool === undefined ? undefined : view.get(poolKind, pool)?.value
  return record === undefined || record.shared ? undefined : record.host
}

function find(view: View, noun: 'vm' | 'pool' | 'volume' | 'image', project: string, ref: string): string | undefined {
  if (isId(ref)) return ref
  const index: Kind<{ holder: string }> = indexKind
  return view.get(index, indexKeys.name(noun, project, ref))?.value.holder
}
