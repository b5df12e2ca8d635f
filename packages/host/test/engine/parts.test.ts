/** Small parts of the engine: logs, folders, order of work, the shared serial line. */
import {
  appendFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { type Server, type Socket, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { BootRecord, ConsoleStream } from '@wadah/ports/machine'
import { Channel } from '../../src/engine/channel.ts'
import { SerialHub, openVnc } from '../../src/engine/console.ts'
import { type LiveRecord, VmDirectory } from '../../src/engine/directory.ts'
import { Exclusive, Slots } from '../../src/engine/exclusive.ts'
import { openLog, tailLog, trimLog } from '../../src/engine/log-file.ts'
import { isAlive, qemuOf, startOf, waitGone } from '../../src/engine/process.ts'
import { until } from './kit.ts'

const VM = 'vm-aaaaaaaaaa'
let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'wadah-parts-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true, force: true })
})

describe('logs', () => {
  test('are cut to their last half, and the writer goes on at the end', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 2, max: 100 }), async (length, limit) => {
        const path = join(dir, `log-${length}-${limit}`)
        rmSync(path, { force: true })
        const text = Array.from({ length }, (_, i) => String.fromCharCode(97 + (i % 26))).join('')
        const writer = await openLog(path)
        await writer.write(text)
        await trimLog(path, limit)
        await writer.write('!')
        await writer.close()
        const kept = length <= limit ? text : text.slice(length - Math.floor(limit / 2))
        expect(readFileSync(path, 'utf8')).toBe(`${kept}!`)
      }),
      { numRuns: 50 },
    )
  })
  test('are read from their end; none is empty', async () => {
    const path = join(dir, 'log')
    expect(await tailLog(path, 10)).toEqual({ text: '', size_bytes: 0 })
    appendFileSync(path, '0123456789')
    expect(await tailLog(path, 4)).toEqual({ text: '6789', size_bytes: 10 })
    expect(await tailLog(path, 400)).toEqual({ text: '0123456789', size_bytes: 10 })
  })
  test('a link in their place is not followed', async () => {
    const [precious, path] = [join(dir, 'precious'), join(dir, 'log')]
    writeFileSync(precious, 'x'.repeat(100))
    symlinkSync(precious, path)
    await expect(openLog(path)).rejects.toMatchObject({ code: 'ELOOP' })
    await trimLog(path, 10)
    expect(await tailLog(path, 10)).toEqual({ text: '', size_bytes: 0 })
    expect(readFileSync(precious, 'utf8')).toHaveLength(100)
  })
})

describe('the folder of a VM', () => {
  test.each(['', '.', '..', '../vm-aaaaaaaaaa', 'vm-aaaaaaaaaa/..', 'web', 'vm-AAAAAAAAAA', 'vm-aaaaaaaaaa\n'])(
    '%j is no id',
    (name) => {
      expect(() => new VmDirectory(dir, name)).toThrow('not an id')
    },
  )
  test('is made, made again empty, and removed', async () => {
    const d = new VmDirectory(dir, VM)
    await d.make(null)
    expect([statSync(d.root).mode & 0o777, statSync(d.live).mode & 0o777]).toEqual([0o711, 0o700])
    await d.writeSeed('password=x\n', null)
    expect(statSync(`${d.live}/seed`).mode & 0o777).toBe(0o400)
    await d.make(null)
    expect(existsSync(`${d.live}/seed`)).toBe(false)
    expect(await VmDirectory.list(dir)).toEqual([VM])
    mkdirSync(join(dir, 'vms', 'lost+found'))
    expect(await VmDirectory.list(dir)).toEqual([VM])
    await d.removeAll()
    await d.removeAll()
    expect(existsSync(d.root)).toBe(false)
  })
  test('what the guest left there is removed, what its links point to is not', async () => {
    const precious = join(dir, 'precious')
    mkdirSync(precious)
    writeFileSync(join(precious, 'file'), 'kept')
    const d = new VmDirectory(dir, VM)
    await d.make(null)
    symlinkSync(precious, `${d.live}/qmp.sock`)
    symlinkSync(join(precious, 'file'), `${d.live}/seed`)
    await expect(d.writeSeed('password=x\n', null)).rejects.toMatchObject({ code: 'EEXIST' })
    await d.dropLive()
    rmSync(d.live, { recursive: true, force: true })
    symlinkSync(precious, d.live)
    await d.dropLive()
    expect(lstatSync(d.live, { throwIfNoEntry: false })).toBeUndefined()
    expect(readFileSync(join(precious, 'file'), 'utf8')).toBe('kept')
  })
  test('records are read as they were written; half of one, or one of another time, is none', async () => {
    const d = new VmDirectory(dir, VM)
    await d.make(null)
    expect(await d.readLive()).toBeUndefined()
    await d.writeLive({ schema: 1, vm: VM, epoch: 3 } as LiveRecord)
    await d.writeBoot({ schema: 1, vm: VM } as BootRecord)
    expect([(await d.readLive())?.epoch, (await d.readBoot())?.vm]).toEqual([3, VM])
    writeFileSync(`${d.root}/live.json`, '{"schema":1,')
    writeFileSync(`${d.root}/boot.json`, '{"schema":2}')
    expect([await d.readLive(), await d.readBoot()]).toEqual([undefined, undefined])
    await d.dropLiveRecord()
    await d.dropLiveRecord()
  })
})

