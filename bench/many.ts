/** Twenty at once: clones that are not started against one alone; then all started at once. */
import { type Bench, timed } from './kit.ts'
import { type Row, absolute, compare } from './report.ts'
import { source } from './source.ts'

const COUNT = 20

export const many: Bench = {
  name: 'many',
  async run(daemon, options) {
    const from = await source(daemon, options)
    const names = Array.from({ length: COUNT }, (_, i) => `m-${i}`)
    const raw: Record<string, number[]> = { alone: [], twenty: [], starts: [] }
    await from.clone('m-warm', false)
    await from.drop('m-warm')
    for (let round = 0; round < (options.quick ? 2 : 5); round++) {
      for (let i = 0; i < 5; i++) {
        raw['alone']?.push((await timed(() => from.clone(`m-alone-${i}`, false)))[0])
        await from.drop(`m-alone-${i}`)
      }
      raw['twenty']?.push((await timed(() => Promise.all(names.map((name) => from.clone(name, false)))))[0])
      if (round === 0) {
        raw['starts']?.push(
          (await timed(() => Promise.all(names.map((name) => daemon.job('POST', `/v1/vms/${name}/start`)))))[0],
        )
        const { items } = await daemon.must('GET', '/v1/vms?limit=1000&state=running')
        if (items.length < COUNT) throw new Error(`only ${items.length} of ${COUNT} run`)
      }
      for (const name of names) await from.drop(name)
    }
    const medianAlone = (i: number) =>
      [...(raw['alone'] ?? []).slice(i * 5, i * 5 + 5)].sort((a, b) => a - b)[2] ?? Number.NaN
    const reference = (raw['twenty'] ?? []).map((_, i) => COUNT * medianAlone(i))
    const rows: Row[] = [
      compare(
        `${COUNT} clones at once, not started`,
        raw['twenty'] ?? [],
        { what: `${COUNT} × one alone`, samples: reference },
        0.6,
      ),
      absolute(`${COUNT} starts at once, all running`, 'ms', raw['starts'] ?? []),
    ]
    return {
      name: 'many',
      rows,
      notes: [from.what, `all clones succeeded in every round, all starts in the one round they were made in`],
      raw,
    }
  },
}
