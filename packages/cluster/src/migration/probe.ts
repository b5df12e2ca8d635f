/**
 * Looks at a guest from outside while it moves: a TCP connection begun every few milliseconds. One that is refused is an answer too.
 * What counts is the longest time without any answer.
 */
import { connect } from 'node:net'
import type { Gap } from '@wadah/api/schema/migration'

export type Answer = { asked_ms: number; answered_ms: number | undefined }
export type ProbeMarks = { begin_ms: number; end_ms: number }

const EVERY_MS = 4
const PATIENCE_MS = 3_000
/** Answers beyond these add nothing. */
const KEPT = 50_000
const UNDER_WAY_MOST = 1_000

/** Pure. Undefined when the guest gave no answer at all before the move: then nothing can be said. */
export function gapOf(answers: readonly Answer[], address: string, marks: ProbeMarks): Gap | undefined {
  const came = answers.flatMap((a) =>
    a.answered_ms === undefined ? [] : [a as { asked_ms: number; answered_ms: number }],
  )
  const times = came.map((a) => a.answered_ms).toSorted((a, b) => a - b)
  if (!times.some((t) => t <= marks.begin_ms)) return undefined
  let longest = 0
  for (let i = 1; i < times.length; i += 1) longest = Math.max(longest, (times[i] as number) - (times[i - 1] as number))
  // Nothing came any more: the gap has lasted until the end.
  longest = Math.max(longest, marks.end_ms - (times.at(-1) as number))
  const median = (from: number, to: number) => {
    const took = came
      .filter((a) => a.asked_ms >= from && a.asked_ms < to)
      .map((a) => a.answered_ms - a.asked_ms)
      .toSorted((a, b) => a - b)
    return took.length === 0 ? undefined : tenth(took[Math.floor(took.length / 2)] as number)
  }
  const [before, during, after] = [
    median(0, marks.begin_ms),
    median(marks.begin_ms, marks.end_ms),
    median(marks.end_ms, Number.POSITIVE_INFINITY),
  ]
  return {
    address,
    sent: answers.length,
    lost: answers.length - came.length,
    longest_gap_ms: tenth(longest),
    ...(before === undefined ? {} : { before_ms: before }),
    ...(during === undefined ? {} : { during_ms: during }),
    ...(after === undefined ? {} : { after_ms: after }),
  }
}

const tenth = (ms: number) => Math.round(ms * 10) / 10

export class Probe {
  readonly #address: string
  readonly #port: number
  readonly #now_ms: () => number
  readonly #answers: Answer[] = []
  readonly #timer: NodeJS.Timeout
  #under_way = 0

  constructor(address: string, port: number, now_ms: () => number) {
    this.#address = address
    this.#port = port
    this.#now_ms = now_ms
    this.#timer = setInterval(() => this.#ask(), EVERY_MS)
    this.#timer.unref()
  }

  #ask(): void {
    if (this.#answers.length >= KEPT || this.#under_way >= UNDER_WAY_MOST) return
    const answer: Answer = { asked_ms: this.#now_ms(), answered_ms: undefined }
    this.#answers.push(answer)
    this.#under_way += 1
    const socket = connect({ host: this.#address, port: this.#port })
    const end = (answered: boolean) => {
      if (answered) answer.answered_ms ??= this.#now_ms()
      socket.destroy()
    }
    socket.setTimeout(PATIENCE_MS, () => end(false))
    socket.once('connect', () => end(true))
    // Refused by the guest itself: it lives. Unreachable is the word of somebody else.
    socket.on('error', (error: NodeJS.ErrnoException) =>
      end(error.code === 'ECONNREFUSED' || error.code === 'ECONNRESET'),
    )
    socket.once('close', () => (this.#under_way -= 1))
  }

  /** Asks no more. */
  stop(): void {
    clearInterval(this.#timer)
  }

  /** Ends it, with a moment for the last answers. */
  async end(marks: ProbeMarks): Promise<Gap | undefined> {
    await new Promise((resolve) => setTimeout(resolve, 100))
    this.stop()
    return gapOf(this.#answers, this.#address, marks)
  }
}
