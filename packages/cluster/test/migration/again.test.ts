import { fail } from '@wadah/api/fault'
import { expect, test } from 'vitest'
import { untilItFits } from '../../src/migration/again.ts'

const DETAIL = 'The guest had stood still for 312 ms.'
const over = (o: { retryable?: boolean; effect?: 'none' | 'partial' } = {}) =>
  fail('does_not_converge', DETAIL, { retryable: true, ...o })

const run = async (ends: unknown[], signal = new AbortController().signal) => {
  const lines: string[] = []
  let times = 0
  const copy = async () => {
    const end = ends[times++]
    if (end instanceof Error) throw end
    return end
  }
  const ended = await untilItFits(copy, { signal, log: (line) => lines.push(line), busy_ms: 1 }).catch(
    (error: unknown) => error,
  )
  return { ended, times, lines }
}

test.each([
  ['at once', ['moved'], 0],
  ['given up once', [over(), 'moved'], 1],
  ['given up twice', [over(), over(), 'moved'], 2],
])('%s: it goes over, and says how often it was tried', async (_, ends, given_up) => {
  const { ended, lines } = await run(ends)
  expect(ended).toEqual({ result: 'moved', given_up: Array.from({ length: given_up }, () => DETAIL) })
  expect(lines).toEqual(
    Array.from({ length: given_up }, (_unused, i) => expect.stringContaining(`copied anew (${i + 2} of 3)`)),
  )
})

test.each([
  ['three times', [over(), over(), over(), 'moved'], 3],
  ['one that writes too fast for any try', [over({ retryable: false }), 'moved'], 1],
  ['one that may not run here any more', [over({ effect: 'partial' }), 'moved'], 1],
  ['another reason', [fail('qemu_failed', 'x', { retryable: true }), 'moved'], 1],
])('%s: it is told', async (_, ends, tried) => {
  const { ended, times } = await run(ends)
  expect(ended).toBe(ends[tried - 1])
  expect(times).toBe(tried)
})

const busy = () => fail('busy', 'This move is under way already.')
test('a target that is busy with the try before is asked again', async () => {
  const { ended, times } = await run([over(), busy(), busy(), 'moved'])
  expect(ended).toEqual({ result: 'moved', given_up: [DETAIL] })
  expect(times).toBe(4)
  // One that is busy with something else, and for ever.
  expect((await run([busy(), 'moved'])).times).toBe(1)
  const forever = await run([over(), ...Array.from({ length: 30 }, busy)])
  expect(forever.ended).toMatchObject({ fault: { code: 'does_not_converge' } })
  expect(forever.times).toBeLessThan(20)
})

test.each([
  ['another try that fails for another reason: the number is told', fail('no_room', 'x'), 'does_not_converge'],
  ['one that is cancelled', fail('cancelled', 'x'), 'cancelled'],
  ['one that has begun over there', fail('qemu_failed', 'x', { effect: 'partial' }), 'qemu_failed'],
])('%s', async (_, second, code) => {
  expect((await run([over(), second, 'moved'])).ended).toMatchObject({ fault: { code } })
})

test('one that was cancelled meanwhile is not begun anew', async () => {
  const stop = AbortSignal.abort(new Error('enough'))
  const { ended, times } = await run([over(), 'moved'], stop)
  expect(ended).toBeInstanceOf(Error)
  expect(times).toBe(1)
})
