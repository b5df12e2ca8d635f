/** What a VM's NIC is attached to. */
import Type from 'typebox'
import { IdSchema, NameSchema } from '../ids.ts'
import { Closed, Ipv4Schema, MacSchema, metaFields } from './common.ts'

export const CidrSchema = Type.String({
  pattern: '^((25[0-5]|2[0-4]\\d|1?\\d?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1?\\d?\\d)/(1[6-9]|2[0-8])$',
  description: 'private IPv4 subnet, /16 to /28',
})
/** Linux: at most 15 characters. */
const ifname = (description: string) =>
  Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$', maxLength: 15, description })
const vlan = Type.Integer({ minimum: 1, maximum: 4094, description: 'IEEE 802.1Q VLAN id' })
export const NETWORK_KINDS = ['user', 'nat', 'bridge'] as const
const kind = Type.Union([Type.Literal('user'), Type.Literal('nat'), Type.Literal('bridge')])

const domain = Type.String({
  pattern: '^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$',
  maxLength: 200,
  description: 'DNS domain of small letters, as lab.internal',
})

export const NetworkCreateSchema = Closed(
  {
    name: NameSchema,
    kind,
    subnet: Type.Optional(CidrSchema),
    domain: Type.Optional(domain),
    bridge: Type.Optional(ifname('kind bridge: a Linux bridge that is there')),
    nic: Type.Optional(ifname('kind bridge: a NIC of the host; Wadah makes a bridge of its own with the NIC in it')),
    vlan: Type.Optional(vlan),
    host_access: Type.Optional(
      Type.Boolean({
        default: false,
        description: 'guests reach whatever listens on the host; otherwise its DHCP and DNS alone',
      }),
    ),
  },
  { title: 'NetworkCreate' },
)
export type NetworkCreate = Type.Static<typeof NetworkCreateSchema>
export const NetworkSchema = Type.Object(
  {
    ...metaFields,
    kind,
    subnet: Type.Optional(CidrSchema),
    gateway: Type.Optional(Ipv4Schema),
    bridge: Type.Optional(Type.String()),
    nic: Type.Optional(Type.String()),
    vlan: Type.Optional(vlan),
    domain: Type.Optional(Type.String()),
    host_access: Type.Optional(Type.Boolean()),
    state: Type.Union([Type.Literal('up'), Type.Literal('down')]),
    reason: Type.Optional(Type.String({ description: 'why it is down' })),
    /** Addresses that are promised to a NIC. */
    reservations: Type.Array(
      Type.Object({ vm: IdSchema, vm_name: NameSchema, nic: NameSchema, mac: MacSchema, address: Ipv4Schema }),
    ),
  },
  { title: 'Network' },
)
export type Network = Type.Static<typeof NetworkSchema>
