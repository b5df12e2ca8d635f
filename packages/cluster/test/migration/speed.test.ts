import { expect, test } from 'vitest'
import { LINK_BYTES_PER_S, speedOf } from '../../src/migration/speed.ts'

const MIB = 2 ** 20
type Ended = {
  from?: string
  to?: string
  mib?: number
  copy_ms?: number
  state?: string
  name?: string
  live?: boolean
}
let at = 0
const view = (...ended: Ended[]) => ({
  list: () =>
    ended.map((e) => ({
      id: `job-${(at += 1)}`,
      value: {
        name: e.name ?? 'vm.migrate',
        state: e.state ?? 'done',
        ended_ms: at,
        result: {
          live: e.live ?? true,
          from: e.from ?? 'a',
          to: e.to ?? 'b',
          bytes: (e.mib ?? 100) * MIB,
          phases: [{ phase: 'copy', ms: e.copy_ms ?? 1000 }],
        },
      },
    })) as never,
})

test.each<[string, Ended[], number]>([
  ['nothing measured', [], LINK_BYTES_PER_S],
  ['one move', [{ mib: 50, copy_ms: 500 }], 100 * MIB],
  ['the median of the last', [{ mib: 10 }, { mib: 30 }, { mib: 900 }], 30 * MIB],
  ['this way before others', [{ mib: 10 }, { from: 'b', to: 'a', mib: 70 }], 10 * MIB],
  ['others, where this way is new', [{ from: 'b', to: 'c', mib: 70 }], 70 * MIB],
  [
    'what failed, stood, was small or is no move does not count',
    [{ state: 'failed' }, { live: false }, { mib: 1 }, { name: 'vm.create' }, { copy_ms: 0 }],
    LINK_BYTES_PER_S,
  ],
])('the speed of a link: %s', (_, ended, speed) => {
  expect(speedOf(view(...ended), 'a', 'b')).toBe(speed)
})
