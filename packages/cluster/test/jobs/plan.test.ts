import { type AnyDefinition, defineJob, pivot, step } from '@wadah/cluster/jobs/define'
import { backoff, type Plan, planJob } from '@wadah/cluster/jobs/plan'
import type { JobRecord } from '@wadah/cluster/jobs/record'
import { describe, expect, test } from 'vitest'

const make = (onCrash: 'continue' | 'undo', withPivot = true) =>
  defineJob<unknown, unknown>(
    'a.job',
    2,
    (v) => v,
    [
      step('a', { do: () => 1 }),
      step('b', { do: () => 1 }),
      ...(withPivot ? [pivot('c', { do: () => 1 })] : [step('c', { do: () => 1 })]),
      step('d', { do: () => 1 }),
    ],
    { onCrash },
  ) as AnyDefinition<never>
const forward = make('continue')
const backward = make('undo')
const plain = make('undo', false)

const names = ['a', 'b', 'c', 'd']
const found = (done: number, more: Partial<JobRecord> = {}): JobRecord => ({
  schema: 1,
  id: 'job-aaaaaaaaaa',
  name: 'a.job',
  version: 2,
  project: 'default',
  subject: 'root',
  target: { kind: 'vm', id: 'x' },
  params: {},
  state: 'running',
  executor: { host: 'here', fence: 1 },
  steps: names.slice(0, done).map((name) => ({ name, state: 'done', started_ms: 0, ended_ms: 0 })),
  claims: [],
  created_ms: 0,
  ...more,
})
const left = (why: 'ended' | 'other-host' | 'unknown-definition'): Plan => ({ kind: 'leave', why })

describe('what is done with a job found in the store', () => {
  const table: [string, JobRecord, AnyDefinition<never> | undefined, Plan][] = [
    ['nothing has ended', found(0), forward, { kind: 'continue', at: 0 }],
    ['in the middle', found(1), forward, { kind: 'continue', at: 1 }],
    ['the pivot is next', found(2), forward, { kind: 'continue', at: 2 }],
    ['past the pivot', found(3), forward, { kind: 'continue', at: 3 }],
    ['only the end is missing', found(4), forward, { kind: 'continue', at: 4 }],
    ['undo wanted, nothing ended', found(0), backward, { kind: 'undo', from: 0, outcome: 'failed', begun: false }],
    ['undo wanted, in the middle', found(1), backward, { kind: 'undo', from: 1, outcome: 'failed', begun: false }],
    ['undo wanted, but the pivot may have begun', found(2), backward, { kind: 'continue', at: 2 }],
    ['undo wanted, but past the pivot', found(3), backward, { kind: 'continue', at: 3 }],
    ['undo wanted, no pivot, last step', found(3), plain, { kind: 'undo', from: 3, outcome: 'failed', begun: false }],
    [
      'cancelled',
      found(1, { cancel_requested: true }),
      forward,
      { kind: 'undo', from: 1, outcome: 'cancelled', begun: false },
    ],
    [
      'cancelled just before the pivot',
      found(2, { cancel_requested: true }),
      forward,
      { kind: 'undo', from: 2, outcome: 'cancelled', begun: false },
    ],
    [
      'was being undone',
      found(2, { state: 'undoing', outcome: 'failed' }),
      forward,
      { kind: 'undo', from: 2, outcome: 'failed', begun: true },
    ],
    [
      'was being undone from the last',
      found(4, { state: 'undoing', outcome: 'cancelled' }),
      plain,
      { kind: 'undo', from: 3, outcome: 'cancelled', begun: true },
    ],
    ['done', found(4, { state: 'done' }), forward, left('ended')],
    ['failed', found(1, { state: 'failed' }), forward, left('ended')],
    ['cancelled and undone', found(1, { state: 'cancelled' }), forward, left('ended')],
    ['of another host', found(1, { executor: { host: 'there', fence: 1 } }), forward, left('other-host')],
    ['of an unknown definition', found(1), undefined, left('unknown-definition')],
    ['of another version', found(1, { version: 3 }), forward, left('unknown-definition')],
    [
      'whose steps are others',
      found(0, { steps: [{ name: 'z', state: 'done', started_ms: 0, ended_ms: 0 }] }),
      forward,
      left('unknown-definition'),
    ],
  ]
  test.each(table)('%s', (_, record, definition, plan) => {
    expect(planJob(record, definition, 'here')).toEqual(plan)
  })
})

test('delays double up to their cap, spread by a fifth', () => {
  expect([1, 2, 3, 4, 100].map((n) => backoff(n, 100, 500, 0.5))).toEqual([100, 200, 400, 500, 500])
  expect(backoff(1, 100, 500, 0)).toBe(80)
  expect(backoff(1, 100, 500, 1)).toBe(120)
})

test.each<[string, () => unknown, RegExp]>([
  ['no steps', () => defineJob('a', 1, (v) => v, []), /no steps/],
  [
    'two of a name',
    () => defineJob('a', 1, (v) => v, [step('x', { do: () => 1 }), step('x', { do: () => 1 })]),
    /two steps/,
  ],
  [
    'two pivots',
    () => defineJob('a', 1, (v) => v, [pivot('x', { do: () => 1 }), pivot('y', { do: () => 1 })]),
    /one pivot/,
  ],
  [
    'undo past the pivot',
    () => defineJob('a', 1, (v) => v, [pivot('x', { do: () => 1 }), step('y', { do: () => 1, undo: () => undefined })]),
    /after the pivot/,
  ],
  [
    'resolve before it',
    () => defineJob('a', 1, (v) => v, [step('y', { do: () => 1, resolve: () => 1 })]),
    /does not lie after/,
  ],
  ['a bad name', () => defineJob('A b', 1, (v) => v, [step('y', { do: () => 1 })]), /name/],
  ['a bad version', () => defineJob('a', 0, (v) => v, [step('y', { do: () => 1 })]), /version/],
])('a definition with %s is refused', (_, make, why) => {
  expect(make).toThrow(why)
})
