/** From `migrate` to the moment the source has let go of the guest: looks, steers, watches the ceiling. */
import { fail, toFault } from '@wadah/api/fault'
import type { CopyOrder, MoveForecast, MoveProgress, MovePhase, SwitchedOver } from '@wadah/ports/migration'
import { cutMigration } from '../cancel-migration.ts'
import type { RunningVm } from '../running-vm.ts'
import { type Outgoing, ask, seenOf } from './outgoing.ts'
import { tcpUri } from './setup.ts'
import { type Policy, type Seen, type Steering, beginSteering, steer } from './steer.ts'

const COPY_MS = 7 * 24 * 3600 * 1000
/** How often QEMU is asked how far it is, as long as the guest runs. It reckons its bandwidth anew ten times a second. */
const LOOK_MS = 100
/** When the guest is to be held by ourselves the moment counts. */
const LOOK_CLOSELY_MS = 20
/** Device state, `go` and `cont`, seen on a slow machine without hardware acceleration (docs/migration.md). */
export const FIXED_MS = 25
/**
 * When the ceiling is so near it is given up: letting the guest go on here takes so long, and so does `go` to there, which comes after QEMU is through. On
 * a machine at load 17 with 10 ms one of 42 moves stood still for 306 ms under a ceiling of 300.
 */
const RETURN_MS = 25
const returnOf = (max_stall_ms: number) => Math.min(RETURN_MS, max_stall_ms / 3)
const PATIENCE = 6
/** One that would have taken so many times its ceiling may keep it when it is tried again. */
const NEARLY_FITS = 2
/** One pass that ends as post-copy: what is left of it when it goes over. */
const NEARLY_BYTES = 16 * 2 ** 20
/** Given up where QEMU fails although nothing moves any more. */
const STUCK_MS = 120_000

type Tell = { progress(p: MoveProgress): void; phase(phase: MovePhase): void; log(line: string): void }

export class Copying {
  readonly #running: RunningVm
  readonly #out: Outgoing
  readonly #order: CopyOrder
  readonly #tell: Tell
  readonly #wall_ms: () => number
  readonly #policy: Policy
  #steering: Steering
  /**
   * One pass, and what was written meanwhile in the pause. With a limit of 0 QEMU never looks for dirty pages while the guest runs
   * (ram_save_pending: remaining < bandwidth × limit), and under TCG it must not: a page that is written in that instant may be taken
   * for clean from then on. Seen with bare QEMU 7.2 on a busy machine: 8 of 70 guests crashed after their move; none of 120 with one pass.
   */
  readonly #once: boolean
  #postcopy = false
  #foreseen: MoveForecast | undefined
  /** Called in QEMU's `pre-switchover`, while the guest stands still. */
  beforeSwitch: (() => Promise<void>) | undefined
  #continued = false

