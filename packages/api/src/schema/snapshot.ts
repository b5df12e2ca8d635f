/** Snapshots of a VM. */
import Type from 'typebox'
import { IdSchema, NameSchema } from '../ids.ts'
import { Closed, DescriptionSchema, metaFields } from './common.ts'

export const SNAPSHOT_STATES = ['making', 'ready', 'deleting'] as const
export const CONSISTENCY = ['off', 'ram', 'frozen', 'crash'] as const
/**
 * How much may be relied on what lies in the layers below: `off`: the guest was shut down; `ram`: it goes on where it was;
 * `frozen`: file systems were at rest; `crash`: as after a power cut.
 */
export type Consistency = (typeof CONSISTENCY)[number]
const FREEZE = ['auto', 'require', 'never'] as const
/** `auto`: as well as it can be had; `require`: refused when the guest's file systems can't be frozen. */
export type Freeze = (typeof FREEZE)[number]

export const SnapshotCreateSchema = Closed(
  {
    name: Type.Optional(NameSchema),
    description: Type.Optional(DescriptionSchema),
    ram: Type.Optional(
      Type.Boolean({ default: false, description: 'RAM too: a revert goes on where the guest was; it must run' }),
    ),
    freeze: Type.Optional(
      Type.Enum(FREEZE, {
        default: 'auto',
        description:
          'freezing the file systems of a running guest through its agent: when it can be had, or else refused',
      }),
    ),
  },
  { title: 'SnapshotCreate' },
)
export type SnapshotCreate = Type.Static<typeof SnapshotCreateSchema>

export const SnapshotRevertSchema = Closed(
  {
    ram: Type.Optional(
      Type.Boolean({ description: 'go on from the saved RAM; default when there is some. false: the disks only' }),
    ),
    start: Type.Optional(Type.Boolean({ default: false, description: 'start it after; with RAM it always runs' })),
    force: Type.Optional(Type.Boolean({ default: false, description: 'end it first, if it runs' })),
  },
  { title: 'SnapshotRevert' },
)
export type SnapshotRevert = Type.Static<typeof SnapshotRevertSchema>

/** How often, and which of those it made are kept. Snapshots made by hand are never deleted by it. */
export const SnapshotScheduleSchema = Closed(
  {
    every_minutes: Type.Integer({ minimum: 5, maximum: 60 * 24 * 366 }),
    ram: Type.Optional(Type.Boolean({ default: false, description: 'with RAM when it runs' })),
    keep_last: Type.Integer({ minimum: 1, maximum: 24, description: 'the newest so many' }),
    keep_daily: Type.Optional(
      Type.Integer({ minimum: 0, maximum: 14, description: 'besides, the newest of each of so many days (UTC)' }),
    ),
    keep_weekly: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 8,
        description: 'besides, the newest of each of so many weeks (from Monday, UTC)',
      }),
    ),
  },
  { title: 'SnapshotSchedule' },
)
export type SnapshotSchedule = Type.Static<typeof SnapshotScheduleSchema>

export const SnapshotSchema = Type.Object(
  {
    ...metaFields,
    vm: IdSchema,
    description: Type.String(),
    state: Type.Enum(SNAPSHOT_STATES),
    /** The one the VM stood on when this was taken. */
    parent: Type.Optional(IdSchema),
    /** The VM stands on it now: its disks go on from here. */
    current: Type.Boolean(),
    /** Made by the schedule. */
    scheduled: Type.Boolean(),
    consistency: Type.Optional(
      Type.Enum(CONSISTENCY, {
        description:
          'off: it was shut down; ram: goes on where it was; frozen: file systems at rest; crash: as after a power cut',
      }),
    ),
    note: Type.Optional(Type.String({ description: 'why it is not more consistent than it is' })),
    stall_ms: Type.Optional(Type.Number({ description: 'how long the guest stood still for it' })),
    frozen_ms: Type.Optional(Type.Number({ description: 'how long its file systems were frozen' })),
    ram_bytes: Type.Optional(Type.Integer()),
    disks: Type.Array(Type.Object({ name: NameSchema, volume: IdSchema })),
    cpus: Type.Integer(),
    memory_mib: Type.Integer(),
  },
  { title: 'Snapshot' },
)
export type Snapshot = Type.Static<typeof SnapshotSchema>
