/** Whether the daemon's memory grows with what it has done: a thousand times create, start, stop, delete. */
import { setTimeout as sleep } from 'node:timers/promises'
import { residentMib } from './idle.ts'
import { type Bench, TINY, tinyImage } from './kit.ts'
import { absolute } from './report.ts'

export const cycles: Bench = {
  name: 'cycles',
  async run(daemon, { quick }) {
    const all = quick ? 200 : 1000
    await tinyImage(daemon)
    const raw: Record<string, number[]> = { resident: [] }
    const began = performance.now()
    for (let i = 1; i <= all; i++) {
      const name = `y-${i}`
      await daemon.job('POST', '/v1/vms', { name, ...TINY, disks: [{ size_mib: 16 }] })
      await daemon.job('POST', `/v1/vms/${name}/start`)
      await daemon.job('POST', `/v1/vms/${name}/stop`)
      await daemon.job('DELETE', `/v1/vms/${name}`)
      if (i % (all / 20) !== 0) continue
      // What can be collected is, before it is looked at.
      await sleep(500)
      raw['resident']?.push(residentMib(daemon.pid))
    }
    const seen = raw['resident'] ?? []
    const least = (part: number[]) => Math.min(...part)
    // Of the second half, against the first: what comes and goes with the collector is not growth.
    const growth = least(seen.slice(10)) - least(seen.slice(5, 10))
    return {
      name: 'cycles',
      rows: [
        absolute('growth of resident memory from the second quarter to the second half', 'MiB', [growth], 4),
        absolute('resident memory', 'MiB', seen),
      ],
      notes: [
        `${all} cycles of create, start, stop, delete in ${((performance.now() - began) / 1000).toFixed(0)} s`,
        `resident, twenty times on the way, MiB: ${seen.map((m) => m.toFixed(0)).join(' ')}`,
      ],
      raw,
    }
  },
}
