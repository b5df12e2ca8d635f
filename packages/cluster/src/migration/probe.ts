/**
 * Looks at a guest from outside while it moves: a TCP connection begun every few milliseconds. One that is refused is an answer too.
 * What counts is the longest time without any answer.
 */
import { connect } from 'node:net'
import type { Gap } from '@wadah/api/schema/migration'

export type Part = 'before' | 'during' | 'after'

export const EVERY_MS = 4
const PATIENCE_MS = 3_000
/** More than are under way when nobody answers. */
const UNDER_WAY_MOST = 1_000
/** For the last answers. */
const LAST_MS = 100

/** How many answers took how long, to the tenth of a millisecond: a median of any number of them in the same memory. */
class Took {
  readonly #tenths = new Uint32Array(PATIENCE_MS * 10 + 1)
  #count = 0

  add(ms: number): void {
    const at = Math.min(Math.max(0, Math.round(ms * 10)), this.#tenths.length - 1)
    this.#tenths[at] = (this.#tenths[at] ?? 0) + 1
    this.#count += 1
  }

  get median_ms(): number | undefined {
    let left = Math.floor(this.#count / 2) + 1
    const at = this.#tenths.findIndex((n) => (left -= n) <= 0)
    return this.#count === 0 ? undefined : at / 10
  }
}

/** What came of the questions, in the same memory however many there are: a move may last for hours. No clock of its own. */
export class Seen {
  /** Of the move, now. */
  part: Part = 'before'
  sent = 0
  came = 0
  /** It gave an answer before the move. */
  spoke = false
  last_ms: number | undefined
  longest_ms = 0
  readonly took = { before: new Took(), during: new Took(), after: new Took() }

  begins(at_ms: number): void {
    this.part = 'during'
    this.longest_ms = 0
    if (this.last_ms !== undefined) this.last_ms = at_ms
  }

  asked(): Part {
    this.sent += 1
    return this.part
  }

  /** In the order in which they come. */
  answered(asked: Part, took_ms: number, at_ms: number): void {
    this.came += 1
    if (this.part === 'before') this.spoke = true
    if (this.last_ms !== undefined) this.longest_ms = Math.max(this.longest_ms, at_ms - this.last_ms)
    this.last_ms = at_ms
    this.took[asked].add(took_ms)
  }
}

/** Pure. Undefined when the guest gave no answer at all before the move: then nothing can be said. */
export function gapOf(seen: Seen, address: string, end_ms: number): Gap | undefined {
  if (!seen.spoke || seen.last_ms === undefined) return undefined
  const { before, during, after } = seen.took
  const [before_ms, during_ms, after_ms] = [before.median_ms, during.median_ms, after.median_ms]
  return {
    address,
    sent: seen.sent,
    lost: seen.sent - seen.came,
    // Nothing came any more: the gap has lasted until the end.
    longest_gap_ms: tenth(Math.max(seen.longest_ms, end_ms - seen.last_ms)),
    ...(before_ms === undefined ? {} : { before_ms }),
    ...(during_ms === undefined ? {} : { during_ms }),
    ...(after_ms === undefined ? {} : { after_ms }),
  }
}

const tenth = (ms: number) => Math.round(ms * 10) / 10

/** Says once whether there was an answer. */
export type Ask = (address: string, port: number, over: (answered: boolean) => void) => void

export function askTcp(
  host: string,
  port: number,
  over: (answered: boolean) => void,
  connectTo: typeof connect = connect,
): void {
  const socket = connectTo({ host, port })
  let isOver = false
  const end = (answered: boolean) => {
    if (isOver) return
    isOver = true
    over(answered)
    socket.destroy()
  }
  socket.setTimeout(PATIENCE_MS, () => end(false))
  socket.once('connect', () => end(true))
  // Refused by the guest itself: it lives. Unreachable is the word of somebody else.
  socket.on('error', (error: NodeJS.ErrnoException) =>
    end(error.code === 'ECONNREFUSED' || error.code === 'ECONNRESET'),
  )
}

export class Probe {
  readonly #address: string
  readonly #port: number
  readonly #now_ms: () => number
  readonly #ask: Ask
  readonly #seen = new Seen()
  readonly #timer: NodeJS.Timeout
  #under_way = 0

  /** @param now_ms of a clock that only goes forward */
  constructor(address: string, port: number, now_ms: () => number, ask: Ask = askTcp) {
    this.#address = address
    this.#port = port
    this.#now_ms = now_ms
    this.#ask = ask
    this.#timer = setInterval(() => this.#question(), EVERY_MS)
    this.#timer.unref()
  }

  #question(): void {
    if (this.#under_way >= UNDER_WAY_MOST) return
    const asked_ms = this.#now_ms()
    const part = this.#seen.asked()
    this.#under_way += 1
    this.#ask(this.#address, this.#port, (came) => {
      this.#under_way -= 1
      const now = this.#now_ms()
      if (came) this.#seen.answered(part, now - asked_ms, now)
    })
  }

  /** From now on it moves: what was missing before is no part of it. */
  begins(): void {
    this.#seen.begins(this.#now_ms())
  }

  /** Asks no more. */
  stop(): void {
    clearInterval(this.#timer)
  }

  /** It has moved: ends it, with a moment for the last answers. */
  async end(): Promise<Gap | undefined> {
    this.#seen.part = 'after'
    await new Promise((resolve) => setTimeout(resolve, LAST_MS))
    this.stop()
    return gapOf(this.#seen, this.#address, this.#now_ms())
  }
}
