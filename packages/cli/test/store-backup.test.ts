/** A copy of the store holds secrets and is often made by root from cron: where it is written to is nobody else's choice. */
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type FakeDaemon, fakeDaemon, wadah } from './support/fake.ts'

const COPY = Buffer.alloc(4096)
COPY.write('SQLite format 3\0', 'latin1')
COPY.writeUInt16BE(4096, 16)
COPY.writeUInt32BE(1, 28)
const isRoot = process.getuid?.() === 0

let daemon: FakeDaemon
let folder: string
let sent: Buffer
beforeEach(async () => {
  sent = COPY
  daemon = await fakeDaemon({ 'POST /v1/store/backup': () => ({ raw: (r) => void r.writeHead(200).end(sent) }) })
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'wadah-backup-')))
})
afterEach(async () => {
  rmSync(folder, { recursive: true, force: true })
  await daemon.close()
})
const backup = (file: string) => wadah(['store', 'backup', file], { env: { WADAH_SOCKET: daemon.socket } })

describe('store backup', () => {
  it('makes a file of its owner only, and replaces an older copy whole', async () => {
    const file = join(folder, 'copy.db')
    expect(await backup(file)).toMatchObject({ code: 0 })
    expect([statSync(file).mode & 0o777, readFileSync(file)]).toEqual([0o600, COPY])
    writeFileSync(file, 'older')
    chmodSync(file, 0o644)
    expect(await backup(file)).toMatchObject({ code: 0 })
    expect([statSync(file).mode & 0o777, readFileSync(file)]).toEqual([0o600, COPY])
    expect(await backup(folder)).toMatchObject({ code: 0 })
    expect(readdirSync(folder).sort()).toEqual(['copy.db', 'store.db'])
  })

  it('that is not whole leaves the older one as it was', async () => {
    const file = join(folder, 'copy.db')
    writeFileSync(file, 'older')
    sent = COPY.subarray(0, 1024)
    expect((await backup(file)).code).not.toBe(0)
    expect(readFileSync(file, 'utf8')).toBe('older')
    expect((await backup(join(folder, 'new.db'))).code).not.toBe(0)
    expect(readdirSync(folder)).toEqual(['copy.db'])
  })

  it('follows no link', async () => {
    const [victim, link] = [join(folder, 'victim'), join(folder, 'copy.db')]
    writeFileSync(victim, 'precious', { mode: 0o644 })
    symlinkSync(victim, link)
    const refused = await backup(link)
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('symbolic link')])
    expect([readFileSync(victim, 'utf8'), statSync(victim).mode & 0o777]).toEqual(['precious', 0o644])
    symlinkSync(join(folder, 'not-there'), join(folder, 'dangling'))
    expect((await backup(join(folder, 'dangling'))).code).toBe(2)
    expect(readdirSync(folder).sort()).toEqual(['copy.db', 'dangling', 'victim'])
  })

  it('goes into no folder where others may put things in its way', async () => {
    const open = join(folder, 'open')
    mkdirSync(join(open, 'sub'), { recursive: true })
    chmodSync(open, 0o777)
    for (const path of [open, join(open, 'sub')]) {
      const refused = await backup(join(path, 'copy.db'))
      expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining(`${open} may be written to`)])
      expect(readdirSync(path).filter((n) => n !== 'sub')).toEqual([])
    }
    // As /tmp is: nobody renames there what is not theirs.
    chmodSync(open, 0o1777)
    expect((await backup(join(open, 'copy.db'))).code).toBe(0)
  })

  it.runIf(isRoot)('replaces nobody else’s file and trusts nobody else’s folder', async () => {
    const file = join(folder, 'copy.db')
    writeFileSync(file, 'theirs')
    chownSync(file, 65_534, 65_534)
    const refused = await backup(file)
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('belongs to uid 65534')])
    expect(readFileSync(file, 'utf8')).toBe('theirs')
    rmSync(file)
    chownSync(folder, 65_534, 65_534)
    expect((await backup(file)).stderr).toContain(`${folder} belongs to uid 65534`)
    expect(readdirSync(folder)).toEqual([])
  })
})