describe('processes', () => {
  test('pid and start time name one for ever', async () => {
    const start = startOf(process.pid) as string
    expect(isAlive({ pid: process.pid, start })).toBe(true)
    expect(isAlive({ pid: process.pid, start: '1' })).toBe(false)
    expect(await waitGone({ pid: process.pid, start }, 10)).toBe(false)
    expect(await waitGone({ pid: process.pid, start: '1' }, 10)).toBe(true)
  })
  test("a VM's QEMU is told by user and pid file, wherever in argv", () => {
    const p = (uid: number, ...argv: string[]) => ({ pid: uid, start: '1', uid, argv })
    const all = [
      p(1, 'vi', '/d/qemu.pid'),
      p(2, 'qemu', '-pidfile', '/d/qemu.pid'),
      p(3, 'qemu', '-pidfile', '/d/qemu.pid'),
    ]
    expect(qemuOf(all, '/d', 3)?.pid).toBe(3)
    expect(qemuOf(all, '/d', 1)).toBeUndefined()
    expect(qemuOf(all, '/e', 2)).toBeUndefined()
  })
})

describe('order of work', () => {
  const pause = () => new Promise<void>((resolve) => setImmediate(resolve))
  const keys = fc.array(fc.record({ key: fc.constantFrom('a', 'b', 'c'), fails: fc.boolean() }), { maxLength: 20 })

  test('one at a time per key, in the order asked, failures or not', async () => {
    await fc.assert(
      fc.asyncProperty(keys, async (all) => {
        const exclusive = new Exclusive()
        const inside = new Set<string>()
        const order: number[] = []
        await Promise.allSettled(
          all.map(({ key, fails }, i) =>
            exclusive.run(key, async () => {
              expect(inside.has(key)).toBe(false)
              inside.add(key)
              await pause()
              order.push(i)
              inside.delete(key)
              if (fails) throw new Error('meant')
            }),
          ),
        )
        expect(order).toHaveLength(all.length)
        for (const key of ['a', 'b', 'c']) {
          const mine = order.filter((i) => all[i]?.key === key)
          expect(mine).toEqual([...mine].sort((a, b) => a - b))
        }
      }),
    )
  })

  const works = fc.array(fc.constantFrom('works', 'fails', 'gives up'), { maxLength: 20 })
  test('never more at once than there are slots, and none is lost', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 4 }), works, async (count, all) => {
        const slots = new Slots(count)
        let inside = 0
        const done = all.map((kind) => {
          const control = new AbortController()
          const work = slots.run(control.signal, async () => {
            expect(++inside).toBeLessThanOrEqual(count)
            await pause()
            inside--
            if (kind === 'fails') throw new Error('meant')
          })
          if (kind === 'gives up') control.abort(new Error('gave up'))
          return work
        })
        await Promise.allSettled(done)
        expect(inside).toBe(0)
        // All slots are free again.
        const { promise, resolve } = Promise.withResolvers<void>()
        let at = 0
        const all2 = Array.from({ length: count }, () =>
          slots.run(new AbortController().signal, async () => {
            if (++at === count) resolve()
            await promise
          }),
        )
        await Promise.all(all2)
      }),
    )
  })

  test('a channel gives everything in order and ends with its signal', async () => {
    const channel = new Channel<number>()
    const control = new AbortController()
    const seen: number[] = []
    channel.push(1)
    const reading = (async () => {
      for await (const n of channel.read(control.signal)) {
        seen.push(n)
        if (n === 3) control.abort()
      }
    })()
    await pause()
    channel.push(2)
    channel.push(3)
    await reading
    expect(seen).toEqual([1, 2, 3])
  })
})

