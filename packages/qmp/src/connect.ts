import { connect as connectSocket, type Socket } from 'node:net'
import { QmpError, messageOf } from './errors.ts'
import { bounded } from './wait.ts'

/** Linux `sockaddr_un.sun_path` holds 108 bytes with its closing zero. */
const MAX_PATH_BYTES = 107
/** What a socket answers that is about to exist: not bound yet, bound but not listening, backlog full. */
const RETRY = new Set(['ENOENT', 'ECONNREFUSED', 'EAGAIN'])
const MIN_SLEEP_MS = 1
const MAX_SLEEP_MS = 20

export type SocketOptions = {
  /** Path of the UNIX socket. It need not exist yet. */
  path: string
  /** Deadline until which a socket that is missing or not listening is tried again. */
  timeout_ms: number
  signal?: AbortSignal | undefined
  /** Settles when the process that should listen is gone: no use in waiting longer. */
  gone?: Promise<unknown> | undefined
}

/**
 * Connects to a UNIX socket that may not exist yet: tries at once, then in steps of a twentieth of the time
 * passed (1 to 20 ms), since this wait lies on the path of every VM start: at most 5 % of it is wasted.
 * @throws QmpError `connect-failed`, `aborted`
 */
export function connectUnix(options: SocketOptions): Promise<Socket> {
  const { path } = options
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    const message = `cannot connect to ${path}: a socket path may be at most ${MAX_PATH_BYTES} bytes long`
    return Promise.reject(new QmpError('connect-failed', message))
  }
  let last: unknown
  const why = (): string => (last === undefined ? '' : ` (${messageOf(last)})`)
  return bounded<Socket>(
    (resolve, reject) => {
      let socket: Socket | undefined
      let timer: NodeJS.Timeout | undefined
      const start_ms = performance.now()
      let over = false
      const attempt = (): void => {
        const trying = connectSocket({ path })
        socket = trying
        trying.once('connect', () => {
          socket = undefined
          trying.removeAllListeners('error')
          resolve(trying)
        })
        trying.once('error', (error: NodeJS.ErrnoException) => {
          last = error
          if (over) return
          if (!RETRY.has(error.code ?? '')) {
            reject(new QmpError('connect-failed', `cannot connect to ${path}${why()}`, { cause: error }))
            return
          }
          const passed_ms = performance.now() - start_ms
          timer = setTimeout(attempt, Math.min(Math.max(passed_ms / 20, MIN_SLEEP_MS), MAX_SLEEP_MS))
        })
      }
      const onGone = (cause?: unknown): void =>
        reject(
          new QmpError('connect-failed', `the process that should listen on ${path} is gone`, {
            cause: cause instanceof Error ? cause : undefined,
          }),
        )
      options.gone?.then(() => onGone(), onGone)
      attempt()
      return () => {
        over = true
        clearTimeout(timer)
        socket?.destroy()
      }
    },
    {
      timeout_ms: options.timeout_ms,
      signal: options.signal,
      onTimeout: () =>
        new QmpError('connect-failed', `nothing listened on ${path} within ${options.timeout_ms} ms${why()}`, {
          cause: last,
        }),
      onAbort: () => new QmpError('aborted', `connecting to ${path} was aborted`),
    },
  )
}
