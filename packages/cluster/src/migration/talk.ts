/** One side's view of the stream: waits for messages with deadlines, answers heartbeats, measures the clock. */
import { WadahError, fail } from '@wadah/api/fault'
import type { MoveMessage } from '@wadah/ports/migration'
import { ClockEstimate } from './clock.ts'
import type { MessageLink } from './link.ts'

type Type = MoveMessage['type']
export type Of<T extends Type> = Extract<MoveMessage, { type: T }>

/** As long as a timer can be. */
export const LONGEST_MS = 2 ** 31 - 1
const HEARTBEAT_MS = 1_000
/** At first some at once: a short move has no time for more. */
const BURST = 5
const BURST_MS = 10
/** Beats in a row without a word of the other side: a cut line tells nobody. Counted in beats, so that a machine that slept loses nothing. */
export const SILENT_BEATS = 20

export class Talk {
  readonly clock: ClockEstimate
  readonly link: MessageLink
  readonly #wall_ms: () => number
  readonly #waiting: MoveMessage[] = []
  readonly #readers = new Set<() => void>()
  readonly #lost = new AbortController()
  #beat = 0
  #unheard = 0
  #timer: NodeJS.Timeout | undefined
  /** For what nobody waits for: progress. */
  onProgress: ((m: Of<'progress'>) => void) | undefined

  constructor(link: MessageLink, wall_ms: () => number, clock = new ClockEstimate()) {
    this.link = link
    this.clock = clock
    this.#wall_ms = wall_ms
    link.listen((m) => this.#receive(m))
    void link.closed.then((why) => {
      clearTimeout(this.#timer)
      this.#lost.abort(fail('unreachable', `The stream to the other daemon broke: ${why}.`))
      for (const read of [...this.#readers]) read()
    })
  }

  /** Aborts, with the fault, when the stream is lost. */
  get lost(): AbortSignal {
    return this.#lost.signal
  }

  /** It was lost for want of any word: the line may have been cut. */
  get isCut(): boolean {
    return this.#unheard > SILENT_BEATS
  }

  #receive(m: MoveMessage): void {
    this.#unheard = 0
    if (m.type === 'heartbeat') {
      const t2_ms = this.#wall_ms()
      this.link.send({ type: 'heartbeat-answer', n: m.n, t1_ms: m.t1_ms, t2_ms, t3_ms: this.#wall_ms() })
      return
    }
    if (m.type === 'heartbeat-answer') {
      const { t1_ms, t2_ms, t3_ms } = m
      this.clock.add({ t1_ms, t2_ms, t3_ms, t4_ms: this.#wall_ms() })
      return
    }
    if (m.type === 'progress') {
      this.onProgress?.(m)
      return
    }
    this.#waiting.push(m)
    for (const read of [...this.#readers]) read()
  }

  /** Measures the clock, some times at once and then once a second, until the stream ends or `rest` is called. */
  beat(): void {
    clearTimeout(this.#timer)
    let burst = 0
    const once = () => {
      if (this.#lost.signal.aborted) return
      this.#unheard += 1
      if (this.isCut) return this.link.drop(`nothing was heard for ${SILENT_BEATS} s`)
      this.link.send({ type: 'heartbeat', n: ++this.#beat, t1_ms: this.#wall_ms() })
      burst += 1
      this.#timer = setTimeout(once, burst < BURST ? BURST_MS : HEARTBEAT_MS)
    }
    once()
  }
  rest(): void {
    clearTimeout(this.#timer)
  }

  /**
   * The next message of one of these types; others stay for who wants them. An `abort` that is not waited for is thrown as what it says.
   * @throws WadahError `timeout`, `unreachable` (the stream is lost), the peer's fault, or the signal's reason
   */
  async next<T extends Type>(types: readonly T[], timeout_ms: number, signal: AbortSignal): Promise<Of<T>> {
    const { promise, resolve, reject } = Promise.withResolvers<Of<T>>()
    const read = () => {
      const at = this.#waiting.findIndex((m) => (types as readonly string[]).includes(m.type) || m.type === 'abort')
      const [m] = at < 0 ? [] : this.#waiting.splice(at, 1)
      if (m && (types as readonly string[]).includes(m.type)) resolve(m as Of<T>)
      else if (m?.type === 'abort') reject(new PeerAbort(m))
      else if (this.#lost.signal.aborted) reject(this.#lost.signal.reason as Error)
    }
    const stop = () => reject(signal.reason as Error)
    const timer = setTimeout(
      () =>
        reject(fail('timeout', `The other host did not say "${types.join('" or "')}" within ${timeout_ms / 1000} s.`)),
      timeout_ms,
    )
    signal.addEventListener('abort', stop, { once: true })
    this.#readers.add(read)
    try {
      signal.throwIfAborted()
      read()
      return await promise
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      this.#readers.delete(read)
    }
  }

  send(message: MoveMessage): void {
    this.link.send(message)
  }

  close(): void {
    this.rest()
    this.link.close()
  }
}

/** The other side gives up, with its reason. */
export class PeerAbort extends WadahError {
  readonly undone: boolean
  constructor(message: Of<'abort'>) {
    super(message.fault)
    this.undone = message.undone === true
  }
}
