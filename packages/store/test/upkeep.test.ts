/** How an etcd is kept small: what is due when, and a round of it over a fake. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { EtcdAdmin, EtcdStatus } from '@wadah/store/etcd/admin'
import { compactTo, toDefragment, Upkeep, UPKEEP, type UpkeepPolicy } from '@wadah/store/etcd/upkeep'
import { FakeClock } from '@wadah/store/testing/clock'

const policy: UpkeepPolicy = {
  keep_ms: 1_000,
  keep_revisions: 100,
  defragment_bytes: 64,
  in_use: 0.5,
  quota_bytes: 1_000,
}
const at = (at_ms: number, revision: number) => ({ at_ms, revision })

describe('compactTo', () => {
  test.each([
    ['nothing was seen', [], 5_000, undefined],
    ['all of it is young', [at(0, 10), at(900, 50)], 999, undefined],
    ['the last that is old enough', [at(0, 10), at(500, 50), at(900, 60)], 1_500, 50],
    ['too many, though young', [at(0, 10), at(900, 250)], 950, 150],
    ['what goes further counts', [at(0, 200), at(900, 250)], 1_000, 200],
  ])('%s', (_, seen, now, to) => {
    expect(compactTo(seen, now, policy)).toBe(to)
  })

  test('what is younger than that stays, unless there are too many; nothing goes that is not there', () => {
    const steps = fc.array(fc.tuple(fc.nat(400), fc.nat(40)), { minLength: 1, maxLength: 40 })
    fc.assert(
      fc.property(steps, (all) => {
        const seen = [at(0, 1)]
        for (const [ms, revisions] of all) {
          const last = seen.at(-1) ?? at(0, 1)
          seen.push(at(last.at_ms + ms, last.revision + revisions))
        }
        const now = seen.at(-1) ?? at(0, 1)
        const to = compactTo(seen, now.at_ms, policy) ?? 0
        expect(to).toBeLessThanOrEqual(now.revision)
        for (const s of seen.filter((one) => now.at_ms - one.at_ms < policy.keep_ms))
          expect(to).toBeLessThanOrEqual(Math.max(s.revision, now.revision - policy.keep_revisions))
      }),
    )
  })
})

test('toDefragment: large and mostly holes, the leader last', () => {
  const member = (name: string, size_bytes: number, in_use_bytes: number, leader = false) => ({
    name,
    size_bytes,
    in_use_bytes,
    leader,
  })
  const all = [
    member('leads', 100, 10, true),
    member('holes', 100, 49),
    member('half', 100, 50),
    member('small', 64, 1),
    member('full of holes', 900, 0),
  ]
  expect(toDefragment(all, policy).map((m) => m.name)).toEqual(['holes', 'full of holes', 'leads'])
})

describe('a round', () => {
  type Fake = {
    size: number
    used: number
    revision: number
    alarms: { member: string; alarm: string }[]
    log: string[]
  }
  function fake(o: Partial<Fake> = {}, rules = policy) {
    const state: Fake = { size: 10, used: 10, revision: 1, alarms: [], log: [], ...o }
    const status = (endpoint: string): EtcdStatus => ({
      member: endpoint,
      version: '3.4',
      size_bytes: state.size,
      in_use_bytes: state.used,
      leader: endpoint === 'a',
      learner: false,
      revision: state.revision,
    })
    const admin = {
      status: async (endpoint: string) => (endpoint === 'silent' ? undefined : status(endpoint)),
      alarms: async () => state.alarms,
      compact: async (revision: number) => void state.log.push(`compact ${revision}`),
      defragment: async (endpoint: string) => {
        state.log.push(`defragment ${endpoint}`)
        state.size = state.used
      },
      disarm: async (member: string, alarm: string) => void state.log.push(`disarm ${member} ${alarm}`),
    } as unknown as EtcdAdmin
    const clock = new FakeClock()
    const upkeep = new Upkeep({ admin, clock, endpoints: () => ['a', 'b', 'silent'], policy: rules })
    return { state, clock, upkeep }
  }

  test('nothing to do: nothing is done', async () => {
    const { upkeep, state } = fake()
    expect(await upkeep.round()).toEqual({ defragmented: [], disarmed: [], corrupt: [], full: [] })
    expect(state.log).toEqual([])
  })
  test('history that is old goes once; the file is written anew when most of it is holes', async () => {
    const { upkeep, state, clock } = fake({ revision: 40 })
    await upkeep.round()
    clock.advance(1_000)
    Object.assign(state, { revision: 60, size: 200, used: 20 })
    expect(await upkeep.round()).toMatchObject({ compacted: 40, defragmented: ['b', 'a'] })
    expect(state.log).toEqual(['compact 40', 'defragment b'].concat('defragment a'))
    expect(await upkeep.round()).toEqual({ defragmented: [], disarmed: [], corrupt: [], full: [] })
  })
  test('a full one: all that is not of now goes, the leader last, and it takes writes again', async () => {
    const { upkeep, state } = fake({ revision: 90, size: 1_000, used: 30, alarms: [{ member: 'b', alarm: 'NOSPACE' }] })
    expect(await upkeep.round()).toEqual({
      compacted: 90,
      defragmented: ['b', 'a'],
      disarmed: ['b'],
      corrupt: [],
      full: [],
    })
    expect(state.log).toEqual(['compact 90', 'defragment b', 'defragment a', 'disarm b NOSPACE'])
  })
  test('one that is full of what is of now is said to be, and stays closed', async () => {
    const { upkeep, state } = fake({ size: 1_000, used: 950, alarms: [{ member: 'a', alarm: 'NOSPACE' }] })
    expect(await upkeep.round()).toMatchObject({ full: ['a'], disarmed: [] })
    expect(state.log.join()).not.toContain('disarm')
  })
  test('one that is corrupt is named, and nothing is taken from it for that', async () => {
    const { upkeep, state } = fake({ alarms: [{ member: 'b', alarm: 'CORRUPT' }] })
    expect(await upkeep.round()).toMatchObject({ corrupt: ['b'], disarmed: [] })
    expect(state.log).toEqual([])
  })
})

test('what is usual leaves room to act before etcd takes no writes', () => {
  expect(UPKEEP.defragment_bytes).toBeLessThan(UPKEEP.quota_bytes / 2)
})
