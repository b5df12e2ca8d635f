/** One member of etcd of three hangs: how soon a write through each host of a lab succeeds. */
import { hangInTurn, leasesLost, threeMembers } from '../tests/kit/hang.ts'
import { inLab } from './lab.ts'
import { absolute } from './report.ts'

const PROMISED_MS = 3_000

export const hung = inLab('hung', async (quick) => {
  await threeMembers()
  const before = leasesLost()
  const all = []
  for (let i = 0; i < (quick ? 1 : 3); i++) all.push(await hangInTurn())
  const [first, later] = [all.flatMap((a) => a.first), all.flatMap((a) => a.later)]
  const lost = leasesLost().reduce((sum, n, i) => sum + n - (before[i] ?? 0), 0)
  return {
    rows: [
      absolute('a member hangs: first write through each host', 'ms', first, PROMISED_MS),
      absolute('the same, some seconds later', 'ms', later),
    ],
    notes: [
      `${first.filter((ms) => ms <= PROMISED_MS).length} of ${first.length} within ${PROMISED_MS / 1000} s, the longest ${Math.max(...first)} ms; leases lost: ${lost}.`,
      ...all.flatMap((a) => a.said),
    ],
    raw: { first },
  }
})
