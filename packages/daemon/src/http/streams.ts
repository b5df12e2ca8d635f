/** Bodies that are passed on piece by piece. */
import type { IncomingMessage } from 'node:http'
import { fail } from '@wadah/api/fault'

/** A client that sends nothing for so long has gone. */
const IDLE_MS = 60_000

/**
 * The body of a request, read no faster than it is taken.
 * @throws WadahError `too_large` beyond `limit_bytes`, `timeout` after a minute without data, `malformed` when it breaks off
 */
export async function* limited(
  body: IncomingMessage,
  limit_bytes: number,
  idle_ms = IDLE_MS,
): AsyncGenerator<Uint8Array> {
  let bytes = 0
  let silent = false
  const idle = setTimeout(() => {
    silent = true
    body.destroy()
  }, idle_ms)
  idle.unref()
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > limit_bytes)
        throw fail('too_large', `The body has more than ${limit_bytes} bytes, which is the most taken here.`)
      yield chunk
      idle.refresh()
    }
  } catch (error) {
    if (silent)
      throw fail('timeout', `Nothing more of the body came for ${idle_ms / 1000} s.`, {
        effect: 'unknown',
        cause: error,
      })
    if (isBroken(error))
      throw fail('malformed', 'The body broke off before its end.', { effect: 'unknown', cause: error })
    throw error
  } finally {
    clearTimeout(idle)
  }
}

const isBroken = (error: unknown) =>
  ['ECONNRESET', 'ERR_STREAM_PREMATURE_CLOSE', 'ABORT_ERR'].includes((error as { code?: string } | null)?.code ?? '')

/** Reads the first piece at once, so that what fails at the start is an error answer and not a broken-off body. */
export async function primed(source: AsyncIterable<Uint8Array>): Promise<AsyncIterable<Uint8Array>> {
  const pieces = source[Symbol.asyncIterator]()
  let next = await pieces.next()
  return {
    async *[Symbol.asyncIterator]() {
      try {
        while (!next.done) {
          yield next.value
          next = await pieces.next()
        }
      } finally {
        // Also when the client went away in the middle: the other end must learn of it.
        await pieces.return?.()
      }
    },
  }
}
