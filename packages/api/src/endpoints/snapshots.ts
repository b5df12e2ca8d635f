import Type from 'typebox'
import { endpoint } from '../endpoint.ts'
import { RefSchema } from '../ids.ts'
import { Closed } from '../schema/common.ts'
import { JobSchema } from '../schema/job.ts'
import { SnapshotCreateSchema, SnapshotRevertSchema, SnapshotSchema } from '../schema/snapshot.ts'
import { WaitQuerySchema } from './vms.ts'

const tag = 'snapshots'
const ofVm = Closed({ vm: RefSchema })
const params = Closed({ vm: RefSchema, snapshot: RefSchema })

export const snapshots = {
  list: endpoint({
    id: 'snapshots.list',
    method: 'GET',
    path: '/v1/vms/{vm}/snapshots',
    summary: 'List the snapshots of a VM, oldest first; `parent` makes a tree of them',
    tag,
    needs: 'read',
    answer: 'ok',
    params: ofVm,
    response: Type.Object({ items: Type.Array(SnapshotSchema) }, { title: 'SnapshotList' }),
  }),
  create: endpoint({
    id: 'snapshots.create',
    method: 'POST',
    path: '/v1/vms/{vm}/snapshots',
    summary: 'Take a snapshot of all disks at one instant, and of the RAM if asked; the guest runs on',
    tag,
    needs: 'full',
    answer: 'job',
    params: ofVm,
    query: WaitQuerySchema,
    body: SnapshotCreateSchema,
    response: JobSchema,
  }),
  get: endpoint({
    id: 'snapshots.get',
    method: 'GET',
    path: '/v1/vms/{vm}/snapshots/{snapshot}',
    summary: 'Show a snapshot',
    tag,
    needs: 'read',
    answer: 'ok',
    params,
    response: SnapshotSchema,
  }),
  revert: endpoint({
    id: 'snapshots.revert',
    method: 'POST',
    path: '/v1/vms/{vm}/snapshots/{snapshot}/revert',
    summary: 'Make the VM what it was when the snapshot was taken; what is on its disks now is lost',
    tag,
    needs: 'full',
    answer: 'job',
    params,
    query: WaitQuerySchema,
    body: SnapshotRevertSchema,
    response: JobSchema,
  }),
  delete: endpoint({
    id: 'snapshots.delete',
    method: 'DELETE',
    path: '/v1/vms/{vm}/snapshots/{snapshot}',
    summary: 'Delete a snapshot; what only it held goes, and layers that nobody needs are merged',
    tag,
    needs: 'full',
    answer: 'job',
    params,
    query: WaitQuerySchema,
    response: JobSchema,
  }),
} as const
