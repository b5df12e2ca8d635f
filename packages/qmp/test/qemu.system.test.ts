import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type Qmp, connectQmp } from '@wadah/qmp/client'
import { connectAgent } from '@wadah/qmp/agent'
import { GENERATED_FILE, readSchema } from '@wadah/qmp/generate'
import { generateTypes } from '@wadah/qmp/generate-types'
import { closing, collect, failure } from './helpers.ts'

const QEMU = 'qemu-system-x86_64'

async function start(
  ...args: string[]
): Promise<{ qmp: Qmp; child: ChildProcess; folder: string; gone: Promise<unknown> }> {
  const folder = await mkdtemp(join(tmpdir(), 'qmp-system-'))
  closing({ close: () => rm(folder, { recursive: true, force: true }) })
  const path = join(folder, 'qmp')
  const monitor = [
    '-display',
    'none',
    '-nodefaults',
    '-no-user-config',
    '-S',
    '-qmp',
    `unix:${path},server=on,wait=off`,
  ]
  const child = spawn(QEMU, [...args.map((arg) => arg.replace('FOLDER', folder)), ...monitor], { stdio: 'ignore' })
  const gone = once(child, 'exit')
  closing({
    close: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill('SIGKILL')
      await gone
    },
  })
  const qmp = closing(await connectQmp({ path, gone }))
  return { qmp, child, folder, gone }
}

describe('a real QEMU', () => {
  it('starts paused, runs, stops and quits, with its events', async () => {
    const { qmp, gone } = await start('-machine', 'q35,accel=tcg', '-m', '32')
    expect(qmp.version.major).toBeGreaterThanOrEqual(5)
    await expect(qmp.execute('query-status')).resolves.toMatchObject({ status: 'prelaunch', running: false })
    const events = qmp.events(new AbortController().signal)
    for (const [command, event, running] of [
      ['cont', 'RESUME', true],
      ['stop', 'STOP', false],
    ] as const) {
      const seen = qmp.waitFor(event, undefined, { timeout_ms: 30_000 })
      await qmp.execute(command)
      await seen
      await expect(qmp.execute('query-status')).resolves.toMatchObject({ running })
    }
    await qmp.execute('quit')
    await expect(qmp.closed).resolves.toMatchObject({ by: 'peer' })
    await gone
    expect((await collect(events)).map(({ event }) => event)).toEqual(['RESUME', 'STOP', 'SHUTDOWN'])
  })

  it('answers many overlapping commands, refuses by class, and reports what it could not parse', async () => {
    const { qmp } = await start('-machine', 'none')
    const many = await Promise.all(Array.from({ length: 200 }, () => qmp.execute('query-status')))
    expect(many.every(({ status }) => status === 'prelaunch')).toBe(true)
    expect(await failure(qmp.executeAny('no-such-command'))).toMatchObject({ class: 'CommandNotFound' })
    expect(await failure(qmp.execute('device_del', { id: 'nope' }))).toMatchObject({ class: 'DeviceNotFound' })
    // QEMU answers this without an id, while other commands wait.
    const results = await Promise.allSettled([
      qmp.execute('query-status'),
      qmp.execute('device_del', { id: 'lone surrogate \ud800' }),
      qmp.execute('query-version'),
    ])
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
  })

  it('says what may be wrong when another client holds the monitor', async () => {
    const { folder } = await start('-machine', 'none')
    const second = await failure(connectQmp({ path: join(folder, 'qmp'), greeting_timeout_ms: 200 }))
    expect(second).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('another client') })
  })

  it('is reported gone when it dies, before and after connecting', async () => {
    const { qmp, child } = await start('-machine', 'none')
    child.kill('SIGKILL')
    await expect(qmp.closed).resolves.toMatchObject({ by: 'peer' })
    const broken = await failure(start('-machine', 'no-such-machine'))
    expect(broken).toMatchObject({ kind: 'connect-failed', message: expect.stringContaining('gone') })
  })

  it('has an agent channel that takes requests though no guest reads them', async () => {
    const { folder } = await start(
      '-machine',
      'q35,accel=tcg',
      '-m',
      '32',
      '-device',
      'virtio-serial',
      '-chardev',
      'socket,id=agent,path=FOLDER/agent,server=on,wait=off',
      '-device',
      'virtserialport,chardev=agent,name=org.qemu.guest_agent.0',
    )
    const agent = closing(await connectAgent({ path: join(folder, 'agent') }))
    for (let n = 0; n < 3; n += 1) {
      expect(await failure(agent.ping({ timeout_ms: 50 }))).toMatchObject({ kind: 'timeout', sent: false })
    }
  })
})

describe('the generated types', () => {
  it('are what the installed QEMU gives, where it is the version they were made from', async () => {
    const { version, schema } = await readSchema(QEMU)
    const text = generateTypes(schema, version)
    const committed = await readFile(GENERATED_FILE, 'utf8')
    if (committed.includes(`QEMU_VERSION = '${version}'`)) expect(text).toBe(committed)
    // Another version differs in details, but not in the commands everything leans on.
    for (const name of ['query-status', 'cont', 'stop', 'quit', 'blockdev-add', 'migrate']) expect(text).toContain(name)
  })

  it('come with an error that names the binary when it cannot be run', async () => {
    await expect(readSchema('qemu-system-that-is-not-there')).rejects.toThrow('qemu-system-that-is-not-there')
  })
})
