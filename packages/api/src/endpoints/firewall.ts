import { endpoint } from '../endpoint.ts'
import { RefSchema } from '../ids.ts'
import { Closed, PageOf, PageQuerySchema } from '../schema/common.ts'
import { FirewallGroupCreateSchema, FirewallGroupEditSchema, FirewallGroupSchema } from '../schema/firewall.ts'

const group = { tag: 'firewall', params: Closed({ group: RefSchema }) }
export const firewallGroups = {
  list: endpoint({
    id: 'firewallGroups.list',
    method: 'GET',
    path: '/v1/firewall/groups',
    tag: 'firewall',
    summary: 'List security groups',
    needs: 'read',
    answer: 'ok',
    query: Closed(PageQuerySchema),
    response: PageOf(FirewallGroupSchema, 'FirewallGroupPage'),
  }),
  create: endpoint({
    id: 'firewallGroups.create',
    method: 'POST',
    path: '/v1/firewall/groups',
    tag: 'firewall',
    summary: 'Create a security group',
    needs: 'full',
    answer: 'created',
    body: FirewallGroupCreateSchema,
    response: FirewallGroupSchema,
  }),
  get: endpoint({
    ...group,
    id: 'firewallGroups.get',
    method: 'GET',
    path: '/v1/firewall/groups/{group}',
    summary: 'Show a security group',
    needs: 'read',
    answer: 'ok',
    response: FirewallGroupSchema,
  }),
  edit: endpoint({
    ...group,
    id: 'firewallGroups.edit',
    method: 'PATCH',
    path: '/v1/firewall/groups/{group}',
    summary: 'Change a security group, for all VMs it is given to at once',
    needs: 'full',
    answer: 'ok',
    if_match: true,
    body: FirewallGroupEditSchema,
    response: FirewallGroupSchema,
  }),
  delete: endpoint({
    ...group,
    id: 'firewallGroups.delete',
    method: 'DELETE',
    path: '/v1/firewall/groups/{group}',
    summary: 'Delete a security group that nothing uses',
    needs: 'full',
    answer: 'no-content',
    if_match: true,
  }),
} as const
