/** The list of 1,000 VMs while fifty of them run. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Answer, type Bench, TINY, booted, inTurns, timed, tinyImage } from './kit.ts'
import { absolute } from './report.ts'
import { quantile } from './stats.ts'

export const list: Bench = {
  name: 'list',
  async run(daemon, { quick }) {
    await tinyImage(daemon)
    // A /24 has no room for them all; on this kind every guest has the same address.
    await daemon.must('POST', '/v1/networks', { name: 'user-net', kind: 'user' })
    const [all, running] = [1000, 50]
    const begun = performance.now()
    await inTurns(Array.from({ length: all }), 16, (_, i) =>
      daemon.job(
        'POST',
        '/v1/vms',
        i < running
          ? { name: `l-${i}`, ...TINY, start: true }
          : { name: `l-${i}`, memory_mib: 64, nics: [{ network: 'user-net' }] },
      ),
    )
    const made_s = (performance.now() - begun) / 1000
    // Booting guests take the processor for themselves; what is promised is said of guests that run.
    await booted(daemon, 'l-', running)
    await sleep(10_000)
    const secure = await daemon.https()
    const raw: Record<string, number[]> = {}
    const measure = async (name: string, get: (path: string) => Promise<Answer>, path: string, count: number) => {
      const samples: number[] = []
      for (let i = 0; i < 10; i++) await get(path)
      let bytes = 0
      for (let i = 0; i < count; i++) {
        const [ms, answer] = await timed(() => get(path))
        if (answer.status !== 200 || (path.includes('limit') && answer.body.items.length !== all))
          throw new Error(`${name}: ${answer.status}`)
        samples.push(ms)
        bytes = JSON.stringify(answer.body).length
      }
      raw[name] = samples
      return bytes
    }
    const count = quick ? 100 : 500
    const local = (path: string) => daemon.call('GET', path)
    const bytes = await measure('list, UNIX socket', local, '/v1/vms?limit=1000', count)
    await measure('list, HTTPS', secure, '/v1/vms?limit=1000', count)
    await measure('ping, UNIX socket', local, '/v1/ping', count)
    await measure('ping, HTTPS', secure, '/v1/ping', count)
    const rows = Object.entries(raw).map(([what, samples]) =>
      absolute(what, 'ms', samples, what.startsWith('list') ? 25 : undefined, quantile(samples, 0.99)),
    )
    return {
      name: 'list',
      rows,
      notes: [
        `${all} VMs, ${running} running; ${(bytes / 1024).toFixed(0)} KiB of JSON, parsed by the client within the time`,
        `made in ${made_s.toFixed(1)} s`,
      ],
      raw,
    }
  },
}
