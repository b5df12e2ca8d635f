/** The stream between the two daemons of a move, as the state machines see it: typed messages in order, and one end. */
import type { Duplex } from 'node:stream'
import { type WadahError, fail } from '@wadah/api/fault'
import type { MoveMessage } from '@wadah/ports/migration'

/** A daemon tells the version it speaks with its first message; another major one is refused. */
export const MOVE_PROTOCOL = 1

const TYPES: ReadonlySet<string> = new Set<MoveMessage['type']>([
  'offer',
  'wait',
  'accept',
  'refuse',
  'progress',
  'heartbeat',
  'heartbeat-answer',
  'sealed',
  'loaded',
  'go',
  'running',
  'committed',
  'done',
  'abort',
  'recover',
  'recover-at',
  'resume',
  'resumed',
  'bring',
  'ready',
  'bringing',
  'brought',
])
/** An offer with a boot record of hundreds of devices has some tens of KiB. */
const MAX_LINE = 4 * 1024 * 1024

export interface MessageLink {
  /** Handed to the network at once. What can't be sent any more is lost: `closed` tells. */
  send(message: MoveMessage): void
  /** Calls `listener` for each message from now on; those that came before anybody listened come first. One listener. */
  listen(listener: (message: MoveMessage) => void): void
  /** Settles, never rejects, with why it ended. */
  readonly closed: Promise<string>
  /** What was sent before still goes out. */
  close(): void
  /** Nobody is there any more: it ends at once. */
  drop(why: string): void
}

/**
 * One line of the peer. Pure. What is known is passed on; of a type that is not known, undefined.
 * @throws WadahError `malformed`
 */
export function parseMessage(line: string): MoveMessage | undefined {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw fail('malformed', 'The other daemon sent what is no JSON on the stream of a move.')
  }
  const type = (value as { type?: unknown } | null)?.type
  if (typeof type !== 'string')
    throw fail('malformed', 'The other daemon sent a message without a type on the stream of a move.')
  return TYPES.has(type) ? (value as MoveMessage) : undefined
}

/** Over a byte stream that is authenticated already (mTLS between daemons): one JSON object a line. */
export function streamLink(stream: Duplex): MessageLink {
  const { promise: closed, resolve } = Promise.withResolvers<string>()
  const early: MoveMessage[] = []
  let listener: ((message: MoveMessage) => void) | undefined
  let rest = ''
  const end = (why: string) => {
    resolve(why)
    stream.destroy()
  }
  // Not the stream's own: sockets of an HTTP server refuse to be given an encoding.
  const decoder = new TextDecoder()
  stream.on('data', (part: Uint8Array) => {
    const lines = (rest + decoder.decode(part, { stream: true })).split('\n')
    rest = lines.pop() ?? ''
    if (rest.length > MAX_LINE) return end('the other daemon sent a line without an end')
    try {
      for (const line of lines) {
        const message = line === '' ? undefined : parseMessage(line)
        if (!message) continue
        if (listener) listener(message)
        else early.push(message)
      }
    } catch (error) {
      end((error as WadahError).message)
    }
  })
  stream.on('error', (error) => end(`the stream failed: ${error.message}`))
  stream.on('end', () => end('the other daemon ended the stream'))
  stream.on('close', () => end('the stream ended'))
  return {
    send: (message) => void (stream.writable && stream.write(`${JSON.stringify(message)}\n`)),
    listen(on) {
      listener = on
      for (const message of early.splice(0)) on(message)
    },
    closed,
    drop: end,
    close() {
      resolve('closed on this side')
      // What was said last is still to arrive.
      stream.end(() => stream.destroy())
    },
  }
}

/** A stream that has ended before it began: of a move whose source has not come back yet. */
export function endedLink(why: string): MessageLink {
  return { send: () => {}, listen: () => {}, closed: Promise.resolve(why), close: () => {}, drop: () => {} }
}