  constructor(running: RunningVm, out: Outgoing, order: CopyOrder, tell: Tell, wall_ms: () => number) {
    this.#running = running
    this.#out = out
    this.#order = order
    this.#tell = tell
    this.#wall_ms = wall_ms
    const { max_stall_ms, may_postcopy = false } = order.limits
    this.#policy = {
      max_stall_ms,
      fixed_ms: FIXED_MS,
      may_postcopy: may_postcopy && order.mode === 'auto',
      step_ms: LOOK_MS,
      patience: PATIENCE,
    }
    this.#once = running.record.accelerator === 'tcg' && order.limits.tcg_rounds !== true
    this.#steering = beginSteering(this.#policy, performance.now())
    void order.foreseen?.then((foreseen) => (this.#foreseen = foreseen)).catch(() => {})
  }

  async run(signal: AbortSignal): Promise<SwitchedOver> {
    const { mode, to, limits } = this.#order
    await this.#running.execute('migrate-set-parameters', {
      'downtime-limit': this.#once ? 0 : this.#steering.limit_ms,
    })
    const { promise: givenUp, reject: giveUp } = Promise.withResolvers<never>()
    givenUp.catch(() => {})
    // Before the command: its events may come before its answer.
    const off = this.#out.watch(() => this.#onEvent(giveUp))
    const switched = this.#out.until(() => this.#switched(), limits.deadline_ms ?? COPY_MS, signal)
    switched.catch(() => {})
    try {
      // Another migration's last word is not this one's.
      this.#out.status = 'setup'
      const begun = [this.#running.execute('migrate', { uri: tcpUri(to.address) })]
      if (mode === 'postcopy') begun.push(this.#startPostcopy())
      await Promise.all(begun)
      this.#lookOn(giveUp)
      return await Promise.race([switched, givenUp])
    } catch (error) {
      // What came to its end in the same moment has happened: whoever asked is told so, and decides.
      if (this.#out.status === 'completed') return this.#result('precopy')
      throw await this.#why(error)
    } finally {
      off()
      clearTimeout(this.#looking)
      clearTimeout(this.#ceiling)
    }
  }

  async #startPostcopy(): Promise<unknown> {
    this.#postcopy = true
    return this.#running.execute('migrate-start-postcopy')
  }

  async #goOverToPostcopy(): Promise<void> {
    this.#tell.log('it writes faster than it can be copied: going over to post-copy')
    await this.#startPostcopy()
  }

  /** The source has let go; throws when it never will. */
  #switched(): SwitchedOver | undefined {
    const { status, stop_ms, gone } = this.#out
    if (gone !== undefined) throw fail('qemu_failed', `QEMU ended: ${gone}.`, { effect: 'partial' })
    if (status === 'completed') return this.#result('precopy')
    // It says `postcopy-active` before it has stopped its guest, and once more after `pre-switchover`.
    const past = this.beforeSwitch === undefined || this.#continued
    if (status === 'postcopy-active' && stop_ms !== undefined && past) return this.#result('postcopy')
    if (status === 'failed' || status === 'cancelled') throw fail('qemu_failed', `The copying ended as ${status}.`)
    return undefined
  }

  #result(how: SwitchedOver['how']): SwitchedOver {
    const { stop_ms } = this.#out
    return { how, ...(stop_ms === undefined ? {} : { stop_ms }), released_ms: this.#wall_ms() }
  }

  #ceiling: NodeJS.Timeout | undefined
  #stopped = false
  #pausing = false
  #onEvent(giveUp: (error: Error) => void): void {
    const { stop_ms, status } = this.#out
    if (status === 'pre-switchover' && this.beforeSwitch && !this.#pausing) {
      this.#pausing = true
      const state = 'pre-switchover'
      void this.beforeSwitch()
        .then(() => {
          this.#continued = true
          return this.#running.execute('migrate-continue', { state })
        })
        .catch((error: unknown) => giveUp(error as Error))
    }
    if (stop_ms === undefined || this.#stopped) {
      if (stop_ms === undefined && this.#stopped) this.#stopped = false
      return
    }
    this.#stopped = true
    try {
      this.#tell.phase('switch')
    } catch (error) {
      return giveUp(error as Error)
    }
    // In post-copy nothing can be taken back any more, once it has begun.
    if (this.#postcopy) return
    const { max_stall_ms } = this.#order.limits
    const left = max_stall_ms - returnOf(max_stall_ms) - Math.max(0, this.#wall_ms() - stop_ms)
    this.#ceiling = setTimeout(
      () => {
        if (this.#out.status === 'completed') return
        // All it is asked before it has written the last of RAM is answered after that, with the guest standing.
        void cutMigration(this.#running).catch(() => {})
        giveUp(
          fail('does_not_converge', `The switch was not through within the ${max_stall_ms} ms that it may take.`, {
            remedy: `allow more, e.g. --max-stall-ms ${this.#wouldDo()}, or post-copy`,
            // What takes not much longer may be quicker at another try.
            retryable: (this.#foreseen?.stall_ms ?? 0) <= max_stall_ms * NEARLY_FITS,
          }),
        )
      },
      Math.max(1, left),
    )
  }

  /** A ceiling with which it may go over; no promise, for the guest writes on, and nothing is seen of what was left. */
  #wouldDo(): number {
    return Math.ceil(1.25 * Math.max(this.#order.limits.max_stall_ms * NEARLY_FITS, this.#foreseen?.stall_ms ?? 0))
  }

  #looking: NodeJS.Timeout | undefined
  #lookOn(giveUp: (error: Error) => void): void {
    let sent = { bytes: -1, at: performance.now() }
    const look = async () => {
      // Nothing is asked while the guest stands still.
      if (this.#stopped || this.#postcopy) return again()
      const info = await ask(this.#running)
      const seen = seenOf(info, performance.now())
      const bytes = info.ram?.transferred ?? -1
      if (bytes !== sent.bytes) sent = { bytes, at: performance.now() }
      else if (performance.now() - sent.at > STUCK_MS)
        throw fail('qemu_failed', `Nothing of its RAM went over for ${STUCK_MS / 1000} s.`)
      if (seen && info.ram && info.status === 'active') {
        const { ram } = info
        this.#tell.progress({
          remaining_bytes: ram.remaining,
          sent_bytes: ram.transferred,
          total_bytes: ram.total,
          dirty_bytes_per_s: ram['dirty-pages-rate'] * ram['page-size'],
          bandwidth_bytes_per_s: Math.round(seen.bandwidth_bytes_per_s),
          round: seen.round,
          downtime_limit_ms: this.#once ? 0 : this.#steering.limit_ms,
        })
        await this.#act(seen, giveUp)
      }
      again()
    }
    const { mode } = this.#order
    const closely = mode === 'hybrid' || (this.#once && this.#policy.may_postcopy)
    const every = closely ? LOOK_CLOSELY_MS : LOOK_MS
    const again = () => (this.#looking = setTimeout(() => void look().catch(failed), every))
    const failed = (error: unknown) => {
      // Its end is told by itself.
      if (this.#out.gone === undefined) giveUp(error as Error)
    }
    again()
  }

  async #act(seen: Seen, giveUp: (error: Error) => void): Promise<void> {
    const { mode, limits } = this.#order
    // The first pass is round 1; under TCG it is all there may be, and near its end it goes over.
    const nearly = this.#once && seen.remaining_bytes < Math.max(NEARLY_BYTES, seen.bandwidth_bytes_per_s * 0.2)
    if (mode === 'hybrid') {
      if (nearly || seen.round > (limits.rounds ?? 1)) await this.#startPostcopy()
      return
    }
    if (this.#once) {
      if (nearly && this.#policy.may_postcopy && this.#foreseen?.how === 'postcopy') await this.#goOverToPostcopy()
      return
    }
    const [steering, order] = steer(this.#steering, seen, this.#policy)
    this.#steering = steering
    if (order.do === 'limit') await this.#running.execute('migrate-set-parameters', { 'downtime-limit': order.ms })
    if (order.do === 'postcopy') await this.#goOverToPostcopy()
    if (order.do === 'refuse')
      giveUp(
        fail(
          'does_not_converge',
          `The guest writes too fast: the least that was left would have taken ${order.needs_ms} ms, and it may stand still for ${limits.max_stall_ms} ms.`,
          { remedy: `--max-stall-ms ${order.needs_ms}, or --mode auto with post-copy allowed` },
        ),
      )
  }

  /** What the caller is told: QEMU's own reason where it has one. */
  async #why(error: unknown): Promise<unknown> {
    if (this.#out.gone !== undefined || this.#out.status !== 'failed' || toFault(error).code === 'does_not_converge')
      return error
    const info = await ask(this.#running).catch(() => undefined)
    const said = info?.['error-desc']
    return fail('qemu_failed', `QEMU could not move it: ${said ?? 'it does not say why; the other host may'}.`, {
      cause: error,
    })
  }
}
