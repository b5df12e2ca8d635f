import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { drain } from '../src/drain.ts'
import { fits } from '../src/fits.ts'
import { place } from '../src/place.ts'
import { undrain } from '../src/undrain.ts'
import type { VmView } from '../src/snapshot.ts'
import { carriedOut, replay } from './kit/replay.ts'
import { anySnapshot, shuffled, without } from './kit/world.ts'

const RUNS = { numRuns: 300 }
/** A choice out of n, from a stream of numbers. */
const picker = (stream: fc.Stream<number>) => (n: number) => (stream.next().value ?? 0) % n
const picks = fc.infiniteStream(fc.nat(1000))

describe('any drain', () => {
  test('fits at every moment, in whatever order its actions begin and end, and breaks no strict rule', () => {
    fc.assert(
      fc.property(anySnapshot, picks, (s, stream) => {
        expect(replay(s, drain(s, 'h0').actions, picker(stream))).toEqual([])
      }),
      RUNS,
    )
  })

  test('accounts for every VM of the host once: it moves, it is a blocker, or it is on its way', () => {
    fc.assert(
      fc.property(anySnapshot, (s) => {
        const plan = drain(s, 'h0')
        const moving = s.moving.filter((m) => m.from === 'h0').map((m) => m.vm)
        const here = s.vms.filter((vm) => vm.host === 'h0').map((vm) => vm.id)
        const from = plan.actions.filter((a) => a.from === 'h0').map((a) => a.vm)
        expect([...from, ...plan.blockers.map((b) => b.vm), ...moving].sort()).toEqual(here.sort())
        for (const b of plan.blockers) expect(b.reasons.length).toBeGreaterThan(0)
        for (const a of plan.actions) expect(a.to).not.toBe('h0')
        expect(plan.complete).toBe(plan.blockers.length === 0 && plan.waits.length === 0)
        expect(plan.detail).not.toBe('')
      }),
      RUNS,
    )
  })

  test('is the same for every order of the input', () => {
    fc.assert(
      fc.property(anySnapshot, fc.nat(), (s, seed) => {
        expect(drain(shuffled(s, seed), 'h0')).toEqual(drain(s, 'h0'))
      }),
      RUNS,
    )
  })

  test('one more VM that cannot move changes nothing for the others', () => {
    fc.assert(
      fc.property(anySnapshot, (s) => {
        const alone = { ...s, rules: [], vms: s.vms.map((vm) => without(vm, 'pinned')) }
        const odd = { ...alone.vms[0], id: 'odd', name: 'odd', host: 'h0', passthrough: ['gpu'] }
        fc.pre(alone.vms.length > 0)
        const with_it = drain({ ...alone, vms: [...alone.vms, odd as never] }, 'h0')
        expect(with_it.blockers.map((b) => b.vm)).toContain('odd')
        expect(with_it.actions).toEqual(drain(alone, 'h0').actions)
      }),
      RUNS,
    )
  })

  test('leaves no VM behind that another host could still take', () => {
    fc.assert(
      fc.property(anySnapshot, (s) => {
        const plan = drain(s, 'h0')
        const left = plan.blockers.filter((b) => b.reasons[0]?.code === 'no_host')
        const after = carriedOut(s, plan.actions)
        for (const { vm } of left) {
          const view = after.vms.find((one) => one.id === vm)
          for (const h of after.hosts) {
            if (!view || h.id === 'h0') continue
            // What was left behind in pools stays promised until it is deleted; those with local disks are left out here.
            if (view.disks.some((d) => !d.shared)) continue
            // Hosts that said they had promised more than is known are not judged after the fact.
            if (s.hosts.some((one) => one.id === h.id && one.promised_mib !== undefined)) continue
            // A host that gave one up first, and a group that moves as one, are judged by the replay.
            if (plan.actions.some((a) => a.from === h.id) || s.rules.some((r) => r.kind === 'together')) continue
            expect(fits(after, view, h.id)).not.toEqual([])
          }
        }
      }),
      RUNS,
    )
  })

  test('can be stopped after any part and planned anew, and what it then plans fits as well', () => {
    fc.assert(
      fc.property(anySnapshot, fc.nat(20), picks, (s, n, stream) => {
        const done = drain(s, 'h0').actions.slice(0, n)
        const after = carriedOut(s, done)
        const rest = drain(after, 'h0')
        expect(replay(after, rest.actions, picker(stream))).toEqual([])
        for (const { vm, from } of done) if (from === 'h0') expect(rest.actions.map((a) => a.vm)).not.toContain(vm)
      }),
      RUNS,
    )
  })

  test('can be undone: all go back that have room, and nothing is broken on the way', () => {
    fc.assert(
      fc.property(anySnapshot, picks, (s, stream) => {
        const there = drain(s, 'h0').actions
        const after = carriedOut(s, there)
        const back = undrain(after, 'h0', there)
        expect(replay(after, back.actions, picker(stream), 'h0')).toEqual([])
        expect([...back.actions, ...back.blockers].map((it) => it.vm).sort()).toEqual(there.map((a) => a.vm).sort())
        for (const a of back.actions) expect(there.find((m) => m.vm === a.vm)).toMatchObject({ from: a.to, to: a.from })
      }),
      RUNS,
    )
  })
})

