/** One member of etcd of three hangs: how soon a write through each host of a lab succeeds. */
import { spawnSync } from 'node:child_process'
import { hangInTurn, leasesLost, threeMembers } from '../tests/kit/hang.ts'
import { LAB, lab, purgeDeadLabs, WADAH } from '../tests/kit/lab.ts'
import type { Bench } from './kit.ts'
import { absolute } from './report.ts'

const PROMISED_MS = 3_000

export const hung: Bench = {
  name: 'hung',
  alone: true,
  abandon: () => void spawnSync(WADAH, ['lab', 'down', '--lab', LAB], { timeout: 120_000 }),
  async run(_daemon, { quick }) {
    purgeDeadLabs()
    try {
      await threeMembers()
      const before = leasesLost()
      const all = []
      for (let i = 0; i < (quick ? 1 : 3); i++) all.push(await hangInTurn())
      const first = all.flatMap((a) => a.first)
      const lost = leasesLost().reduce((sum, n, i) => sum + n - (before[i] ?? 0), 0)
      return {
        name: 'hung',
        rows: [
          absolute('a member hangs: first write through each host', 'ms', first, PROMISED_MS),
          absolute(
            'the same, some seconds later',
            'ms',
            all.flatMap((a) => a.later),
          ),
        ],
        notes: [
          `${first.filter((ms) => ms <= PROMISED_MS).length} of ${first.length} within ${PROMISED_MS / 1000} s, the longest ${Math.max(...first)} ms; leases lost: ${lost}.`,
          ...all.flatMap((a) => a.said),
        ],
        raw: { first },
      }
    } finally {
      await lab('down')
    }
  },
}
