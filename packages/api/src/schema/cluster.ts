/** Many hosts. */
import Type from 'typebox'
import { IdSchema, NameSchema } from '../ids.ts'
import { Closed } from './common.ts'
import { MaxStallSchema, MoveModeSchema } from './migration.ts'

export const ClusterHostSchema = Type.Object(
  {
    id: IdSchema,
    name: Type.String(),
    address: Type.Optional(
      Type.String({ description: 'where the other hosts reach it; absent on a host that is alone' }),
    ),
    state: Type.Enum(['up', 'down', 'maintenance'] as const, {
      description: 'down: it has given no sign of life for ten seconds. Its VMs may well run',
    }),
    member: Type.Boolean({ description: 'it keeps a copy of the store (a member of etcd)' }),
    vms: Type.Integer({ description: 'VMs placed here' }),
    running: Type.Integer(),
    version: Type.Optional(Type.String({ description: 'of wadahd, as it last started' })),
    clock_off_ms: Type.Optional(
      Type.Integer({ description: 'its clock − that of `this_host`, where it is more than 30 s off' }),
    ),
    qemu_version: Type.Optional(Type.String()),
    accelerator: Type.Optional(Type.Enum(['kvm', 'tcg'] as const)),
    cpu_model: Type.Optional(Type.String()),
    cpus: Type.Optional(Type.Integer()),
    cpu_busy: Type.Optional(
      Type.Number({
        description: 'cores at work there, as it last said; absent: not known, or not said for five minutes',
      }),
    ),
    memory_mib: Type.Optional(Type.Integer()),
    memory_free_mib: Type.Optional(Type.Integer()),
    promised_memory_mib: Type.Integer({ description: 'sum of the RAM of the VMs that run here' }),
  },
  { title: 'ClusterHost' },
)
export type ClusterHost = Type.Static<typeof ClusterHostSchema>

export const ClusterSchema = Type.Object(
  {
    id: Type.Optional(Type.String({ description: 'absent: this host is alone' })),
    level: Type.Integer({ description: 'what hosts may write; raised by itself once all of them can' }),
    this_host: IdSchema,
    plain_networks: Type.Optional(
      Type.Array(Type.String(), { description: 'networks on which VMs move between hosts unencrypted' }),
    ),
    hosts: Type.Array(ClusterHostSchema),
    store: Type.Object({
      kind: Type.Enum(['sqlite', 'etcd'] as const),
      given: Type.Optional(
        Type.Object(
          {
            prefix: Type.String({ description: 'below which its keys lie' }),
            client_until: Type.String({ description: 'when the certificate ends that this host shows it' }),
          },
          { description: "the etcd is the administrator's own: no host keeps a copy" },
        ),
      ),
      members: Type.Array(
        Type.Object({
          host: Type.Optional(IdSchema),
          endpoint: Type.String(),
          state: Type.Enum(['leader', 'follower', 'learner', 'silent'] as const),
          version: Type.Optional(Type.String()),
          size_bytes: Type.Optional(Type.Integer()),
          detail: Type.Optional(Type.String({ description: 'what is not yet as it should be, and what to do' })),
        }),
      ),
    }),
  },
  { title: 'Cluster' },
)
export type Cluster = Type.Static<typeof ClusterSchema>

export const ClusterEditSchema = Closed(
  {
    plain_networks: Type.Array(Type.String({ minLength: 1, maxLength: 50 }), {
      maxItems: 16,
      description:
        'networks (10.9.0.0/24) that nobody but the hosts can reach: between two hosts whose addresses both lie in one VMs move unencrypted, unless asked otherwise',
    }),
  },
  { title: 'ClusterEdit' },
)
export type ClusterEdit = Type.Static<typeof ClusterEditSchema>

export const JoinTokenCreateSchema = Closed(
  {
    ttl_s: Type.Optional(
      Type.Integer({ minimum: 60, maximum: 86_400, default: 3600, description: 'seconds until it ends' }),
    ),
  },
  { title: 'JoinTokenCreate' },
)
export type JoinTokenCreate = Type.Static<typeof JoinTokenCreateSchema>
export const JoinTokenSchema = Type.Object(
  {
    token: Type.String({ description: 'for one host, once: wadah cluster join reads it' }),
    expires_at: Type.String(),
  },
  { title: 'JoinToken' },
)
export type JoinToken = Type.Static<typeof JoinTokenSchema>

export const HostEditSchema = Closed({ maintenance: Type.Boolean() }, { title: 'HostEdit' })
export const HostRefSchema = Type.Union([NameSchema, IdSchema, Type.String({ minLength: 1, maxLength: 253 })])

const wishes = {
  mode: Type.Optional(MoveModeSchema),
  max_stall_ms: MaxStallSchema('how long each guest may stand still; never raised by itself'),
}
/** Of every move of a drain. */
export const MoveWishesSchema = Closed(wishes, { title: 'MoveWishes' })
export type MoveWishes = Type.Static<typeof MoveWishesSchema>
export const AtOnceSchema = Type.Optional(
  Type.Integer({
    minimum: 1,
    maximum: 16,
    description: 'moves at a time, two unless said; more than `moves_at_once` in the settings of the host is refused',
  }),
)
export const DrainSchema = Closed({ at_once: AtOnceSchema, ...wishes }, { title: 'Drain' })
export type Drain = Type.Static<typeof DrainSchema>

export const DrainPlanSchema = Type.Object(
  {
    moves: Type.Array(
      Type.Object({
        vm: Type.String(),
        to: Type.String(),
        mode: Type.Enum(['live', 'offline'] as const),
        seconds: Type.Number(),
        bytes: Type.Number({
          description: 'that are sent: of RAM, again what is written meanwhile, and of local disks',
        }),
        disks: Type.Optional(
          Type.Array(
            Type.Object({
              from: Type.String(),
              to: Type.String(),
              bytes: Type.Number({ description: 'room for it; what is sent of it may be less' }),
            }),
            { description: 'local disks that go along, each with the pool it lies in and the one it would go to' },
          ),
        ),
      }),
    ),
    blockers: Type.Array(
      Type.Object({ vm: Type.String(), why: Type.Array(Type.String()), remedy: Type.Optional(Type.String()) }),
      { description: 'VMs that would stay, and why' },
    ),
    eta_s: Type.Number(),
    eta_how: Type.String(),
    detail: Type.String(),
  },
  { title: 'DrainPlan' },
)
export type DrainPlan = Type.Static<typeof DrainPlanSchema>
/** Result of the jobs host.drain and host.undrain. */
export type DrainResult = {
  moved: { vm: string; to: string; stall_ms?: number }[]
  stayed: { vm: string; why: string }[]
}
