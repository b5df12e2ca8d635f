/** The way to another host: clocks that are apart, and large packets that vanish where small ones come through. */
import { answerWay, checkWay, CLOCK_MS, judgeWay, lookAtWay, type Way } from '@wadah/cluster/members/way'
import type { Clock } from '@wadah/store/clock'
import fc from 'fast-check'
import { expect, test } from 'vitest'

/** Another host whose clock is `off_ms` ahead, each way takes `way_ms`, and packets beyond `mtu` vanish. */
function other(off_ms: number, way_ms = 5, largest = Number.POSITIVE_INFINITY) {
  let at = 1_000_000
  const clock = { now_ms: () => at, monotonic_ms: () => at } as Clock
  const askHost = async <T>(_host: string, _path: string, body: unknown): Promise<T> => {
    if (JSON.stringify(body).length > largest) throw new Error('it did not answer in time')
    at += way_ms
    const answer = answerWay({ clock: { ...clock, now_ms: () => at + off_ms } }, body)
    at += way_ms
    return answer as T
  }
  return { clock, askHost }
}
const B = { id: 'host-b', name: 'b' }

test('a clock that is five minutes off is named, whichever way; one that is near is not', async () => {
  const ahead = judgeWay('b', await lookAtWay(other(300_000), 'host-b'))
  expect(ahead?.detail).toBe("The clock of b is 5 min ahead of this host's.")
  expect(ahead?.remedy).toContain('timedatectl set-ntp true')
  expect(judgeWay('b', await lookAtWay(other(-300_000), 'host-b'))?.detail).toContain("5 min behind this host's")
  expect(judgeWay('b', await lookAtWay(other(CLOCK_MS - 1), 'host-b'))).toBeUndefined()
  // It disturbs no move: what is measured there is measured against both clocks.
  await checkWay(other(300_000), B)
})

test('how far it is off is known to half of the round trip; a slow way is taken for no wrong clock', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: -1e7, max: 1e7 }),
      fc.integer({ min: 0, max: 2_000 }),
      async (off_ms, way_ms) => {
        const { clock } = await lookAtWay(other(off_ms, way_ms), 'host-b')
        expect(Math.abs((clock?.offset_ms ?? Number.NaN) - off_ms)).toBeLessThanOrEqual(way_ms)
        expect(clock?.error_ms).toBe(way_ms)
      },
    ),
  )
})

test('where large packets vanish it is said, and no move begins', async () => {
  const hole = other(0, 5, 1_400)
  const way = await lookAtWay(hole, 'host-b')
  expect(judgeWay('b', way)?.detail).toMatch(/Small packets reach b, large ones vanish .*MTU/)
  await expect(checkWay(hole, B)).rejects.toMatchObject({ fault: { code: 'unavailable', effect: 'none' } })
})

test('a host that stands still for a moment at the large question is asked again', async () => {
  for (const lost of [1, 2]) {
    const host = other(0)
    let large = 0
    const askHost = async <T>(to: string, path: string, body: unknown): Promise<T> => {
      if (JSON.stringify(body).length > 1_400 && ++large <= lost) throw new Error('it did not answer in time')
      return await host.askHost<T>(to, path, body)
    }
    const way = await lookAtWay({ ...host, askHost }, 'host-b')
    expect(way.large === undefined).toBe(lost === 1)
  }
})

test('a host that does not answer at all is not said to have a small MTU', async () => {
  const gone = other(0, 5, 0)
  const way: Way = await lookAtWay(gone, 'host-b')
  expect(way.large).toBeUndefined()
  expect(judgeWay('b', way)?.detail).toMatch(/does not answer/)
  await checkWay(gone, B)
})

test.each([[null], [7], [{}], [{ pad: 7 }], [{ pad: 'x'.repeat(10 ** 6) }]])(
  'whatever is asked is answered: %#',
  (body) => {
    const answer = answerWay({ clock: { now_ms: () => 5 } as Clock }, body)
    expect(answer.now_ms).toBe(5)
    expect((answer.pad ?? '').length).toBeLessThanOrEqual(64 * 1024)
  },
)
