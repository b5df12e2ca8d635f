/** What the daemon takes when nothing is asked of it and ten guests idle. */
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Bench, TINY, inTurns, tinyImage } from './kit.ts'
import { absolute } from './report.ts'

/** Clock ticks per second of /proc/PID/stat: USER_HZ, 100 on every Linux this runs on (proc(5)). */
const TICKS_PER_S = 100

function processor_s(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_S
}
/** From /proc/PID/status. */
export function residentMib(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]) / 1024
}

export const idle: Bench = {
  name: 'idle',
  async run(daemon, { quick }) {
    await tinyImage(daemon)
    await inTurns(Array.from({ length: 10 }), 10, (_, i) =>
      daemon.job('POST', '/v1/vms', { name: `i-${i}`, ...TINY, start: true }),
    )
    const after_start = residentMib(daemon.pid)
    await sleep(quick ? 15_000 : 30_000)
    const [memory, processor]: [number[], number[]] = [[], []]
    for (let i = 0; i < (quick ? 2 : 6); i++) {
      const before = processor_s(daemon.pid)
      await sleep(10_000)
      processor.push(((processor_s(daemon.pid) - before) / 10) * 100)
      memory.push(residentMib(daemon.pid))
    }
    const mean = processor.reduce((a, b) => a + b, 0) / processor.length
    return {
      name: 'idle',
      rows: [
        absolute('resident memory, 10 idle VMs', 'MiB', memory, 120),
        // Ticks of 10 ms are coarse: the mean over the whole time is judged.
        absolute('processor, 10 idle VMs, mean', '% of a core', [mean], 0.5),
      ],
      notes: [
        `right after the ten starts: ${after_start.toFixed(1)} MiB; the largest then ${Math.max(...memory).toFixed(1)} MiB`,
      ],
      raw: { memory, processor },
    }
  },
}
