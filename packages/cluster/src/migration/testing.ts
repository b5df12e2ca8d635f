/** Streams for tests: two ends in memory, with a switch between them. */
import type { MoveMessage } from '@wadah/ports/migration'
import type { MessageLink } from './link.ts'

export type Wire = {
  a: MessageLink
  b: MessageLink
  /** Both ends see the end; what is under way is lost. */
  cut(): void
  /** Each message takes so long from now on; they stay in order. */
  delay(ms: number): void
  /** Decides about each message; false: it is lost. */
  pass(rule: (message: MoveMessage, from: 'a' | 'b') => boolean): void
  /** All that was sent, in order. */
  readonly said: { from: 'a' | 'b'; message: MoveMessage }[]
}

export function wire(): Wire {
  let delay_ms = 0
  let rule: (message: MoveMessage, from: 'a' | 'b') => boolean = () => true
  let open = true
  const said: Wire['said'] = []
  const { promise: closed, resolve } = Promise.withResolvers<string>()
  const cut = (why = 'the test cut it') => {
    open = false
    resolve(why)
  }
  const listeners: { a?: (m: MoveMessage) => void; b?: (m: MoveMessage) => void } = {}
  const early: { a: MoveMessage[]; b: MoveMessage[] } = { a: [], b: [] }
  const end = (from: 'a' | 'b'): MessageLink => {
    const to = from === 'a' ? 'b' : 'a'
    return {
      closed,
      drop: (why) => cut(why),
      close: () => {
        // After what is under way.
        if (delay_ms > 0) setTimeout(() => cut('closed'), delay_ms)
        else setImmediate(() => cut('closed'))
      },
      listen(listener) {
        listeners[from] = listener
        for (const m of early[from].splice(0)) listener(m)
      },
      send(message) {
        if (!open) return
        // As on a network: what comes out is a copy, without what JSON can't hold.
        const copy = JSON.parse(JSON.stringify(message)) as MoveMessage
        said.push({ from, message: copy })
        if (!rule(copy, from)) return
        const arrive = () => {
          if (!open) return
          const listener = listeners[to]
          if (listener) listener(copy)
          else early[to].push(copy)
        }
        if (delay_ms > 0) setTimeout(arrive, delay_ms)
        else setImmediate(arrive)
      },
    }
  }
  return {
    a: end('a'),
    b: end('b'),
    cut: () => cut(),
    delay: (ms) => (delay_ms = ms),
    pass: (r) => (rule = r),
    said,
  }
}
