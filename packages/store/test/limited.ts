/** Run with a limit on file size: writes until that fails, says how, waits for a line, then goes on writing. */
import { once } from 'node:events'
import { openSqliteStore } from '../src/sqlite/sqlite-store.ts'
import { StoreError } from '../src/errors.ts'

const store = await openSqliteStore({ file: process.argv[2] ?? '' })
let n = 0
const write = (value: number) =>
  store.txn([], [{ op: 'put', kind: 'left', id: 'a', value: { value, text: 'x'.repeat(5000) } }], `w${value}`)
try {
  for (;;) {
    await write(n + 1)
    n += 1
  }
} catch (error) {
  const kind = error instanceof StoreError ? `${error.kind} ${error.effect}` : String(error)
  console.log(JSON.stringify({ kind, n }))
}
await once(process.stdin, 'data')
const again = await write(n + 1)
const value = (await store.get<{ value: number }>({ name: 'left' }, 'a'))?.value.value
console.log(JSON.stringify({ ok: again.ok, value, n, current: await store.current() }))
await store.close()
process.exit(0)
