import { expect, test } from 'vitest'
import { placementFor, refuseWhileWaiting, waitedFor } from '../../src/members/recovery.ts'

const view = (waiting: string[] | undefined, hosts: Record<string, string>) => ({
  get: (kind: { name: string }, id: string) => {
    if (kind.name === 'cluster') return { value: waiting ? { recovery: { waiting } } : {} }
    return hosts[id] === undefined ? undefined : { value: { name: hosts[id] } }
  },
})

test('who is waited for is named; a host that was taken out is not waited for', () => {
  const v = view(['h2', 'gone', 'h1'], { h1: 'alpha', h2: 'beta', h3: 'gamma' }) as never
  expect(waitedFor(v)).toEqual(['h2', 'h1'])
  expect(() => refuseWhileWaiting(v)).toThrow('alpha, beta have not said yet')
  for (const v of [view([], {}), view(undefined, {}), view(['gone'], {})])
    expect(() => refuseWhileWaiting(v as never)).not.toThrow()
})

const at = (host: string, epoch: number) => ({ schema: 1 as const, host, epoch })
test.each([
  ['the store does not know where it is', undefined, at('me', 3)],
  ['it knew an earlier place', at('other', 2), at('me', 3)],
  ['it knew this host, and an earlier start', at('me', 2), at('me', 3)],
  ['it knows already', at('me', 3), undefined],
  ['another host has it by the same right: not ours to say', at('other', 3), undefined],
  ['a later start is known: what runs here is old', at('other', 4), undefined],
])('what runs here, epoch 3: %s', (_, before, after) => {
  expect(placementFor(before, { host: 'me', epoch: 3 })).toEqual(after)
})
