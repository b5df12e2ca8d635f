/** Moving a VM to another host. */
import Type from 'typebox'
import { Closed } from './common.ts'

export const MOVE_MODES = ['auto', 'precopy', 'postcopy', 'hybrid'] as const
export const MoveModeSchema = Type.Enum(MOVE_MODES, {
  description:
    'precopy: all RAM first, then the switch. postcopy: the guest goes at once and fetches its RAM. hybrid: some rounds of the first, then the second. auto: the first, and the second only where it would not come to an end',
})

/** The ceiling, ms. */
export const MaxStallSchema = (description: string) =>
  Type.Optional(Type.Integer({ minimum: 1, maximum: 60_000, default: 300, description }))

/** What is asked of a move, or of its plan. */
export const moveWishes = {
  to: Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 253,
      description: 'name or id of the host; the one with most room unless said',
    }),
  ),
  pool: Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 63,
      description:
        'where disks go that lie in a pool of its host only: a pool of the other host, by name or id; unless said, of those with room: the one of the same name there, else its usual one, else the roomiest',
    }),
  ),
  mode: Type.Optional(MoveModeSchema),
  max_stall_ms: MaxStallSchema('how long the guest may stand still; never raised by itself'),
  bandwidth_mib_per_s: Type.Optional(Type.Integer({ minimum: 1, maximum: 100_000 })),
  plain: Type.Optional(
    Type.Boolean({
      description:
        'of one that runs. true: RAM and disks go unencrypted: only where nobody else can reach the network between the hosts; false: encrypted; unless said, as set for that network (PATCH /v1/cluster)',
    }),
  ),
} as const
export const VmMigrateSchema = Closed(moveWishes, { title: 'VmMigrate' })
export type VmMigrate = Type.Static<typeof VmMigrateSchema>

const ms = Type.Number({ minimum: 0 })
export const GapSchema = Type.Object({
  address: Type.String(),
  sent: Type.Integer({ description: 'questions asked of the guest, 200 and more a second' }),
  lost: Type.Integer(),
  longest_gap_ms: ms,
  before_ms: Type.Optional(Type.Number({ description: 'median time to an answer before the move' })),
  during_ms: Type.Optional(ms),
  after_ms: Type.Optional(ms),
})
export type Gap = Type.Static<typeof GapSchema>

const foreseen = {
  total_ms: ms,
  stall_ms: ms,
  bytes: Type.Number({ description: 'of RAM' }),
  disk_bytes: Type.Optional(Type.Number({ description: 'of local disks, beside it' })),
}

/** What `wadah vm migrate --dry-run` shows. */
export const MovePlanSchema = Type.Object(
  {
    vm: Type.String(),
    from: Type.String(),
    to: Type.Optional(Type.String({ description: 'absent where it would be refused' })),
    live: Type.Boolean({ description: 'false: it is stopped' }),
    mode: Type.String(),
    forecast: Type.Optional(
      Type.Object({
        ...foreseen,
        how: Type.Optional(Type.Enum(['precopy', 'postcopy'] as const, { description: 'what `auto` will come to' })),
        converges: Type.Boolean({ description: 'false: it would be given up, as far as can be foreseen' }),
        why: Type.Optional(Type.String({ description: 'why it would be given up, or what is not known' })),
      }),
    ),
    disks: Type.Optional(
      Type.Array(
        Type.Object({
          name: Type.String(),
          from: Type.String(),
          to: Type.String(),
          bytes: Type.Number({ description: 'that are sent of it' }),
        }),
        { description: 'local disks that go along, each with the pool it lies in and the one it would go to' },
      ),
    ),
    blockers: Type.Array(
      Type.Object({ code: Type.String(), why: Type.String(), remedy: Type.Optional(Type.String()) }),
      { description: 'why it would be refused' },
    ),
  },
  { title: 'MovePlan' },
)
export type MovePlan = Type.Static<typeof MovePlanSchema>

/** What a move came to: the result of the job, and what `wadah vm migrate --json` prints. */
export const VmMoveSchema = Type.Object(
  {
    vm: Type.String(),
    from: Type.String(),
    to: Type.String(),
    live: Type.Boolean({ description: 'false: it was stopped' }),
    mode: Type.String(),
    how: Type.Optional(Type.Enum(['precopy', 'postcopy'] as const)),
    tls: Type.Optional(Type.Boolean({ description: 'whether it went encrypted' })),
    total_ms: ms,
    bytes: Type.Optional(
      Type.Integer({ description: 'sent by QEMU; of one that was stopped: what its local disks took' }),
    ),
    claimed_downtime_ms: Type.Optional(Type.Number({ description: 'what QEMU says' })),
    stall_ms: Type.Optional(Type.Number({ description: "measured: the source's last STOP to the target's first RUN" })),
    stall_error_ms: Type.Optional(ms),
    outside: Type.Optional(GapSchema),
    forecast: Type.Optional(Type.Object(foreseen)),
    ratio: Type.Optional(Type.Object({ stall: Type.Optional(ms), total: Type.Optional(ms), bytes: Type.Optional(ms) })),
    phases: Type.Array(Type.Object({ phase: Type.String(), ms })),
    notes: Type.Array(Type.String()),
    client_errors: Type.Optional(Type.Integer()),
  },
  { title: 'VmMove' },
)
export type VmMove = Type.Static<typeof VmMoveSchema>
