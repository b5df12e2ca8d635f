/** The relay of a broken post-copy: who gets through to QEMU's socket, and that an end goes on to the other side. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { link, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { type Server, type Socket, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { moveIdentity } from '../../src/engine/migration/certificates.ts'
import { type Relay, relay } from '../../src/engine/migration/relay.ts'

let dir: string
let qemu: Server
let came: Socket[]
let there: Relay | undefined
const path = () => join(dir, 'recover')
const own = () => ({ path: path(), uid: process.getuid?.() ?? null })
/** What it takes it says again. */
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-relay-'))
  came = []
  qemu = createServer((socket) => {
    came.push(socket)
    socket.on('error', () => {})
    socket.pipe(socket)
  }).listen(path())
  await once(qemu, 'listening')
})
afterEach(async () => {
  there?.close()
  for (const socket of came) socket.destroy()
  qemu.close()
  await rm(dir, { recursive: true, force: true })
})

/** What came back, until as much had come or the connection ended. */
async function echoed(socket: Socket, bytes: Buffer): Promise<Buffer> {
  const parts: Buffer[] = []
  socket.on('data', (part: Buffer) => {
    parts.push(part)
    if (parts.reduce((n, p) => n + p.length, 0) >= bytes.length) socket.destroy()
  })
  socket.on('error', () => {})
  socket.write(bytes)
  await new Promise((resolve) => socket.once('close', resolve))
  return Buffer.concat(parts)
}
const source = (name: string) => moveIdentity(name, 'source', Date.now())
const target = () => moveIdentity('target-1.move', 'target', Date.now())

test('plain: every byte there and back, and nobody else meanwhile', async () => {
  there = await relay('127.0.0.1', own())
  const socket = connect(there.port, '127.0.0.1')
  const bytes = randomBytes(3_000_000)
  const back = echoed(socket, bytes)
  await once(socket, 'connect')
  await expect.poll(() => came.length).toBe(1)
  const second = connect(there.port, '127.0.0.1')
  await once(second, 'error')
  expect((await back).equals(bytes)).toBe(true)
  expect(came).toHaveLength(1)
})

test('TLS: the source of this move gets through', async () => {
  const [mine, theirs] = [await target(), await source('source-1.move')]
  there = await relay('127.0.0.1', own(), { mine, peer: { ca: theirs.ca, name: theirs.name } })
  const socket = connectTls({
    port: there.port,
    host: '127.0.0.1',
    cert: theirs.cert,
    key: theirs.key,
    ca: mine.ca,
    servername: mine.name,
  })
  const bytes = randomBytes(500_000)
  expect((await echoed(socket, bytes)).equals(bytes)).toBe(true)
})

test.each([
  ['one of another CA', async () => source('source-1.move')],
  ['nobody said who', async () => undefined],
])('TLS: %s does not, and QEMU hears nothing of it', async (_, who) => {
  const [mine, theirs, other] = [await target(), await source('source-1.move'), await who()]
  there = await relay('127.0.0.1', own(), { mine, peer: { ca: theirs.ca, name: theirs.name } })
  const keys = other ? { cert: other.cert, key: other.key } : {}
  const socket = connectTls({ port: there.port, host: '127.0.0.1', ca: mine.ca, servername: mine.name, ...keys })
  expect(await echoed(socket, Buffer.from('me'))).toHaveLength(0)
  expect(came).toHaveLength(0)
})

test('closed: both sides end', async () => {
  there = await relay('127.0.0.1', own())
  const socket = connect(there.port, '127.0.0.1')
  await expect.poll(() => came.length).toBe(1)
  const ends = Promise.all([once(socket, 'close'), once(came[0] as Socket, 'close')])
  socket.resume()
  there.close()
  await ends
})

test('closed while somebody shakes hands: that one does not come through to the next', async () => {
  const [mine, theirs] = [await target(), await source('source-1.move')]
  there = await relay('127.0.0.1', own(), { mine, peer: { ca: theirs.ca, name: theirs.name } })
  const slow = connect(there.port, '127.0.0.1')
  await once(slow, 'connect')
  const gone = once(slow, 'close')
  slow.resume()
  await new Promise((resolve) => setTimeout(resolve, 50))
  there.close()
  await gone
  expect(came).toHaveLength(0)
})

test.each([
  ['a link to another socket', async () => symlink(path(), join(dir, 'other')), null],
  ["another user's socket", async () => link(path(), join(dir, 'other')), 12_345],
  ['a file', async () => writeFile(join(dir, 'other'), ''), null],
])('where QEMU should listen lies %s: nothing is handed on', async (_, put, uid) => {
  await put()
  there = await relay('127.0.0.1', { path: join(dir, 'other'), uid })
  const socket = connect(there.port, '127.0.0.1')
  expect(await echoed(socket, Buffer.from('me'))).toHaveLength(0)
  expect(came).toHaveLength(0)
})

test('QEMU is not there: the source notices', async () => {
  there = await relay('127.0.0.1', { path: join(dir, 'nothing'), uid: null })
  const socket = connect(there.port, '127.0.0.1')
  socket.resume()
  await once(socket, 'close')
})
