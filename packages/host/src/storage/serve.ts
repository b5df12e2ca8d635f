/**
 * A disk that nobody writes, served to one reader: qemu-nbd, confined like qemu-img, read-only, behind a socket in a folder that only its
 * user enters. What qcow2 and the layers below are is thereby told in one tongue, holes included.
 */
import { chmod, lchown, mkdir, mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { ServedVolume } from '@wadah/ports/volumes'
import { byteStream } from '../system/byte-stream.ts'
import type { Confinement } from '../system/confine.ts'
import { errno } from '../system/files.ts'
import { CONVERT_TIMEOUT_MS, limitsFor, type Source, sourceNode } from './qemu-img.ts'

const LISTEN_MS = 10_000
const LOOK_MS = 10

export type Serve = {
  confinement: Confinement
  chain: Source
  size_bytes: number
  direct_io: boolean
  /** Where sockets lie, each in a folder of its own. */
  sockets: string | undefined
  signal: AbortSignal
}

/** Pure. Without `-t` it ends when its one reader has gone. */
export function serveArgv(chain: Source, direct_io: boolean, socket: string): string[] {
  return [
    '--read-only',
    `--cache=${direct_io ? 'none' : 'writeback'}`,
    `--socket=${socket}`,
    '--',
    `json:${JSON.stringify(sourceNode(chain))}`,
  ]
}

/** @throws WadahError `tool_failed` with its words, `host_lacks`, `cancelled` */
export async function serveDisk(o: Serve): Promise<ServedVolume> {
  const stop = new AbortController()
  const signal = AbortSignal.any([o.signal, stop.signal])
  const ready = Promise.withResolvers<net.Socket>()
  const all = o.confinement.use(
    { reads: o.chain.map((c) => c.path) },
    async (confined) => {
      signal.throwIfAborted()
      const folder = await newFolder(o.sockets)
      const over = new AbortController()
      try {
        if (confined.uid !== null) await lchown(folder, confined.uid, confined.uid)
        const path = join(folder, 's')
        const server = confined.run('qemu-nbd', serveArgv(o.chain, o.direct_io, path), {
          limits: limitsFor(o.size_bytes),
          timeout_ms: CONVERT_TIMEOUT_MS,
          signal,
        })
        const early = server.then(() => {
          throw fail('tool_failed', 'qemu-nbd ended before it served anything.')
        })
        try {
          ready.resolve(await Promise.race([reach(path, AbortSignal.any([signal, over.signal])), early]))
          await server
        } catch (error) {
          // What is lent is taken back only when nobody reads it any more.
          stop.abort(error)
          await server.catch(() => undefined)
          throw error
        }
      } finally {
        over.abort()
        await rm(folder, { recursive: true, force: true })
      }
    },
    signal,
  )
  all.catch(ready.reject)
  const socket = await ready.promise
  const stream = byteStream(socket)
  return {
    ...stream,
    close() {
      stream.close()
      stop.abort(fail('cancelled', 'It is not read any more.'))
    },
    ended: all.then(
      () => undefined,
      () => undefined,
    ),
  }
}

async function newFolder(within: string | undefined): Promise<string> {
  if (within === undefined) return await mkdtemp(join(tmpdir(), 'wadah-nbd-'))
  await mkdir(within, { recursive: true })
  await chmod(within, 0o711)
  return await mkdtemp(join(within, 'n'))
}

/** To look whether it listens would be a visit, and its last. */
async function reach(path: string, signal: AbortSignal): Promise<net.Socket> {
  for (const end = performance.now() + LISTEN_MS; ; ) {
    signal.throwIfAborted()
    const socket = net.connect(path)
    const why = await new Promise<Error | undefined>((resolve) => {
      socket.once('connect', () => resolve(undefined)).once('error', resolve)
    })
    if (!why) return socket
    socket.destroy()
    if (!['ENOENT', 'ECONNREFUSED'].includes(errno(why)))
      throw fail('tool_failed', `qemu-nbd can't be reached: ${why.message}.`, { cause: why })
    if (performance.now() > end) throw fail('timeout', `qemu-nbd did not listen within ${LISTEN_MS / 1000} s.`)
    await sleep(LOOK_MS)
  }
}
