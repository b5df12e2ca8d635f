/** Raw connections to a VM's serial port and VNC server. QEMU's serial socket takes one client: several viewers share ours. */
import { type Socket, createConnection } from 'node:net'
import { fail } from '@wadah/api/fault'
import type { ConsoleStream } from '@wadah/ports/machine'
import { serialSocket } from './argv.ts'

const MAX_BUFFER_BYTES = 4 * 1024 * 1024

async function connect(path: string): Promise<Socket> {
  const socket = createConnection({ path })
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(fail('monitor_silent', 'The console did not answer within 5 s.')), 5_000)
    socket.once('connect', () => {
      clearTimeout(timer)
      resolve()
    })
    socket.once('error', (error) => {
      clearTimeout(timer)
      reject(fail('wrong_state', 'The console is not there; is the VM running?', { cause: error }))
    })
  })
  return socket
}

/**
 * Writes as fast as QEMU reads: the answer is a promise while there is no room. One for all who wait, kept also when the
 * connection ends, for then there is nothing to wait for.
 */
function writer(socket: Socket): ConsoleStream['write'] {
  let full: Promise<void> | undefined
  return (data) => {
    if (socket.destroyed) return undefined
    if (socket.write(data)) return undefined
    full ??= new Promise<void>((resolve) => {
      const room = () => {
        socket.off('drain', room).off('close', room)
        full = undefined
        resolve()
      }
      socket.on('drain', room).on('close', room)
    })
    return full
  }
}

/** VNC: a connection for each viewer. */
export async function openVnc(path: string): Promise<ConsoleStream> {
  const socket = await connect(path)
  socket.on('error', () => {})
  return { data: socket, write: writer(socket), close: () => socket.destroy() }
}

/** The serial ports of one VM. */
export class SerialHubs {
  readonly #live: string
  readonly #hubs = new Map<number, SerialHub>()

  constructor(live: string) {
    this.#live = live
  }

  open(port: number): Promise<ConsoleStream> {
    let hub = this.#hubs.get(port)
    if (!hub) this.#hubs.set(port, (hub = new SerialHub(serialSocket(this.#live, port))))
    return hub.open()
  }

  close(): void {
    for (const hub of this.#hubs.values()) hub.close()
  }
}

type Line = { socket: Socket; write: ConsoleStream['write']; viewers: Set<Viewer> }

/** One serial port, shared. Everybody sees what the guest writes; what anybody types goes to the guest. */
export class SerialHub {
  readonly #path: string
  #line: Promise<Line> | undefined

  constructor(path: string) {
    this.#path = path
  }

  async open(): Promise<ConsoleStream> {
    const opening = (this.#line ??= this.#connect())
    const line = await opening
    const { socket, write, viewers } = line
    const viewer = new Viewer(write, () => {
      viewers.delete(viewer)
      if (viewers.size > 0) return
      socket.destroy()
      this.#drop(opening)
    })
    viewers.add(viewer)
    if (socket.destroyed) viewer.end()
    return viewer
  }

  /** Another connection may be on its way by now: only this one is let go. */
  #drop(line: Promise<Line>): void {
    if (this.#line === line) this.#line = undefined
  }

  #connect(): Promise<Line> {
    const opening = connect(this.#path).then((socket) => {
      const viewers = new Set<Viewer>()
      socket.on('error', () => {})
      socket.on('data', (chunk: Buffer) => {
        for (const viewer of viewers) viewer.push(chunk)
      })
      socket.on('close', () => {
        this.#drop(opening)
        for (const viewer of [...viewers]) viewer.end()
      })
      return { socket, write: writer(socket), viewers }
    })
    opening.catch(() => this.#drop(opening))
    return opening
  }

  close(): void {
    void this.#line?.then(
      ({ viewers }) => {
        for (const viewer of [...viewers]) viewer.close()
      },
      () => undefined,
    )
  }
}

class Viewer implements ConsoleStream {
  readonly data: AsyncIterable<Uint8Array>
  readonly write: ConsoleStream['write']
  readonly #leave: () => void
  readonly #chunks: Uint8Array[] = []
  #size = 0
  #ended = false
  #wake: (() => void) | undefined

  constructor(write: ConsoleStream['write'], leave: () => void) {
    this.write = write
    this.#leave = leave
    this.data = this.#read()
  }

  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk)
    this.#size += chunk.length
    // A viewer that does not read loses the oldest: it must not hold up the others or the guest.
    while (this.#size > MAX_BUFFER_BYTES) this.#size -= this.#chunks.shift()?.length ?? 0
    this.#wake?.()
  }

  end(): void {
    this.#ended = true
    this.#wake?.()
    this.#leave()
  }

  close(): void {
    this.end()
  }

  async *#read(): AsyncGenerator<Uint8Array> {
    while (true) {
      const chunk = this.#chunks.shift()
      if (chunk) {
        this.#size -= chunk.length
        yield chunk
      } else if (this.#ended) return
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    }
  }
}
