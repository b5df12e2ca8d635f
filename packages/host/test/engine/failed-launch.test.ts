import { fail } from '@wadah/api/fault'
import { describe, expect, test } from 'vitest'
import { endFailed } from '../../src/engine/failed-launch.ts'

const error = fail('qemu_failed', 'no room for its RAM')
const qemu = (isAlive: boolean, quit: () => Promise<void>) => ({ pid: 7, isAlive, quit })
const hangs = () => Promise.reject(new Error('process 7 does not end'))

describe('a start that came to nothing', () => {
  test.each([
    [
      'before there was a QEMU',
      undefined,
      error,
      { state: 'stopped', reason: expect.stringContaining('no room for its RAM') },
    ],
    ['and its QEMU was ended', qemu(false, async () => {}), error, { state: 'stopped' }],
    ['and its QEMU ended while it was asked to', qemu(false, hangs), error, { state: 'stopped' }],
    [
      'and its QEMU lives on',
      qemu(true, hangs),
      error,
      { state: 'unknown', reason: expect.stringContaining('process 7') },
    ],
    [
      'and what was spawned could not be ended',
      undefined,
      fail('monitor_silent', 'process 7 stays', { effect: 'unknown' }),
      { state: 'unknown', reason: expect.stringContaining('process 7 stays') },
    ],
  ])('%s', async (_what, there, why, told) => {
    expect(await endFailed(there, why)).toMatchObject(told)
  })
})