describe('any way back', () => {
  test('fits at every moment too, whatever was moved: hosts that take some and give up others', () => {
    const homes = fc.array(fc.nat(4), { minLength: 15, maxLength: 15 })
    fc.assert(
      fc.property(anySnapshot, homes, picks, (s, home, stream) => {
        const moved = s.vms.map((vm, i) => ({ vm: vm.id, from: `h${home[i]}`, to: vm.host ?? '' }))
        const back = undrain(s, 'h0', moved)
        expect(replay(s, back.actions, picker(stream), 'h0')).toEqual([])
        expect(undrain(shuffled(s, home[0] ?? 0), 'h0', moved)).toEqual(back)
      }),
      { numRuns: 1000 },
    )
  })
})

describe('any placement', () => {
  test('is the same for every order of the input, and names a reason for every host that is not taken', () => {
    fc.assert(
      fc.property(anySnapshot, fc.nat(), fc.nat(14), fc.boolean(), (s, seed, i, start) => {
        const vm = s.vms[i % Math.max(1, s.vms.length)]
        fc.pre(vm !== undefined)
        const choice = place(s, vm as never, { start })
        expect(place(shuffled(s, seed), vm as never, { start })).toEqual(choice)
        expect(choice.refused.length + choice.others.length + (choice.chosen ? 1 : 0)).toBe(s.hosts.length)
        const short = place(s, vm as never, { start, most: 0 })
        expect([short.chosen, short.others, short.refused]).toEqual([choice.chosen, [], []])
        const two = place(s, vm as never, { start, most: 2 })
        expect([two.chosen, two.others]).toEqual([choice.chosen, choice.others.slice(0, 2)])
        expect([two.refused, two.detail]).toEqual([choice.refused.slice(0, 2), choice.detail])
        for (const r of choice.refused) for (const reason of r.reasons) expect(reason.remedy).not.toBe('')
      }),
      RUNS,
    )
  })

  test('agrees with fits', () => {
    fc.assert(
      fc.property(anySnapshot, fc.nat(14), fc.boolean(), (s, i, fresh) => {
        const found = s.vms[i % Math.max(1, s.vms.length)]
        fc.pre(found !== undefined)
        const { host: at, ...unplaced } = found as NonNullable<typeof found>
        const vm = fresh ? { ...unplaced, id: 'new', name: 'new' } : (found as NonNullable<typeof found>)
        const choice = place(s, vm)
        const can = [...choice.others, ...(choice.chosen ? [choice.chosen] : [])].map((c) => c.host).sort()
        if (choice.stuck.length > 0) expect(choice.chosen).toBeUndefined()
        else
          expect(
            s.hosts
              .filter((h) => (fresh || h.id !== at) && fits(s, vm, h.id).length === 0)
              .map((h) => h.id)
              .sort(),
          ).toEqual(can)
      }),
      RUNS,
    )
  })

  test('prefers what breaks fewer soft rules, then what is less full', () => {
    fc.assert(
      fc.property(anySnapshot, (s) => {
        const [first] = s.vms
        fc.pre(first !== undefined)
        const { host: _, ...vm } = { ...(first as VmView), id: 'new', name: 'new' }
        const choice = place(s, vm)
        const all = [...(choice.chosen ? [choice.chosen] : []), ...choice.others]
        const soft = (c: (typeof all)[number]) =>
          c.but.filter((r) => r.code === 'affinity' || r.code === 'failed_lately').length
        all.slice(1).forEach((c, i) => {
          const before = all[i] as (typeof all)[number]
          expect(soft(before) < soft(c) || (soft(before) === soft(c) && before.score <= c.score)).toBe(true)
        })
      }),
      RUNS,
    )
  })
})
