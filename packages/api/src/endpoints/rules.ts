import { endpoint } from '../endpoint.ts'
import { RefSchema } from '../ids.ts'
import { Closed, PageOf, PageQuerySchema } from '../schema/common.ts'
import { RuleCreateSchema, RuleSchema } from '../schema/rule.ts'

const rule = { tag: 'rules', params: Closed({ rule: RefSchema }) }
export const rules = {
  list: endpoint({
    id: 'rules.list',
    method: 'GET',
    path: '/v1/rules',
    tag: 'rules',
    summary: 'List the rules by which VMs are placed',
    needs: 'read',
    answer: 'ok',
    query: Closed(PageQuerySchema),
    response: PageOf(RuleSchema, 'RulePage'),
  }),
  create: endpoint({
    id: 'rules.create',
    method: 'POST',
    path: '/v1/rules',
    tag: 'rules',
    summary: 'Create a rule. It moves nothing by itself: it counts at the next placement or move',
    needs: 'full',
    answer: 'created',
    body: RuleCreateSchema,
    response: RuleSchema,
  }),
  get: endpoint({
    ...rule,
    id: 'rules.get',
    method: 'GET',
    path: '/v1/rules/{rule}',
    summary: 'Show a rule, the VMs it is for, and those that stand against it now',
    needs: 'read',
    answer: 'ok',
    response: RuleSchema,
  }),
  delete: endpoint({
    ...rule,
    id: 'rules.delete',
    method: 'DELETE',
    path: '/v1/rules/{rule}',
    summary: 'Delete a rule',
    needs: 'full',
    answer: 'no-content',
    if_match: true,
  }),
} as const
