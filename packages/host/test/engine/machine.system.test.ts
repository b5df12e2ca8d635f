import { randomBytes } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { newId } from '@wadah/api/ids'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { processes } from '../../src/engine/process.ts'
import { machineKit, until } from './kit.ts'

const never = new AbortController().signal

describe('a real QEMU', () => {
  let kit: Awaited<ReturnType<typeof machineKit>>
  beforeAll(async () => {
    kit = await machineKit()
  })
  afterAll(async () => {
    await kit.close()
  })

  async function start(request = kit.request()) {
    const plan = await kit.machine.plan(request)
    await kit.machine.prepare(plan, never)
    const running = await kit.machine.launch(plan, 'fresh', never)
    return { request, plan, running }
  }
  const ready = (vm: string) =>
    until('the guest', async () => (await kit.machine.serialLog(vm, 65536)).text.includes('WADAH-TINY-READY'))

  test('starts without root, in its own group and folder, and powers down by the button', async () => {
    const { request, running } = await start()
    const { vm } = request
    expect((await kit.machine.observe(vm)).state).toBe('running')
    const qemu = (await processes()).find((p) => p.pid === running.pid)
    expect(qemu?.uid).toBe(request.spec.uid)
    if (kit.machine.cgroups.layout.version !== 'none') expect(await kit.machine.cgroups.list()).toContain(vm)
    await ready(vm)
    await kit.machine.powerDown(vm)
    const stopped = await kit.machine.waitStopped(vm, 30_000, never)
    expect(stopped).toMatchObject({ state: 'stopped', by_guest: true })
    expect(await kit.machine.cgroups.list()).not.toContain(vm)
    expect((await processes()).some((p) => p.uid === request.spec.uid)).toBe(false)
  })

  test('pauses, resumes, resets, and tells whose pause it was', async () => {
    const { request } = await start()
    await kit.machine.pause(request.vm, 'user')
    expect(await kit.machine.observe(request.vm)).toMatchObject({ state: 'paused', paused_by: 'user' })
    await kit.machine.resume(request.vm)
    expect(await kit.machine.observe(request.vm)).toMatchObject({ state: 'running' })
    const agent = () => kit.machine.observe(request.vm).then((o) => o.agent)
    await until('the agent', async () => (await agent()) === 'connected')
    await kit.machine.reset(request.vm)
    // What ran in the guest is gone by now, its agent with it.
    expect(await kit.machine.observe(request.vm)).toMatchObject({ state: 'running', agent: 'absent' })
    await until('the agent again', async () => (await agent()) === 'connected')
    await kit.machine.stop(request.vm)
    expect(await kit.machine.observe(request.vm)).toMatchObject({ state: 'stopped' })
  })

  test('a second daemon adopts what runs', async () => {
    const { request, running } = await start()
    await ready(request.vm)
    await kit.machine.close()
    const second = await kit.open()
    const adopted = await second.attach(request.vm)
    expect(adopted?.pid).toBe(running.pid)
    expect(await second.observe(request.vm)).toMatchObject({ state: 'running', epoch: 1 })
    await until('the agent', async () => (await second.observe(request.vm)).agent === 'connected')
    const result = await second
      .guest(request.vm)
      .exec({ argv: ['cat'], stdin: Buffer.from('hello'), timeout_ms: 20_000 }, never)
    expect(Buffer.from(result.stdout, 'base64').toString()).toBe('hello')
    expect(result.exit_code).toBe(0)
    await second.agentPowerDown(request.vm, never)
    expect(await second.waitStopped(request.vm, 30_000, never)).toMatchObject({ state: 'stopped' })
    kit.machine = second
  })

  test.each([
    ['before the guest ran: it is started anew', 'paused'],
    ['after the guest began to run: it runs on', 'fresh'],
  ] as const)('a daemon that died in the middle of a start, %s', async (_what, how) => {
    const request = kit.request({ disks: [] })
    const first = await kit.open()
    const begun = await first.plan(request)
    await first.prepare(begun, never)
    const { pid } = await first.launch(begun, how, never)
    await first.close()
    // The job goes on in a daemon that has not adopted it: VMs that are still being made are not looked for.
    const second = await kit.open()
    const plan = await second.plan(request)
    await second.prepare(plan, never)
    const running = await second.launch(plan, 'fresh', never)
    expect(running.pid === pid).toBe(how === 'fresh')
    expect(await second.observe(request.vm)).toMatchObject({ state: 'running', pid: running.pid })
    await running.execute('query-version')
    await until('the guest', async () => (await second.serialLog(request.vm, 65536)).text.includes('WADAH-TINY-READY'))
    expect((await processes()).filter((p) => p.uid === request.spec.uid)).toHaveLength(1)
    await second.stop(request.vm)
    await second.close()
  })

  test('limits of a disk are those QEMU has, from the start and when they change', async () => {
    const pool = { id: newId('pool', randomBytes), path: join(kit.dir, 'pool'), direct_io: false }
    await mkdir(pool.path)
    await kit.machine.volumes.openPool(pool)
    const id = newId('volume', randomBytes)
    const volume = { id, pool: pool.id, format: 'qcow2' as const, size_bytes: 2 ** 24 }
    const disk = (iops: number) => ({ name: 'root', volume: id, limits: { iops, bytes_per_s: 1_000_000 } })
    const base = kit.request({ disks: [disk(77)] })
    await kit.machine.volumes.create(pool, volume, { signal: never })
    await kit.machine.volumes.grant(pool, volume, { uid: base.spec.uid })
    const { request, running } = await start({ ...base, disks: [{ name: 'root', chain: [volume], pool }] })
    const limits = async () => {
      const all = (await running.execute('query-block')) as { inserted?: { iops: number; bps: number } }[]
      return all.flatMap(({ inserted }) => (inserted ? [[inserted.iops, inserted.bps]] : []))
    }
    expect(await limits()).toEqual([[77, 1_000_000]])
    await kit.machine.applyLimits(request.vm, { ...request.spec, disks: [disk(55)] })
    expect(await limits()).toEqual([[55, 1_000_000]])
    await kit.machine.stop(request.vm)
  })

  test('QEMU killed: the state is true and nothing is left', async () => {
    const { request, running } = await start()
    process.kill(running.pid, 'SIGKILL')
    const seen = await kit.machine.waitStopped(request.vm, 10_000, never)
    expect(seen?.state).toBe('stopped')
    expect(seen?.reason).toContain('SIGKILL')
    expect(await kit.machine.cgroups.list()).not.toContain(request.vm)
  })

  test('the serial console echoes', async () => {
    const { request } = await start()
    await ready(request.vm)
    const console = await kit.machine.console(request.vm, { kind: 'serial' })
    await console.write(Buffer.from("echo he''llo\n"))
    let seen = ''
    for await (const chunk of console.data) {
      seen += Buffer.from(chunk).toString()
      if (seen.includes('hello')) break
    }
    expect(seen).toContain('hello')
    console.close()
    await kit.machine.stop(request.vm)
  })
})
