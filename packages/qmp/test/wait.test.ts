import { describe, expect, it } from 'vitest'
import { bounded } from '@wadah/qmp/wait'

const ends = { onTimeout: () => new Error('timeout'), onAbort: () => new Error('aborted') }
type Start = Parameters<typeof bounded<number>>[0]

describe('bounded', () => {
  it.each<[string, Start, unknown]>([
    ['resolved at once', (resolve) => (resolve(1), undefined), 1],
    ['rejected at once', (_, reject) => (reject(new Error('no')), undefined), new Error('no')],
    ['resolved later', (resolve) => void setImmediate(() => resolve(2)), 2],
    ['never', () => undefined, new Error('timeout')],
  ])('takes back exactly once what was started: %s', async (_, start, expected) => {
    let undone = 0
    const begin: Start = (resolve, reject) => {
      start(resolve, reject)
      return () => {
        undone += 1
      }
    }
    const result = await bounded(begin, { timeout_ms: 20, ...ends }).catch((error: unknown) => error)
    expect(result).toEqual(expected)
    await new Promise((resolve) => setTimeout(resolve, 25))
    expect(undone).toBe(1)
  })

  it('turns what `start` throws into a rejection', async () => {
    const start = () => {
      throw new Error('thrown')
    }
    await expect(bounded(start, { timeout_ms: 20, ...ends })).rejects.toThrow('thrown')
  })

  it('does not start when aborted already, and does not take a huge deadline for none', async () => {
    const start: Start = (resolve) => void setTimeout(() => resolve(1), 5)
    await expect(bounded(start, { timeout_ms: 20, signal: AbortSignal.abort(), ...ends })).rejects.toThrow('aborted')
    await expect(bounded(start, { timeout_ms: Number.POSITIVE_INFINITY, ...ends })).resolves.toBe(1)
  })
})
