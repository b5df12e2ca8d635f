import type { ByteStream } from '@wadah/ports/volumes'

/**
 * The same stream; `stands` is called once where nothing came for so long, from when it is begun to be read: a peer that lives and sends
 * nothing would hold one of the few turns that programs have.
 */
export function watched(stream: ByteStream, still_ms: number, stands: () => void): ByteStream {
  async function* data(): AsyncGenerator<Uint8Array> {
    const timer = setTimeout(stands, still_ms)
    try {
      for await (const part of stream.data) {
        timer.refresh()
        yield part
      }
    } finally {
      clearTimeout(timer)
    }
  }
  return { data: data(), write: (part) => stream.write(part), close: () => stream.close() }
}
