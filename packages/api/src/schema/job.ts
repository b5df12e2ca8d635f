/** A long action. */
import Type from 'typebox'
import { FaultSchema } from '../fault.ts'
import { IdSchema } from '../ids.ts'

export const JOB_STATES = ['running', 'cancelling', 'undoing', 'done', 'failed', 'cancelled'] as const
export type JobState = (typeof JOB_STATES)[number]
export const STEP_STATES = ['waiting', 'running', 'done', 'skipped', 'failed', 'undoing', 'undone'] as const

export const JobSchema = Type.Object(
  {
    id: IdSchema,
    kind: Type.String({ description: 'vm.create, image.build, …' }),
    project: Type.String(),
    subject: Type.String({ description: 'who asked' }),
    state: Type.Enum(JOB_STATES),
    target: Type.Object({ kind: Type.String(), id: Type.String(), name: Type.Optional(Type.String()) }),
    percent: Type.Number({ minimum: 0, maximum: 100 }),
    steps: Type.Array(
      Type.Object({
        name: Type.String(),
        state: Type.Enum(STEP_STATES),
        percent: Type.Optional(Type.Number()),
        started_at: Type.Optional(Type.String()),
        ended_at: Type.Optional(Type.String()),
      }),
    ),
    created_at: Type.String(),
    ended_at: Type.Optional(Type.String()),
    fault: Type.Optional(FaultSchema),
    attention: Type.Optional(
      Type.Object(
        { step: Type.String(), since: Type.String(), attempts: Type.Integer(), fault: FaultSchema },
        { description: 'it goes on by itself, and is held up by this: the remedy of the fault says what would help' },
      ),
    ),
    result: Type.Optional(Type.Unknown()),
  },
  { title: 'Job' },
)
export type Job = Type.Static<typeof JobSchema>

export const JobLogSchema = Type.Object(
  {
    lines: Type.Array(Type.String()),
    next: Type.Integer({ description: 'pass as `from` to go on reading' }),
    ended: Type.Boolean(),
  },
  { title: 'JobLog' },
)
