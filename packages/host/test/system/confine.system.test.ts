/** What is lent to confined programs, and what of it a crash leaves. */
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { Confinement } from '@wadah/host/system/confine'
import { until } from '../engine/kit.ts'

const FIRST = 232_000
const OWNER = 231_900
const limits = { memory_bytes: 2 ** 28, cpu_s: 10, file_bytes: 2 ** 20 }
const isRoot = process.getuid?.() === 0

let dir: string
let disks: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-confine-'))
  disks = join(dir, 'disks')
  mkdirSync(disks, { mode: 0o711 })
  // Its users must be let through.
  chmodSync(dir, 0o711)
})
afterEach(() => {
  rmSync(dir, { recursive: true, force: true })
})

function disk(name: string): string {
  const path = join(disks, name)
  writeFileSync(path, `secret of ${name}`, { mode: 0o600 })
  chownSync(path, OWNER, 0)
  return path
}
const look = (path: string) => {
  const { uid, gid, mode } = statSync(path)
  return { uid, gid, mode: (mode & 0o7777).toString(8) }
}
const loans = () => (existsSync(join(dir, 'lent')) ? readdirSync(join(dir, 'lent')) : [])
const confinement = () => new Confinement(FIRST, join(dir, 'lent'))

/** Lends and never ends: what a killed daemon leaves. */
async function crash(reads: string[], writes?: string): Promise<void> {
  const handle = writes === undefined ? undefined : await open(writes, 'wx+', 0o600)
  let lent = false
  void confinement().use({ reads, ...(handle ? { writes: handle } : {}) }, () => {
    lent = true
    return new Promise(() => {})
  })
  await until('it to be lent', () => lent)
  await handle?.close()
}

describe.runIf(isRoot)('what is lent', () => {
  test('is read by its program and by no other, and is given back', async () => {
    const [one, two] = [disk('one'), disk('two')]
    const c = confinement()
    await c.use({ reads: [one] }, async (p) => {
      expect((await p.run('cat', [one], { timeout_ms: 10_000, limits })).stdout).toBe('secret of one')
      await expect(p.run('cat', [two], { timeout_ms: 10_000, limits })).rejects.toThrow('Permission denied')
      expect(loans()).toHaveLength(1)
    })
    expect(look(one)).toEqual({ uid: OWNER, gid: 0, mode: '600' })
    expect(loans()).toEqual([])
  })

  test('and left so by a crash is given back at the next start, before anybody gets its group', async () => {
    const [one, two, out] = [disk('one'), disk('two'), join(disks, 'out')]
    await crash([one], out)
    expect(look(one)).toEqual({ uid: OWNER, gid: FIRST + 8, mode: '640' })
    expect(look(out).uid).toBe(FIRST)
    const next = confinement()
    await next.recover()
    expect(look(one)).toEqual({ uid: OWNER, gid: 0, mode: '600' })
    expect(look(out)).toMatchObject({ uid: 0, gid: 0 })
    expect(loans()).toEqual([])
    await next.use({ reads: [two] }, async (p) => {
      for (const path of [one, out])
        await expect(p.run('cat', [path], { timeout_ms: 10_000, limits })).rejects.toThrow('Permission denied')
    })
  })

  test('in a pool that is away keeps its group to itself until it is there again', async () => {
    const one = disk('one')
    await crash([one])
    renameSync(disks, join(dir, 'away'))
    const next = confinement()
    await next.recover()
    expect(loans()).toHaveLength(1)
    mkdirSync(disks, { mode: 0o711 })
    const two = disk('two')
    await next.use({ reads: [two] }, async () => {
      expect(look(two).gid).toBe(FIRST + 9)
    })
    rmSync(disks, { recursive: true })
    renameSync(join(dir, 'away'), disks)
    await confinement().recover()
    expect(look(one)).toEqual({ uid: OWNER, gid: 0, mode: '600' })
    expect(loans()).toEqual([])
  })

  test('and gone, or somebody else’s since, is left alone', async () => {
    const [one, two] = [disk('one'), disk('two')]
    await crash([one, two])
    rmSync(one)
    chownSync(two, OWNER + 1, 7)
    await confinement().recover()
    expect(look(two)).toMatchObject({ uid: OWNER + 1, gid: 7 })
    expect(loans()).toEqual([])
  })
})
