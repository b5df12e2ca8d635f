/** An instant clone to its first HTTP answer, against a cold boot of the same image; what it holds in memory by itself. */
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Bench, type Daemon, removeVms } from './kit.ts'
import { absolute, compare } from './report.ts'

const LOOK_MS = 5
const GIVE_UP_MS = 600_000
const MEMORY_MIB = 512

export const instant: Bench = {
  name: 'instant',
  async run(daemon, { quick, recipe = 'web-server' }) {
    const rounds = quick ? 2 : 6
    await daemon.job('POST', '/v1/images/build', { recipe })
    await daemon.job('POST', `/v1/images/${recipe}/warm`, { memory_mib: MEMORY_MIB })
    const raw: Record<string, number[]> = { instant: [], cold: [], private: [], code: [] }
    const make = async (name: string, more: object) => {
      const begun = performance.now()
      const body = { name, image: recipe, memory_mib: MEMORY_MIB, start: true, nics: [{}], ...more }
      await daemon.job('POST', '/v1/vms', body)
      const vm = await daemon.must('GET', `/v1/vms/${name}`)
      await answers(vm.spec.nics[0].address)
      return { took_ms: performance.now() - begun, pid: vm.status.pid as number }
    }
    // The first one reads the template; every one after finds it in memory.
    await make('i-first', { instant: true })
    await removeVms(daemon, 'i-')
    try {
      for (let i = 0; i < rounds; i++) {
        const clone = await make(`i-${i}`, { instant: true })
        raw['instant']?.push(clone.took_ms)
        await gone(daemon, `i-${i}`)
        raw['cold']?.push((await make(`i-cold${i}`, {})).took_ms)
        await gone(daemon, `i-cold${i}`)
      }
      // With one that runs already: QEMU's program and its libraries are in memory once.
      await make('i-other', { instant: true })
      for (let i = 0; i < rounds; i++) {
        const memory = privateMib((await make(`i-${i}`, { instant: true })).pid)
        raw['private']?.push(memory.all)
        raw['code']?.push(memory.code)
        await gone(daemon, `i-${i}`)
      }
    } finally {
      await removeVms(daemon, 'i-')
    }
    return {
      name: 'instant',
      rows: [
        compare(
          `instant clone of ${recipe}: request → first HTTP 200`,
          raw['instant'] ?? [],
          { what: 'cold boot of the same image', samples: raw['cold'] ?? [] },
          1 / 20,
        ),
        absolute('memory a further one holds by itself at that moment', 'MiB', raw['private'] ?? [], 40),
        absolute('of that, under TCG: code that it translated', 'MiB', raw['code'] ?? []),
      ],
      notes: [
        `${MEMORY_MIB} MiB, one CPU, a nat network. Memory: what /proc/PID/smaps says is private, QEMU's own with it, without pages of the template.`,
      ],
      raw,
    }
  },
}

async function gone(daemon: Daemon, name: string): Promise<void> {
  await daemon.job('DELETE', `/v1/vms/${name}?force=true`)
}

/**
 * What is its own, MiB: of the template's memory only the pages it has written (`Anonymous`); the others are everybody's. `code`: of
 * that, the only memory that may be written and executed.
 */
function privateMib(pid: number): { all: number; code: number } {
  const kib = { all: 0, code: 0 }
  let [shared, code] = [false, false]
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    const [, rights] = /^[0-9a-f]+-[0-9a-f]+ (\S+) /.exec(line) ?? []
    if (rights !== undefined) [shared, code] = [line.includes('memfd:wadah-ram'), rights === 'rwxp']
    const [, name = '', n] = /^(\w+):\s+(\d+) kB/.exec(line) ?? []
    const own = shared ? name === 'Anonymous' : name === 'Private_Clean' || name === 'Private_Dirty'
    if (own) kib.all += Number(n)
    if (own && code) kib.code += Number(n)
  }
  return { all: kib.all / 1024, code: kib.code / 1024 }
}

async function answers(host: string): Promise<void> {
  const once = () =>
    new Promise<boolean>((done) => {
      const req = http.get({ host, port: 80, path: '/', timeout: 2_000, agent: false }, (res) => {
        res.resume()
        done(res.statusCode === 200)
      })
      req.once('timeout', () => req.destroy())
      req.once('error', () => done(false))
    })
  for (const end = performance.now() + GIVE_UP_MS; !(await once()); await sleep(LOOK_MS))
    if (performance.now() > end) throw new Error(`http://${host}/ does not answer`)
}
