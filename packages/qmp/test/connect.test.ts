import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { connectQmp } from '@wadah/qmp/client'
import { FakeQemu } from '@wadah/qmp/testing/fake-qemu'
import { closing, failure } from './helpers.ts'

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'qmp-connect-'))
  closing({ close: () => rm(path, { recursive: true, force: true }) })
  return path
}

describe('connectQmp', () => {
  it('connects over a UNIX socket, again and again', async () => {
    const qemu = closing(await new FakeQemu().listen())
    for (let n = 1; n <= 3; n += 1) {
      const qmp = await connectQmp({ path: qemu.path })
      await expect(qmp.execute('query-status')).resolves.toBeDefined()
      await qmp.close()
      expect(qemu.connections).toBe(n)
    }
  })

  it('waits for a socket that appears later', async () => {
    const path = join(await folder(), 'qmp')
    const connecting = connectQmp({ path })
    await new Promise((resolve) => setTimeout(resolve, 30))
    closing(await new FakeQemu().listen(path))
    closing(await connecting)
  })

  it('gives up at its deadline, when the process is gone, and when aborted', async () => {
    const path = join(await folder(), 'qmp')
    const late = await failure(connectQmp({ path, connect_timeout_ms: 10 }))
    expect(late).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('ENOENT') })
    const exited = Promise.withResolvers<number>()
    const gone = failure(connectQmp({ path, gone: exited.promise }))
    exited.resolve(1)
    expect(await gone).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('is gone') })
    const crashed = await failure(connectQmp({ path, gone: Promise.reject(new Error('spawn failed')) }))
    expect(crashed).toMatchObject({ kind: 'connect-failed', cause: { message: 'spawn failed' } })
    const abort = new AbortController()
    const aborted = failure(connectQmp({ path, signal: abort.signal }))
    abort.abort()
    expect((await aborted).kind).toBe('aborted')
  })

  it('does not try again what cannot work', async () => {
    const file = join(await folder(), 'file')
    await writeFile(file, '')
    const long = await failure(connectQmp({ path: `/${'x'.repeat(107)}` }))
    expect(long).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('107 bytes') })
    const through = await failure(connectQmp({ path: join(file, 'qmp') }))
    expect(through).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('ENOTDIR') })
  })
})
