/** What passes to and from a VM: rules of its own, and of security groups that many VMs share. */
import Type from 'typebox'
import { IdSchema, NameSchema, RefSchema } from '../ids.ts'
import { Closed, DescriptionSchema, metaFields } from './common.ts'

export const MAX_RULES = 64
export const MAX_GROUPS = 16

const action = Type.Union([Type.Literal('accept'), Type.Literal('drop')])
const direction = Type.Union([Type.Literal('in'), Type.Literal('out')], { description: 'seen from the VM' })
const ports = Type.String({
  pattern: '^\\d{1,5}(-\\d{1,5})?(,\\d{1,5}(-\\d{1,5})?){0,31}$',
  maxLength: 400,
  description: "of tcp or udp, the VM's own for `in`, the other side's for `out`: 22,80,8000-8100",
})
const peers = (of: string) =>
  Type.Array(
    Type.String({
      pattern: '^[0-9A-Za-z:./-]{1,63}$',
      maxLength: 63,
      description: 'IPv4 or IPv6 address or subnet, or a security group: the known addresses of its VMs',
    }),
    { minItems: 1, maxItems: 32, description: of },
  )

/** The first rule that matches a packet decides; what no rule matches is decided by the default of its direction. */
export const FirewallRuleSchema = Closed({
  name: NameSchema,
  direction,
  action,
  protocol: Type.Optional(
    Type.Union([Type.Literal('tcp'), Type.Literal('udp'), Type.Literal('icmp'), Type.Literal('any')], {
      default: 'any',
      description: 'icmp: ICMPv6 too',
    }),
  ),
  ports: Type.Optional(ports),
  from: Type.Optional(peers('of `in`: where it comes from; left out: anybody')),
  to: Type.Optional(peers('of `out`: where it goes; left out: anybody')),
})
export type FirewallRule = Type.Static<typeof FirewallRuleSchema>
const rules = Type.Array(FirewallRuleSchema, { maxItems: MAX_RULES })

/** Defaults where nothing is said: `in` drop, `out` accept. */
export const FirewallInputSchema = Closed({
  in: Type.Optional(action),
  out: Type.Optional(action),
  groups: Type.Optional(
    Type.Array(RefSchema, { maxItems: MAX_GROUPS, description: 'security groups, whose rules follow its own' }),
  ),
  rules: Type.Optional(rules),
})
export type FirewallInput = Type.Static<typeof FirewallInputSchema>

/** As it is kept: groups by their ids, in rules too. */
export const FirewallSchema = Type.Object({
  in: action,
  out: action,
  groups: Type.Array(IdSchema),
  rules,
})
export type Firewall = Type.Static<typeof FirewallSchema>

export const FirewallGroupCreateSchema = Closed(
  { name: NameSchema, description: Type.Optional(DescriptionSchema), rules: Type.Optional(rules) },
  { title: 'FirewallGroupCreate' },
)
export type FirewallGroupCreate = Type.Static<typeof FirewallGroupCreateSchema>
export const FirewallGroupEditSchema = Closed(
  {
    name: Type.Optional(NameSchema),
    description: Type.Optional(DescriptionSchema),
    rules: Type.Optional(Type.Array(FirewallRuleSchema, { maxItems: MAX_RULES, description: 'replaces its rules' })),
  },
  { title: 'FirewallGroupEdit', minProperties: 1 },
)
export type FirewallGroupEdit = Type.Static<typeof FirewallGroupEditSchema>
export const FirewallGroupSchema = Type.Object(
  {
    ...metaFields,
    description: Type.String(),
    rules,
    vms: Type.Array(Type.Object({ id: IdSchema, name: NameSchema }), { description: 'VMs it is given to' }),
  },
  { title: 'FirewallGroup' },
)
export type FirewallGroup = Type.Static<typeof FirewallGroupSchema>

/** What holds for a VM, in the order in which it is asked. */
export const VmFirewallSchema = Type.Object(
  {
    enabled: Type.Boolean({ description: 'false: everything passes' }),
    in: action,
    out: action,
    rules: Type.Array(
      Type.Object({
        ...FirewallRuleSchema.properties,
        group: Type.Optional(NameSchema),
        /** What groups in `from` and `to` stand for now. */
        addresses: Type.Optional(Type.Array(Type.String())),
      }),
    ),
  },
  { title: 'VmFirewall' },
)
export type VmFirewall = Type.Static<typeof VmFirewallSchema>
