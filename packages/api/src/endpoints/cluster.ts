import Type from 'typebox'
import { endpoint } from '../endpoint.ts'
import {
  AtOnceSchema,
  ClusterHostSchema,
  ClusterSchema,
  DrainPlanSchema,
  DrainSchema,
  HostEditSchema,
  JoinTokenCreateSchema,
  JoinTokenSchema,
  MoveWishesSchema,
} from '../schema/cluster.ts'
import { JobSchema } from '../schema/job.ts'
import { Closed } from '../schema/common.ts'

const host = Closed({ host: Type.String({ minLength: 1, maxLength: 253 }) })
const wait = Closed({ wait: Type.Optional(Type.Integer({ minimum: 0, maximum: 600 })) })
export const cluster = {
  get: endpoint({
    id: 'cluster.get',
    method: 'GET',
    path: '/v1/cluster',
    tag: 'cluster',
    summary: 'The cluster: its hosts and its store',
    needs: 'read',
    answer: 'ok',
    response: ClusterSchema,
  }),
  token: endpoint({
    id: 'cluster.token',
    method: 'POST',
    path: '/v1/cluster/tokens',
    tag: 'cluster',
    summary: 'Make a token with which one host may join',
    needs: 'full',
    answer: 'created',
    body: JoinTokenCreateSchema,
    response: JoinTokenSchema,
  }),
  host: endpoint({
    id: 'cluster.host',
    method: 'GET',
    path: '/v1/cluster/hosts/{host}',
    tag: 'cluster',
    summary: 'Show a host',
    needs: 'read',
    answer: 'ok',
    params: host,
    response: ClusterHostSchema,
  }),
  edit: endpoint({
    id: 'cluster.edit',
    method: 'PATCH',
    path: '/v1/cluster/hosts/{host}',
    tag: 'cluster',
    summary: 'Whether new VMs may come to a host',
    needs: 'full',
    answer: 'ok',
    params: host,
    body: HostEditSchema,
    response: ClusterHostSchema,
  }),
  plan: endpoint({
    id: 'cluster.plan',
    method: 'GET',
    path: '/v1/cluster/hosts/{host}/drain',
    tag: 'cluster',
    summary: 'What emptying a host would do: where each VM would go, how long it would take, and what is in the way',
    needs: 'read',
    answer: 'ok',
    params: host,
    query: Closed({ at_once: AtOnceSchema }),
    response: DrainPlanSchema,
  }),
  drain: endpoint({
    id: 'cluster.drain',
    method: 'POST',
    path: '/v1/cluster/hosts/{host}/drain',
    tag: 'cluster',
    summary:
      'Empty a host: nothing new comes to it, and its VMs go to others. Cancelled it pauses; asked for again it goes on',
    needs: 'full',
    answer: 'job',
    params: host,
    query: wait,
    body: DrainSchema,
    response: JobSchema,
  }),
  undrain: endpoint({
    id: 'cluster.undrain',
    method: 'POST',
    path: '/v1/cluster/hosts/{host}/undrain',
    tag: 'cluster',
    summary: 'End the maintenance of a host, and bring back what a drain took from it',
    needs: 'full',
    answer: 'job',
    params: host,
    query: wait,
    body: MoveWishesSchema,
    response: JobSchema,
  }),
  remove: endpoint({
    id: 'cluster.remove',
    method: 'DELETE',
    path: '/v1/cluster/hosts/{host}',
    tag: 'cluster',
    summary: 'Take a host without VMs out of the cluster, or one that is lost for ever',
    needs: 'full',
    answer: 'no-content',
    params: host,
    query: Closed({
      lost: Type.Optional(
        Type.Boolean({
          default: false,
          description:
            'it is off and does not come back: its VMs whose disks others reach are placed elsewhere, stopped. If it runs after all, they run twice',
        }),
      ),
      drop: Type.Optional(
        Type.Boolean({
          default: false,
          description: 'with lost: VMs, volumes and images that lay on its disks only are forgotten',
        }),
      ),
    }),
  }),
} as const
