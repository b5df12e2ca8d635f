/** One HTTP/1.1 exchange over an open connection. */
import http from 'node:http'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { fail } from '@wadah/api/fault'

export type HttpRequest = {
  method: string
  path: string
  host: string
  headers: Record<string, string>
  body?: string | Readable | undefined
  signal: AbortSignal
  /** Until the head of the answer; streams have no further deadline. */
  timeout_ms: number
}

export async function exchange(socket: Socket, request: HttpRequest): Promise<http.IncomingMessage> {
  return await new Promise((resolve, reject) => {
    const deadline = setTimeout(() => {
      req.destroy(fail('timeout', `No answer within ${Math.round(request.timeout_ms / 1000)} s`, { effect: 'unknown' }))
    }, request.timeout_ms)
    const req = http.request({
      createConnection: () => socket,
      method: request.method,
      path: request.path,
      headers: { host: request.host, ...request.headers },
    })
    const abort = () => req.destroy(request.signal.reason)
    if (request.signal.aborted) abort()
    request.signal.addEventListener('abort', abort, { once: true })
    const over = () => {
      clearTimeout(deadline)
      request.signal.removeEventListener('abort', abort)
    }
    req.once('response', (response) => {
      clearTimeout(deadline)
      // An upload may be refused before it was read: the answer counts, not the broken pipe.
      req.removeAllListeners('error').on('error', () => {})
      response.once('close', over)
      resolve(response)
    })
    req.once('error', (error: NodeJS.ErrnoException) => {
      over()
      if (error.code === 'ECONNRESET' || error.code === 'EPIPE') {
        reject(
          fail('unreachable', 'The daemon closed the connection before it answered', {
            effect: request.method === 'GET' ? 'none' : 'unknown',
            cause: error,
          }),
        )
      } else reject(error)
    })
    // With `end(text)` Node adds Content-Length by itself.
    if (request.body === undefined || typeof request.body === 'string') req.end(request.body)
    else {
      request.body.once('error', (error) => req.destroy(error))
      request.body.pipe(req)
    }
  })
}

/** The whole body as text; refuses one beyond `limit` bytes. */
export async function readText(response: AsyncIterable<Uint8Array>, limit = 64 * 2 ** 20): Promise<string> {
  const parts: Uint8Array[] = []
  let size = 0
  for await (const part of response) {
    size += part.length
    if (size > limit) throw fail('too_large', `The answer is larger than ${limit} bytes`)
    parts.push(part)
  }
  return Buffer.concat(parts).toString('utf8')
}
