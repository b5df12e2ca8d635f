/** Run as a process of its own: writes as fast as it can and prints what was acknowledged, until it is killed. */
import { writeSync } from 'node:fs'

const [file = '', from = 'src', life = '0'] = process.argv.slice(2)
const ending = from === 'dist' ? 'js' : 'ts'
const { openSqliteStore } = (await import(
  `../${from}/sqlite/sqlite-store.${ending}`
)) as typeof import('../src/sqlite/sqlite-store.ts')
const store = await openSqliteStore({ file, keepRevisions: 10_000_000 })
const lease = await store.lease(1000)
writeSync(1, 'open\n')

async function writer(name: string): Promise<never> {
  for (let n = 1; ; n += 1) {
    // Two records that always agree, a third bound to this process.
    const id = `${life}-${name}`
    const outcome = await store.txn(
      [],
      [
        { op: 'put', kind: 'left', id, value: n },
        { op: 'put', kind: 'right', id, value: n },
        { op: 'put', kind: 'held', id, value: n, lease: lease.id },
      ],
      `${id}-${n}`,
    )
    if (outcome.ok) writeSync(1, `${id} ${n} ${outcome.revision}\n`)
  }
}
await Promise.all(['a', 'b', 'c', 'd'].map(writer))
