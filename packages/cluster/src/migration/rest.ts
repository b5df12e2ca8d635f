/** Post-copy, after the guest runs over there: the rest of its RAM goes after it, and either end may be lost meanwhile. */
import { fail, toFault } from '@wadah/api/fault'
import type { LeavingVm, Migration } from '@wadah/ports/migration'
import { sleep, systemClock } from '@wadah/store/clock'
import { ANSWER_MS, ASK_AGAIN_MS, isOverThere, type Line } from './line.ts'
import { LONGEST_MS, PeerAbort } from './talk.ts'

export type RestPorts = {
  migration: Pick<Migration, 'ask'>
  log: (line: string) => void
  /** For the report of the move. */
  note: (line: string) => void
}

/** The target looks for so long whether all has come (5 s), and ends its QEMU if not. */
const WHOLE_MS = 30_000

export class Rest {
  readonly #of: { job: string; vm: string }
  readonly #line: Line
  readonly #ports: RestPorts

  constructor(of: { job: string; vm: string }, line: Line, ports: RestPorts) {
    this.#of = of
    this.#line = line
    this.#ports = ports
  }

  /**
   * Until all has gone over; a connection that broke is made anew as often as needed.
   * @throws WadahError when this host's QEMU ended, or the other one's, before; the signal's reason
   */
  async follow(leaving: LeavingVm, signal: AbortSignal): Promise<void> {
    while ((await this.#followOrLoss(leaving, signal)) === 'paused') {
      this.#ports.note('post-copy broke and goes on over a new connection')
      try {
        if (this.#line.lost.aborted) await this.#askOfLoss(signal)
        else await this.#throwIfLost()
        await leaving.recover((tls) => {
          this.#line.send({ type: 'recover', job: this.#of.job, ...(tls ? { tls } : {}) })
          return this.#line.next(['recover-at'], ANSWER_MS, this.#line.orLost(signal))
        }, signal)
      } catch (error) {
        signal.throwIfAborted()
        this.#line.isLoss(error)
        const { code, detail } = toFault(error)
        if (code === 'memory_lost') throw error
        this.#ports.log(`post-copy could not go on yet: ${detail}`)
        await sleep(systemClock, 1_000, signal)
      }
    }
  }

  /** A source's QEMU need not notice that the other one has ended: its new host says so. Rejects with that as it does with QEMU's own end. */
  async #followOrLoss(leaving: LeavingVm, signal: AbortSignal): Promise<'completed' | 'paused'> {
    const over = new AbortController()
    const limit = AbortSignal.any([signal, over.signal])
    const loss = this.#hearOfLoss(leaving, limit)
    loss.catch(() => {})
    try {
      return await Promise.race([leaving.follow(limit), loss])
    } finally {
      over.abort(new Error('over'))
      // It may be about to change the stream.
      await loss.catch(() => {})
    }
  }

  /** Until the signal ends it. @throws WadahError `memory_lost` */
  async #hearOfLoss(leaving: LeavingVm, signal: AbortSignal): Promise<never> {
    for (;;) {
      await this.#throwIfLost()
      if (this.#line.wasCut) {
        this.#line.wasCut = false
        await leaving.breakIfStuck(signal)
      }
      try {
        await this.#line.next([], LONGEST_MS, signal)
      } catch (error) {
        signal.throwIfAborted()
        if (this.#line.isLoss(error) || error instanceof PeerAbort) continue
      }
      await this.#askOfLoss(signal)
      if (this.#line.lost.aborted) await sleep(systemClock, ASK_AGAIN_MS, signal)
    }
  }

  /**
   * This host's QEMU is gone, and it is not known here whether it was through: the target looks, and says so where it was not.
   * @throws WadahError `memory_lost`
   */
  async hadAllGone(signal: AbortSignal): Promise<void> {
    const limit = this.#line.orLost(signal)
    this.#line.send({ type: 'done', job: this.#of.job })
    if (this.#line.lostThere === undefined)
      await this.#line.next([], WHOLE_MS, limit).catch((error: unknown) => this.#line.isLoss(error))
    signal.throwIfAborted()
    if (this.#line.lostThere !== undefined) throw fail('memory_lost', this.#line.lostThere)
  }

  /** Whether this host's QEMU is through. */
  async hasAllGone(): Promise<boolean> {
    const is = await this.#ports.migration.ask(this.#of.vm)
    return is.is === 'there' && is.migration === 'completed'
  }

  /** @throws WadahError `memory_lost` when there is no QEMU over there that could still take the rest */
  async #askOfLoss(signal: AbortSignal): Promise<void> {
    const { state } = await this.#line.ask(signal)
    if (isOverThere(state)) this.#line.lostThere ??= 'its new host has no QEMU of it any more'
    await this.#throwIfLost()
  }

  /** Where all had gone over before, its end over there is no end of the move. */
  async #throwIfLost(): Promise<void> {
    if (this.#line.lostThere !== undefined && !(await this.hasAllGone()))
      throw fail('memory_lost', this.#line.lostThere)
  }
}
