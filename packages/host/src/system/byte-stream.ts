/** Streams of bytes as rooms hand them to each other, over sockets of ours. */
import type { Duplex } from 'node:stream'
import type { ByteStream } from '@wadah/ports/volumes'

/** Resolves when the socket takes more, or never will. */
export const drained = (socket: Duplex): Promise<void> =>
  new Promise<void>((resolve) => {
    const end = () => {
      socket.off('drain', end).off('close', end)
      resolve()
    }
    if (socket.destroyed) return resolve()
    socket.on('drain', end).on('close', end)
  })

export function byteStream(socket: Duplex): ByteStream {
  // Who reads it is told by the end of its data.
  socket.on('error', () => socket.destroy())
  return {
    data: socket as AsyncIterable<Uint8Array>,
    write(data) {
      // After its end nobody reads it: its data say so.
      return !socket.writable || socket.write(data) ? undefined : drained(socket)
    },
    close: () => void socket.destroy(),
  }
}

/** Everything from one to the other, both ways. Resolves when one of them has ended; then both have. Never rejects. */
export async function bridge(a: ByteStream, b: ByteStream): Promise<void> {
  const pass = async (from: ByteStream, to: ByteStream) => {
    try {
      for await (const part of from.data) await to.write(part)
    } catch {
      // One that broke is one that ended: whoever speaks over it notices.
    } finally {
      a.close()
      b.close()
    }
  }
  await Promise.all([pass(a, b), pass(b, a)])
}
