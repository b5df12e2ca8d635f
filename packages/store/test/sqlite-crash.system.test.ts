/** What needs processes that are killed, and a disk that is really full. */
import { execFileSync, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Kind, Store } from '@wadah/store/store'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { changesUpTo, page } from '@wadah/store/testing/read'
import { afterEach, beforeEach, expect, test } from 'vitest'

const left: Kind<number> = { name: 'left' }
const right: Kind<number> = { name: 'right' }
let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-store-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true, force: true })
})

/** Lets a writer run for a while and kills it; gives what it had acknowledged. */
async function killWriter(file: string, from: 'src' | 'dist', life: number, after_ms: number): Promise<string[]> {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'writer.ts'), file, from, `${life}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  const opened = Promise.withResolvers<void>()
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString()
    if (text.includes('open\n')) opened.resolve()
  })
  const closed = new Promise<void>((resolve) => child.on('close', () => resolve()))
  await Promise.race([opened.promise, closed])
  await new Promise((resolve) => setTimeout(resolve, after_ms))
  child.kill('SIGKILL')
  await closed
  return text.split('\n').slice(1, -1)
}

test.each(['src', 'dist'] as const)('kill -9 in the middle of commits, again and again (%s)', async (from) => {
  const file = join(dir, 'store.db')
  const root = join(import.meta.dirname, '../../..')
  if (from === 'dist') execFileSync(join(root, 'node_modules/.bin/tsc'), ['-b', 'packages/store'], { cwd: root })
  let acknowledged = 0
  for (let life = 0; life < 6; life += 1) {
    const lines = await killWriter(file, from, life, 30 + life * 40)
    acknowledged += lines.length
    const store = await openSqliteStore({ file, keepRevisions: 10_000_000 })
    try {
      await check(store, lines)
    } finally {
      await store.close()
    }
  }
  expect(acknowledged).toBeGreaterThan(50)
})

async function check(store: Store, lines: string[]): Promise<void> {
  const lefts = page(await store.list(left, { limit: 1000 })).items
  const rights = page(await store.list(right, { limit: 1000 })).items
  expect(rights.map((r) => [r.id, r.value, r.modified])).toEqual(lefts.map((r) => [r.id, r.value, r.modified]))
  for (const line of lines) {
    const [id = '', n, revision] = line.split(' ')
    const rec = lefts.find((r) => r.id === id)
    expect(rec?.value).toBeGreaterThanOrEqual(Number(n))
    if (rec?.value === Number(n)) expect(rec.modified).toBe(Number(revision))
  }
  expect(page(await store.range('held:', { limit: 10 })).items).toEqual([])
  const current = await store.current()
  const changes = await changesUpTo(store, 'left:', 0, current)
  for (const { id, value } of lefts) {
    const seen = changes.flatMap((c) => (c.type === 'put' && c.id === id ? [c.rec.value] : []))
    expect(seen).toEqual(Array.from({ length: value }, (_, i) => i + 1))
  }
}

test('a disk that is full: refused without a trace, and on it goes once there is room', async () => {
  const mount = join(dir, 'small')
  mkdirSync(mount)
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m,mode=700', 'wadah-test', mount])
  let store: Store | undefined
  try {
    store = await openSqliteStore({ file: join(mount, 'store.db') })
    const write = (n: number) => (store as Store).txn([], [{ op: 'put', kind: 'left', id: 'a', value: n }], `w${n}`)
    await write(1)
    const { bavail, bsize } = statfsSync(mount)
    writeFileSync(join(mount, 'filler'), Buffer.alloc(bavail * bsize))
    let n = 1
    let refused: unknown
    while (!refused && n < 2000) {
      try {
        await write(n + 1)
        n += 1
      } catch (error) {
        refused = error
      }
    }
    expect(refused).toMatchObject({ kind: 'no_room', effect: 'none' })
    expect((await store.get(left, 'a'))?.value).toBe(n)
    await expect(write(n + 1)).rejects.toMatchObject({ kind: 'no_room' })
    rmSync(join(mount, 'filler'))
    await write(n + 1)
    await store.close()
    store = await openSqliteStore({ file: join(mount, 'store.db') })
    expect((await store.get(left, 'a'))?.value).toBe(n + 1)
    expect(await store.current()).toBe(n + 1)
  } finally {
    await store?.close()
    execFileSync('umount', [mount])
  }
})

test('bundled into one file, with the thread as a second one', async () => {
  const { build } = await import('esbuild')
  const source = join(import.meta.dirname, '../src/sqlite')
  const main = `
    import { openSqliteStore } from ${JSON.stringify(join(source, 'sqlite-store.ts'))}
    const store = await openSqliteStore({ file: process.argv[2], workerUrl: new URL('./store-worker.js', import.meta.url) })
    await store.txn([], [{ op: 'put', kind: 'left', id: 'a', value: 1 }], 't')
    console.log((await store.get({ name: 'left' }, 'a')).value)
    await store.close()`
  const common = { bundle: true, platform: 'node', format: 'esm', logLevel: 'error' } as const
  await build({ ...common, stdin: { contents: main, resolveDir: source }, outfile: join(dir, 'main.js') })
  await build({ ...common, entryPoints: [join(source, 'worker.ts')], outfile: join(dir, 'store-worker.js') })
  writeFileSync(join(dir, 'package.json'), '{"type":"module"}')
  const out = execFileSync(process.execPath, [join(dir, 'main.js'), join(dir, 'store.db')])
  expect(out.toString()).toBe('1\n')
})

test('a write that the system refuses: outcome unknown, the file is opened anew and on it goes', async () => {
  // A limit on file size stands for a failing disk: SQLite sees an I/O error, not a full disk.
  const script = 'trap "" XFSZ; ulimit -S -f 600; exec "$0" "$@"'
  const file = join(dir, 'store.db')
  const child = spawn('bash', ['-c', script, process.execPath, join(import.meta.dirname, 'limited.ts'), file], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const closed = new Promise<void>((resolve) => child.on('close', () => resolve()))
  try {
    const lines: string[] = []
    for await (const line of createInterface(child.stdout)) {
      lines.push(line)
      if (lines.length > 1) continue
      execFileSync('prlimit', ['--pid', `${child.pid}`, '--fsize=unlimited:unlimited'])
      child.stdin.write('go on\n')
    }
    const [failed, after] = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
    expect(failed).toMatchObject({ kind: 'io unknown' })
    const n = failed?.n as number
    expect(n).toBeGreaterThan(10)
    expect(after).toEqual({ ok: true, n, value: n + 1, current: n + 1 })
  } finally {
    child.kill('SIGKILL')
    await closed
  }
})
