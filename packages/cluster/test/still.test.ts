import type { ByteStream } from '@wadah/ports/volumes'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { watched } from '../src/vms/still.ts'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

/** Parts that come when they are let. */
function held(parts: number) {
  const come = Array.from({ length: parts }, () => Promise.withResolvers<void>())
  async function* data() {
    for (const { promise } of come) {
      await promise
      yield new Uint8Array(1)
    }
  }
  const stream: ByteStream = { data: data(), write: () => undefined, close: () => undefined }
  return { stream, come }
}

test('it stands when nothing comes for so long, and not before it is read', async () => {
  const { stream, come } = held(2)
  const stands = vi.fn<() => void>()
  const data = watched(stream, 1_000, stands).data[Symbol.asyncIterator]()
  await vi.advanceTimersByTimeAsync(5_000)
  expect(stands).not.toHaveBeenCalled()
  const first = data.next()
  await vi.advanceTimersByTimeAsync(900)
  come[0]?.resolve()
  expect((await first).done).toBe(false)
  const second = data.next()
  await vi.advanceTimersByTimeAsync(900)
  expect(stands).not.toHaveBeenCalled()
  await vi.advanceTimersByTimeAsync(200)
  expect(stands).toHaveBeenCalledOnce()
  come[1]?.resolve()
  expect((await second).done).toBe(false)
  expect((await data.next()).done).toBe(true)
  expect(vi.getTimerCount()).toBe(0)
})

test('who stops reading leaves no timer', async () => {
  const { stream, come } = held(2)
  come[0]?.resolve()
  for await (const _ of watched(stream, 1_000, () => undefined).data) break
  expect(vi.getTimerCount()).toBe(0)
})
