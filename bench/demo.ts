/**
 * `make demo`, then again while it is up. Changes the machine's own demo (starts it, and takes it away again), takes minutes:
 * only with `--demo`.
 */
import { spawnSync } from 'node:child_process'
import { ROOT } from './kit.ts'
import { type Found, absolute } from './report.ts'
import { summary } from './stats.ts'

/** By hand with the same tools, two images at a time, packages cached, s. */
const BY_HAND_S = 92

function make(target: string): number {
  const begun = performance.now()
  const { status } = spawnSync('make', ['-C', ROOT, target], { stdio: 'inherit' })
  if (status !== 0) throw new Error(`make ${target} failed (${status})`)
  return (performance.now() - begun) / 1000
}

export function demo(): Found {
  make('demo-down')
  try {
    const [first, second] = [make('demo'), make('demo')]
    const row = absolute('make demo, packages cached', 's', [first])
    return {
      name: 'demo',
      rows: [
        {
          ...row,
          reference: { what: 'by hand, measured once on the first machine', value: summary([BY_HAND_S]) },
          ratio: { median: first / BY_HAND_S, rounds: summary([first / BY_HAND_S]) },
          promise: { most: 1.2, of: 'ratio' },
          met: first <= 1.2 * BY_HAND_S,
        },
        {
          ...absolute('make demo again', 's', [second]),
          reference: { what: 'the first run', value: summary([first]) },
          ratio: { median: second / first, rounds: summary([second / first]) },
          promise: { most: 0.25, of: 'ratio' },
          met: second <= first / 4,
        },
      ],
      notes: [
        'host packages, npm packages and build were there before; the packages of the images come from the cache',
      ],
      raw: { first: [first], second: [second] },
    }
  } finally {
    make('demo-down')
  }
}
