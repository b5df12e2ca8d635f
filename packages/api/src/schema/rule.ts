/** Which VMs belong together, which apart, and on which hosts. */
import Type from 'typebox'
import { IdSchema, NameSchema, RefSchema } from '../ids.ts'
import { Closed, metaFields } from './common.ts'

export const RULE_KINDS = ['together', 'apart', 'on', 'not-on'] as const
const kind = Type.Enum(RULE_KINDS, {
  description: 'together: all on one host. apart: no two on one host. on, not-on: only on, never on these hosts',
})
const strict = Type.Boolean({
  description:
    'true: no placement and no move breaks it; what is broken already stays. false: it is kept where it can be',
})
const selector = Type.String({
  minLength: 1,
  maxLength: 1024,
  description: 'VMs by their labels, also those that are made later: role=web,env!=test',
})
const hosts = <T extends Type.TSchema>(of: T) => Type.Array(of, { maxItems: 256, description: 'of on and not-on' })

export const RuleCreateSchema = Closed(
  {
    name: NameSchema,
    kind,
    strict: Type.Optional(strict),
    selector: Type.Optional(selector),
    vms: Type.Optional(Type.Array(RefSchema, { maxItems: 256, description: 'VMs by name or id, beside those chosen' })),
    hosts: Type.Optional(hosts(Type.String({ minLength: 1, maxLength: 253 }))),
  },
  { title: 'RuleCreate' },
)
export type RuleCreate = Type.Static<typeof RuleCreateSchema>

const named = Type.Object({ id: IdSchema, name: Type.String() })
export const RuleSchema = Type.Object(
  {
    ...metaFields,
    kind,
    strict,
    selector: Type.Optional(selector),
    /** Those named one by one. */
    named: Type.Array(named),
    hosts: Type.Optional(hosts(named)),
    vms: Type.Array(named, { description: 'all that it is for now' }),
    broken: Type.Array(named, { description: 'of these, those that stand against it now' }),
  },
  { title: 'Rule' },
)
export type Rule = Type.Static<typeof RuleSchema>
