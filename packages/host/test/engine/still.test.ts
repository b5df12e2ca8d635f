import { expect, test } from 'vitest'
import type { RunningVm } from '../../src/engine/running-vm.ts'
import { whileStill } from '../../src/engine/still.ts'

test('of a guest that stands already, what does not end by itself is cut off too', async () => {
  const cut = Promise.withResolvers<string>()
  const running = { status: async () => 'finish-migrate' } as unknown as RunningVm
  const ended = await whileStill(
    running,
    () => cut.promise,
    async () => cut.resolve('cut'),
  )
  expect(ended).toBe('cut')
})

test('nothing is cut off that ends by itself', async () => {
  const running = { status: async () => 'paused' } as unknown as RunningVm
  let isCut = false
  await whileStill(
    running,
    async () => 'ended',
    async () => (isCut = true),
  )
  await new Promise((resolve) => setTimeout(resolve, 1_200))
  expect(isCut).toBe(false)
})
