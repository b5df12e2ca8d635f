/** Raw connections to a VM's serial port and VNC server. QEMU's serial socket takes one client: several viewers share ours. */
import { type Socket, createConnection } from 'node:net'
import { fail } from '@wadah/api/fault'
import type { ConsoleStream } from '@wadah/ports/machine'

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

/** VNC: a connection for each viewer. */
export async function openVnc(path: string): Promise<ConsoleStream> {
  const socket = await connect(path)
  socket.on('error', () => {})
  return {
    data: socket,
    write: (data) => void socket.write(data),
    close: () => socket.destroy(),
  }
}

/** One serial port, shared. Everybody sees what the guest writes; what anybody types goes to the guest. */
export class SerialHub {
  readonly #path: string
  readonly #viewers = new Set<Viewer>()
  #socket: Promise<Socket> | undefined

  constructor(path: string) {
    this.#path = path
  }

  async open(): Promise<ConsoleStream> {
    const socket = await (this.#socket ??= this.#connect())
    const viewer = new Viewer(
      (data) => void socket.write(data),
      () => {
        this.#viewers.delete(viewer)
        if (this.#viewers.size === 0) {
          socket.destroy()
          this.#socket = undefined
        }
      },
    )
    this.#viewers.add(viewer)
    return viewer
  }

  async #connect(): Promise<Socket> {
    try {
      const socket = await connect(this.#path)
      socket.on('error', () => {})
      socket.on('data', (chunk: Buffer) => {
        for (const viewer of this.#viewers) viewer.push(chunk)
      })
      socket.on('close', () => {
        this.#socket = undefined
        for (const viewer of [...this.#viewers]) viewer.end()
      })
      return socket
    } catch (error) {
      this.#socket = undefined
      throw error
    }
  }

  close(): void {
    for (const viewer of [...this.#viewers]) viewer.close()
  }
}

class Viewer implements ConsoleStream {
  readonly data: AsyncIterable<Uint8Array>
  readonly write: (data: Uint8Array) => void
  readonly #leave: () => void
  readonly #chunks: Uint8Array[] = []
  #size = 0
  #ended = false
  #wake: (() => void) | undefined

  constructor(write: (data: Uint8Array) => void, leave: () => void) {
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