describe('the serial line', () => {
  let server: Server
  let clients: Socket[]
  let closed: number
  let path: string
  beforeEach(async () => {
    clients = []
    closed = 0
    path = join(dir, 'serial')
    server = createServer((socket) => {
      clients.push(socket)
      socket.on('error', () => {}).on('close', () => closed++)
      socket.resume()
    })
    await new Promise<void>((resolve) => server.listen(path, resolve))
  })
  afterEach(() => {
    for (const c of clients) c.destroy()
    server.close()
  })
  const read = async (viewer: { data: AsyncIterable<Uint8Array> }) => {
    for await (const chunk of viewer.data) return Buffer.from(chunk).toString()
    return 'ended'
  }

  test('is one connection for all viewers', async () => {
    const hub = new SerialHub(path)
    const viewers = await Promise.all([hub.open(), hub.open(), hub.open()])
    await until('the connection', () => clients.length === 1)
    clients[0]?.write('hello')
    expect(await Promise.all(viewers.map(read))).toEqual(['hello', 'hello', 'hello'])
    const typed = new Promise<string>((resolve) => clients[0]?.once('data', (d) => resolve(d.toString())))
    await viewers[1]?.write(Buffer.from('ls\n'))
    expect(await typed).toBe('ls\n')
    expect(clients).toHaveLength(1)
    hub.close()
  })

  test('one who comes as the last leaves has a line of its own, and the next shares it', async () => {
    const hub = new SerialHub(path)
    const first = await hub.open()
    first.close()
    const second = await hub.open()
    await until('the second connection', () => clients.length === 2)
    await until('the end of the first', () => closed === 1)
    const third = await hub.open()
    // Closing what was closed takes nothing from the others.
    first.close()
    const fourth = await hub.open()
    clients[1]?.write('hello')
    expect(await Promise.all([second, third, fourth].map(read))).toEqual(['hello', 'hello', 'hello'])
    expect(clients).toHaveLength(2)
    hub.close()
  })

  /** Writes until the other side has no more room; the promise that says when it has. */
  async function fill(console: ConsoleStream): Promise<{ taken: Promise<void> }> {
    for (let n = 0; n < 1000; n++) {
      const taken = console.write(Buffer.alloc(65_536, 'x'))
      if (taken && (await Promise.race([taken.then(() => 'taken'), passed(50)])) === undefined) return { taken }
    }
    throw new Error('it took 64 MB that nobody reads')
  }
  const passed = (ms: number) => new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), ms))

  test.each(['serial', 'vnc'])('%s: takes no more than the guest reads, and goes on when it does', async (kind) => {
    server.on('connection', (socket) => socket.pause())
    const hub = new SerialHub(path)
    const console = await (kind === 'vnc' ? openVnc(path) : hub.open())
    const { taken } = await fill(console)
    clients[0]?.resume()
    await taken
    expect(console.write(Buffer.from('more'))).toBeUndefined()
    console.close()
    hub.close()
  })

  test.each(['serial', 'vnc'])('%s: who waits for room does not wait for ever when QEMU ends', async (kind) => {
    server.on('connection', (socket) => socket.pause())
    const hub = new SerialHub(path)
    const console = await (kind === 'vnc' ? openVnc(path) : hub.open())
    const { taken } = await fill(console)
    clients[0]?.destroy()
    await taken
    console.close()
    hub.close()
  })

  test('ends for all when QEMU ends; nobody there is said at once', async () => {
    const hub = new SerialHub(path)
    const viewers = [await hub.open(), await hub.open()]
    await until('the connection', () => clients.length === 1)
    clients[0]?.destroy()
    expect(await Promise.all(viewers.map(read))).toEqual(['ended', 'ended'])
    await new Promise((resolve) => server.close(resolve))
    await expect(hub.open()).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    await expect(hub.open()).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
  })
})
