/** A benchmark in a lab of its own, which goes whatever happens. */
import { spawnSync } from 'node:child_process'
import { LAB, lab, purgeDeadLabs, WADAH } from '../tests/kit/lab.ts'
import type { Bench } from './kit.ts'
import type { Found } from './report.ts'

const DOWN_MS = 120_000

/** `after`: takes back what was set beside the lab. */
export const inLab = (
  name: string,
  measure: (quick: boolean) => Promise<Omit<Found, 'name'>>,
  after: () => void = () => {},
): Bench => ({
  name,
  alone: true,
  abandon: () => {
    after()
    spawnSync(WADAH, ['lab', 'down', '--lab', LAB], { timeout: DOWN_MS })
  },
  async run(_daemon, { quick }) {
    purgeDeadLabs()
    try {
      return { name, ...(await measure(quick)) }
    } finally {
      after()
      await lab('down')
    }
  },
})
