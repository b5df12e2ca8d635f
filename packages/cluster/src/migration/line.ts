/** The source's way to the target: one stream after another, and what was heard on them of its end. */
import type { Fault, WadahError } from '@wadah/api/fault'
import type { ArrivalState, MoveMessage } from '@wadah/ports/migration'
import { sleep, systemClock } from '@wadah/store/clock'
import { ClockEstimate } from './clock.ts'
import { MOVE_PROTOCOL, type MessageLink } from './link.ts'
import { type Of, PeerAbort, Talk } from './talk.ts'

export type LinePorts = {
  link: MessageLink
  wall_ms: () => number
  /** A new stream to the target's daemon after a break; undefined when it can't be reached now. */
  relink(signal: AbortSignal): Promise<MessageLink | undefined>
}

/** How long an answer may take that the target need not wait for anything to give. */
export const ANSWER_MS = 60_000
/** How often the target is looked for after a break, and for how long. */
const RELINK_MS = [50, 200, 500, 1_000, 2_000] as const
export const RESOLVE_MS = 600_000
export const SILENT_MS = 20_000
/** After which what was not answered is asked again. */
export const ASK_AGAIN_MS = 10_000
const TELL_MS = 600_000

export class Line {
  readonly clock = new ClockEstimate()
  readonly #of: { job: string; vm: string }
  readonly #ports: LinePorts
  #talk: Talk
  /** The target has said that the guest is placed there. */
  isCommitted = false
  /** It was cut, and is there again: that of the QEMUs may have been too. */
  wasCut = false
  /** Post-copy: what the target said of its QEMU, which ended too early. */
  lostThere: string | undefined

  constructor(of: { job: string; vm: string }, ports: LinePorts) {
    this.#of = of
    this.#ports = ports
    this.#talk = new Talk(ports.link, ports.wall_ms, this.clock)
  }

  /** Aborts when the stream of now is lost; `ask` makes another. */
  get lost(): AbortSignal {
    return this.#talk.lost
  }

  /** This signal, or the loss of the stream. */
  orLost(signal: AbortSignal): AbortSignal {
    return AbortSignal.any([signal, this.#talk.lost])
  }

  beat(): void {
    this.#talk.beat()
  }

  send(message: MoveMessage): void {
    this.#talk.send(message)
  }

  /** As that of `Talk`. */
  next<T extends MoveMessage['type']>(types: readonly T[], timeout_ms: number, signal: AbortSignal): Promise<Of<T>> {
    return this.#talk.next(types, timeout_ms, signal)
  }

  close(): void {
    this.#talk.close()
  }

  /** Another stream in place of the lost one, if the target can be reached now. */
  async #relink(signal: AbortSignal): Promise<boolean> {
    const link = await this.#ports.relink(signal).catch(() => undefined)
    if (!link) return false
    this.wasCut ||= this.#talk.isCut
    this.#talk = new Talk(link, this.#ports.wall_ms, this.clock)
    this.#talk.beat()
    return true
  }

  /** The target's own word, over a new stream where this one is lost. */
  async ask(signal: AbortSignal): Promise<Of<'resumed'>> {
    const { job, vm } = this.#of
    let asked: Talk | undefined
    for (let i = 0; ; i++) {
      signal.throwIfAborted()
      if (this.#talk.lost.aborted) {
        if (!(await this.#relink(signal))) {
          await sleep(systemClock, RELINK_MS[Math.min(i, RELINK_MS.length - 1)] ?? 1_000, signal)
          if (i * 2_000 > RESOLVE_MS) return { type: 'resumed', job, state: 'cannot-tell' }
          continue
        }
      }
      if (asked !== this.#talk) this.#talk.send({ type: 'resume', version: MOVE_PROTOCOL, job, vm })
      asked = this.#talk
      try {
        const said = await this.#talk.next(['resumed'], ANSWER_MS, signal)
        if (said.state === 'committed') this.isCommitted = true
        if (said.lost) this.lostThere ??= 'its QEMU on its new host ended before all of it had come'
        return said
      } catch (error) {
        // Its answer still comes.
        if (this.isLoss(error)) continue
        if (error instanceof PeerAbort) return { type: 'resumed', job, state: error.undone ? 'undone' : 'cannot-tell' }
        asked = undefined
        signal.throwIfAborted()
      }
    }
  }

  /** Whether this is the target's word that its QEMU ended too early; it is kept. */
  isLoss(error: unknown): boolean {
    if (!(error instanceof PeerAbort) || error.fault.code !== 'memory_lost') return false
    this.lostThere ??= error.fault.detail
    return true
  }

  /** Until the target has said that it has no QEMU of it any more. */
  async endThere(why: Fault, signal: AbortSignal): Promise<void> {
    for (;;) {
      const { state } = await this.ask(signal)
      if (isOverThere(state)) return
      this.#talk.send({ type: 'abort', job: this.#of.job, fault: why })
      // Its word, or the end of the stream: then it is asked over another one.
      const limit = this.orLost(signal)
      const answer = await this.#talk.next([], ANSWER_MS, limit).catch((error: unknown) => error)
      if (answer instanceof PeerAbort && answer.undone) return
      await sleep(systemClock, 100, signal)
    }
  }

  /** The target has a guest that waits for ever for what is lost: until it has said that it ended that, this is not over. */
  async tellLost(lost: WadahError): Promise<void> {
    const { job } = this.#of
    const never = new AbortController().signal
    for (const end = performance.now() + TELL_MS; performance.now() < end; await sleep(systemClock, 1_000, never)) {
      if (this.#talk.lost.aborted) {
        if (!(await this.#relink(AbortSignal.timeout(SILENT_MS)))) continue
        this.#talk.send({ type: 'resume', version: MOVE_PROTOCOL, job, vm: this.#of.vm })
        const said = await this.#talk.next(['resumed'], ANSWER_MS, this.#talk.lost).catch(() => undefined)
        if (said && (said.lost || !['running', 'committed'].includes(said.state))) return
      }
      this.#talk.send({ type: 'abort', job, fault: lost.fault })
      const answer = await this.#talk.next([], ANSWER_MS, this.#talk.lost).catch((error: unknown) => error)
      if (answer instanceof PeerAbort) return
    }
  }
}

/** It has no QEMU of the VM, or none that this move brought. */
export const isOverThere = (state: ArrivalState): boolean => state === 'undone' || state === 'unknown'
