import Type from 'typebox'
import { endpoint } from '../endpoint.ts'
import {
  ClusterHostSchema,
  ClusterSchema,
  HostEditSchema,
  JoinTokenCreateSchema,
  JoinTokenSchema,
} from '../schema/cluster.ts'
import { Closed } from '../schema/common.ts'

const host = Closed({ host: Type.String({ minLength: 1, maxLength: 253 }) })
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
  remove: endpoint({
    id: 'cluster.remove',
    method: 'DELETE',
    path: '/v1/cluster/hosts/{host}',
    tag: 'cluster',
    summary: 'Take a host without VMs out of the cluster',
    needs: 'full',
    answer: 'no-content',
    params: host,
  }),
} as const
