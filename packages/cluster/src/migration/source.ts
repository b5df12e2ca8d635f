/**
 * The source's side of a move.
 *
 *   offer ─ prepare ─ seal ─ mirror ─ copy ─ switch │ start ─ commit ─ follow ─ quit
 *                                                   └ `go` was said
 *
 * Up to `go` a failure leaves the guest where it is and undoes the target. From `go` on this side never lets its guest go on by itself: it
 * takes it back only with the target's word that its QEMU is gone and will not come back. docs/migration.md.
 */
import { type Fault, WadahError, fail, toFault } from '@wadah/api/fault'
import type {
  ArrivalState,
  LeavingVm,
  Migration,
  MoveForecast,
  MoveLimits,
  MoveMode,
  MovePhase,
  MoveProgress,
  MoveReport,
  SwitchedOver,
} from '@wadah/ports/migration'
import { sleep, systemClock } from '@wadah/store/clock'
import { ANSWER_MS, ASK_AGAIN_MS, isOverThere, Line, RESOLVE_MS, SILENT_MS } from './line.ts'
import { MOVE_PROTOCOL, type MessageLink } from './link.ts'
import { pausePoint } from './pause-point.ts'
import { Phases } from './phases.ts'
import { makeReport } from './report.ts'
import { mayGoPostcopy, resolveMove, type Resolution } from './resolve.ts'
import { Rest } from './rest.ts'
import { LONGEST_MS, type Of, PeerAbort } from './talk.ts'
import { whenItsTurn } from './turns.ts'

export type MoveOut = {
  job: string
  vm: string
  name: string
  /** This host. */
  from: string
  /** Of the placement that the target is to have. */
  epoch: number
  mode: MoveMode
  limits: MoveLimits
  /** QEMU to QEMU encrypted; false only where the administrator said that nobody else can reach the link. */
  tls: boolean
  /** Disks that the target can't see. */
  mirrors?: readonly string[]
  /** Of these, disks that stand on layers which the target has by now: name → volume. */
  layered?: Record<string, string>
  /** Made while the target is prepared. */
  forecast?: Promise<MoveForecast | undefined>
}
export type MoveOutPorts = {
  migration: Pick<Migration, 'leave' | 'ask' | 'wall_ms' | 'rejoinLeaving'>
  link: MessageLink
  /** A new stream to the target's daemon after a break; undefined when it can't be reached now. */
  relink(signal: AbortSignal): Promise<MessageLink | undefined>
  /** Commits that the hand-over is sealed: from then on nobody launches this VM. Done twice is done once. */
  seal(signal: AbortSignal): Promise<void>
  /** Takes the hand-over out of the placement: it stays here. Done twice is done once. */
  unseal(): Promise<void>
  /** Whether the store says by now that it is placed on the target, in its new epoch. */
  isPlaced(): Promise<boolean>
  progress?: (p: MoveProgress) => void
  phase?: (phase: MovePhase) => void
  /** Right before `go` is said: what is done here may not wait for anything. A job passes its pivot with it. */
  going?: () => void
  log: (line: string) => void
  /** It has to wait for its turn over there. */
  waits?: () => void
  /** How long it did. What was foreseen long ago is no measure any more: what is foreseen now. */
  waited?: (ms: number) => Promise<MoveForecast | undefined> | undefined
  /** Tests make phases fail by throwing here. */
  at?: (phase: MovePhase) => void
}

const ACCEPT_MS = 180_000
const LOADED_MS = 300_000
const COMMIT_MS = 600_000
/** As long as its QEMU there has its disks the guest stands still here; later both are asked again and again (`resume`). */
const END_THERE_MS = 30_000

/**
 * Moves a VM that runs here.
 * @throws WadahError effect `none`: the guest runs on here, nothing is left; `partial`: it ended here meanwhile; `unknown`: it was said `go`,
 *   and the target can't be asked: call `resumeMoveOut` once it can
 */
export async function moveOut(order: MoveOut, ports: MoveOutPorts, signal: AbortSignal): Promise<MoveReport> {
  const source = new Source(order, ports)
  return source.run(signal).finally(() => source.letGo())
}

/** Goes on with a move of which this daemon knows no more than its job: it was started anew. Undefined: the guest runs on here. */
export async function resumeMoveOut(
  order: MoveOut,
  ports: MoveOutPorts,
  signal: AbortSignal,
): Promise<{ moved: boolean }> {
  const source = new Source(order, ports)
  return source.resume(signal).finally(() => source.letGo())
}

class Source {
  #order: MoveOut
  readonly #ports: MoveOutPorts
  readonly #phases: Phases
  readonly #notes: string[] = []
  readonly #line: Line
  readonly #rest: Rest
  #leaving: LeavingVm | undefined
  #sealed = false
  /** By which it is copied. */
  #foreseen: Promise<MoveForecast | undefined> | undefined

  constructor(order: MoveOut, ports: MoveOutPorts) {
    this.#order = order
    this.#ports = ports
    this.#phases = new Phases(ports.migration.wall_ms, ports.at)
    const { link, migration, log } = ports
    this.#line = new Line(order, { link, wall_ms: migration.wall_ms, relink: (signal) => ports.relink(signal) })
    this.#rest = new Rest(order, this.#line, { migration, log, note: (line) => this.#notes.push(line) })
  }

  /** However it ended: nothing of this process waits for its QEMU any more. */
  async letGo(): Promise<void> {
    await this.#leaving?.letGo()
  }

  #phase(phase: MovePhase): void {
    this.#phases.begin(phase)
    this.#ports.phase?.(phase)
  }

  async run(signal: AbortSignal): Promise<MoveReport> {
    let switched: SwitchedOver
    try {
      switched = await this.#before(signal)
    } catch (error) {
      throw await this.#undo(error)
    }
    // ---- from here on only forward
    const running = await this.#goOver(switched, signal)
    try {
      return await this.#finish(switched, running, signal)
    } catch (error) {
      // It runs there: whatever is still missing here, nothing was taken back.
      const fault = toFault(error)
      throw fault.effect === 'none' ? new WadahError({ ...fault, effect: 'unknown' }, error) : error
    }
  }

  /** It runs on the target. */
  async #finish(switched: SwitchedOver, running: number, signal: AbortSignal): Promise<MoveReport> {
    const { job } = this.#order
    await pausePoint('source-commit')
    this.#phase('commit')
    const committed = await this.#committed(signal)
    if (switched.how === 'postcopy') {
      this.#phase('follow')
      await pausePoint('source-follow')
      await this.#afterIt(this.#rest.follow(this.#need(), signal), signal)
    }
    const leaving = this.#need()
    const claim = await leaving.claim().catch(() => ({}))
    this.#phase('quit')
    await pausePoint('source-quit')
    await leaving.quit()
    if (committed) this.#line.send({ type: 'done', job })
    await leaving.close()
    this.#phases.end()
    this.#line.close()
    const foreseen = await this.#order.forecast
    return makeReport({
      order: { mode: this.#order.mode, ...(foreseen ? { forecast: foreseen } : {}) },
      switched,
      run_ms: running,
      claim,
      clock: this.#line.clock.best,
      phases: this.#phases.times,
      notes: this.#notes,
    })
  }

  #need(): LeavingVm {
    if (!this.#leaving) throw fail('internal', 'a move without its VM')
    return this.#leaving
  }

  /** Everything up to `go`. */
  async #before(signal: AbortSignal): Promise<SwitchedOver> {
    const { job, vm, name, from, epoch, mode, limits, tls, mirrors, layered } = this.#order
    const { migration } = this.#ports
    // From here on whatever ends the stream, or the other side, ends this too.
    const limit = this.#line.orLost(signal)
    this.#phase('offer')
    this.#leaving = await migration.leave(
      vm,
      { job, tls, ...(mirrors ? { mirrors } : {}), ...(layered ? { layered } : {}) },
      limit,
    )
    const { facts } = this.#leaving
    await pausePoint('source-offer')
    this.#line.send({
      type: 'offer',
      version: MOVE_PROTOCOL,
      job,
      offer: { vm, name, epoch, mode, limits, facts, from, or_precopy: true },
    })
    this.#line.beat()
    this.#phase('prepare')
    const { said, waited_ms } = await whenItsTurn(
      () => this.#line.next(['accept', 'refuse', 'wait'], ACCEPT_MS, limit),
      (most) => {
        this.#ports.log(`the other host takes ${most} at a time: it waits for its turn`)
        this.#ports.waits?.()
      },
      async () => {
        if ((await migration.ask(vm)).is === 'gone')
          throw fail('wrong_state', 'The VM does not run any more.', { effect: 'partial' })
      },
    )
    this.#foreseen = this.#ports.waited?.(waited_ms) ?? this.#order.forecast
    // Whatever it was: nothing of it is left there, and here nothing was begun.
    if (said.type === 'refuse') throw new WadahError({ ...said.fault, effect: 'none' })
    const { no_postcopy } = said.accepted
    if (no_postcopy && mode === 'auto') {
      this.#order = { ...this.#order, limits: { ...limits, may_postcopy: false } }
      this.#ports.log(`it goes by pre-copy alone: over there ${no_postcopy.reason} (${no_postcopy.remedy})`)
    }
    await pausePoint('source-accepted')
    this.#phase('seal')
    await this.#ports.seal(limit)
    this.#sealed = true
    await pausePoint('source-sealed')
    this.#line.send({ type: 'sealed', job, epoch })
    const switched = await this.#copy(said, limit)
    if (switched.how === 'postcopy') await this.#line.next(['loaded'], LOADED_MS, limit)
    else limit.throwIfAborted()
    return switched
  }

  async #copy(said: Of<'accept'>, limit: AbortSignal): Promise<SwitchedOver> {
    const { mode, limits } = this.#order
    const { progress, log } = this.#ports
    const tell = {
      phase: (phase: MovePhase) => {
        this.#phase(phase)
        // Nothing waits here but a switch with disks: QEMU goes on by itself.
        return pausePoint(`source-${phase}`)
      },
      progress: (p: MoveProgress) => {
        progress?.(p)
        this.#line.send({ type: 'progress', progress: p })
      },
      log: (line: string) => {
        this.#notes.push(line)
        log(line)
      },
    }
    // The target may give up meanwhile: its QEMU ended, say.
    const over = new AbortController()
    const given = this.#line.next([], LONGEST_MS, AbortSignal.any([limit, over.signal])).then(
      () => undefined,
      (error: unknown) => {
        if (error instanceof PeerAbort) over.abort(error)
      },
    )
    const peer = new AbortController()
    over.signal.addEventListener('abort', () => peer.abort(over.signal.reason), { once: true })
    try {
      const order = { mode, limits, to: said.accepted, ...(this.#foreseen ? { foreseen: this.#foreseen } : {}) }
      return await this.#need().copy(order, tell, AbortSignal.any([limit, peer.signal]))
    } catch (error) {
      // The guest has ended here: whatever the other host says of it comes from that.
      if (error instanceof WadahError && error.fault.effect !== 'none') throw error
      // QEMU fails a moment before the other host has told why.
      if (error instanceof WadahError && error.fault.code === 'qemu_failed' && !over.signal.aborted)
        await Promise.race([given, new Promise((resolve) => setTimeout(resolve, 300))])
      // What this side decided itself is the cause of what the other saw.
      const own =
        error instanceof WadahError && ['does_not_converge', 'cancelled', 'timeout'].includes(error.fault.code)
      throw over.signal.reason instanceof PeerAbort && !own ? over.signal.reason : error
    } finally {
      if (!over.signal.aborted) over.abort(new Error('over'))
    }
  }

  /** Before `go`: the guest runs on here. Returns what is to be told. */
  async #undo(error: unknown): Promise<unknown> {
    const { job } = this.#order
    const told = toFault(error)
    let after = error
    try {
      // `copy` may have come to its end before the failure.
      if (this.#leaving && told.effect !== 'partial') await this.#takeBack(this.#leaving, told)
      if (error instanceof WadahError && told.effect === 'unknown')
        after = new WadahError({ ...told, effect: 'none' }, error)
    } catch (failed) {
      const { code, effect } = toFault(failed)
      if (code === 'memory_lost' && effect === 'partial') return failed
      after = new WadahError({ ...toFault(failed), effect: effect === 'none' ? 'partial' : 'unknown' }, error)
      // All stays as it is, sealed, for whoever asks both once they can be asked.
      if (effect === 'unknown') {
        this.#line.close()
        return after
      }
    }
    this.#line.send({ type: 'abort', job, fault: told })
    await this.#leaving?.close().catch((e: unknown) => this.#ports.log(`after the move: ${(e as Error).message}`))
    if (this.#sealed)
      await this.#ports.unseal().catch((e: unknown) => {
        this.#ports.log(`the hand-over stays sealed for now: ${(e as Error).message}`)
        after = new WadahError({ ...toFault(after), effect: 'partial' }, e)
      })
    this.#line.close()
    return after
  }

  /**
   * `go` was never said: what waits over there is of no use, and where it has taken the disks it has to end first. Not before it is tried
   * here: a post-copy that breaks can't be taken back at all.
   */
  async #takeBack(leaving: LeavingVm, why: Fault): Promise<void> {
    const tried = () =>
      leaving.takeBack().then(
        () => undefined,
        (error: unknown) => error,
      )
    const held = await tried()
    if (held === undefined) return
    if (!this.#sealed || toFault(held).effect !== 'unknown') throw held
    this.#ports.log(`${toFault(held).detail} The QEMU on the other host is ended first.`)
    await this.#line.endThere(why, AbortSignal.timeout(END_THERE_MS)).catch(() => {
      throw held
    })
    const still = await tried()
    if (still === undefined) return
    const { code, detail } = toFault(still)
    const isLost = code === 'memory_lost' || (code === 'monitor_silent' && mayGoPostcopy(this.#order))
    throw isLost ? await this.#memoryLost(detail) : still
  }

  /** `go`, and everything until the guest is known to run there. When, on the target's clock. */
  async #goOver(switched: SwitchedOver, signal: AbortSignal): Promise<number> {
    const { job } = this.#order
    const before = pausePoint('source-before-go')
    if (before) await before
    this.#ports.going?.()
    this.#line.send({ type: 'go', job, how: switched.how })
    const after = pausePoint('source-after-go')
    if (after) await after
    this.#phase('start')
    try {
      return await this.#runsThere(switched.how, this.#line.orLost(signal))
    } catch (error) {
      if (error instanceof PeerAbort && error.undone) throw await this.#tookBack(error)
      return await this.#afterBreak(error, switched.how, signal)
    }
  }

  /** Post-copy whose source has ended answers nothing: that is looked at meanwhile. */
  async #runsThere(how: SwitchedOver['how'], limit: AbortSignal): Promise<number> {
    for (const end = performance.now() + ANSWER_MS; ; ) {
      try {
        return (await this.#line.next(['running'], how === 'postcopy' ? ASK_AGAIN_MS : ANSWER_MS, limit)).run_ms
      } catch (error) {
        const isLate = !(error instanceof PeerAbort) && toFault(error).code === 'timeout' && !limit.aborted
        if (!isLate || performance.now() > end) throw error
        if ((await this.#ports.migration.ask(this.#order.vm)).is === 'gone') throw error
      }
    }
  }

  /** The target has given its word: its QEMU is gone. */
  async #tookBack(why: unknown): Promise<unknown> {
    this.#ports.log('the target could not let it run, and has ended its QEMU: it goes on here')
    return await this.#undo(new WadahError({ ...toFault(why), effect: 'none' }, why))
  }

  /** Asks both until it is clear. Returns when the guest ran on the target, as it says. */
  async #afterBreak(why: unknown, how: SwitchedOver['how'], signal: AbortSignal): Promise<number> {
    this.#notes.push(`after go: ${toFault(why).detail}`)
    for (const end = performance.now() + RESOLVE_MS; performance.now() < end; ) {
      if (how === 'postcopy' && (await this.#ports.migration.ask(this.#order.vm)).is === 'gone')
        throw await this.#memoryLost('its QEMU here ended before all of it had gone over', true)
      const said = await this.#line.ask(signal)
      const what = await this.#resolve(said.state)
      this.#ports.log(`after a break: the target is ${said.state}: ${what}`)
      if (what === 'finish') return said.run_ms ?? this.#ports.migration.wall_ms()
      if (what === 'take-back') throw await this.#tookBack(why)
      if (what === 'lost') throw await this.#memoryLost('its new host ended it')
      if (what === 'ask-again') {
        await sleep(systemClock, 1_000, signal)
        continue
      }
      // `undo-target` can't be: this side has let go. A source that says otherwise is asked again.
      if (what === 'undo-target') continue
      this.#line.send({ type: 'go', job: this.#order.job, how })
      try {
        return (await this.#line.next(['running'], ANSWER_MS, signal)).run_ms
      } catch (error) {
        if (error instanceof PeerAbort && error.undone) throw await this.#tookBack(error)
        signal.throwIfAborted()
      }
    }
    throw fail(
      'unreachable',
      'The guest was handed over, and its new host does not answer: neither host may let it run now.',
      {
        effect: 'unknown',
        remedy: 'when that host can be reached again it goes on by itself; wadah job list',
      },
    )
  }

  async #committed(signal: AbortSignal): Promise<boolean> {
    for (const end = performance.now() + COMMIT_MS; performance.now() < end; ) {
      try {
        if (this.#line.isCommitted) return true
        await this.#line.next(['committed'], ASK_AGAIN_MS, this.#line.orLost(signal))
        return true
      } catch (error) {
        signal.throwIfAborted()
        this.#line.isLoss(error)
        // It may have been said on a stream that broke, by a host that is gone since.
        if (await this.#isPlaced()) return true
        const { state } = await this.#line.ask(signal)
        if (isOverThere(state) && !(await this.#isPlaced())) throw await this.#memoryLost('its new host ended it')
      }
    }
    throw fail('store_failed', 'The guest runs on its new host, which could not commit it yet.', {
      effect: 'unknown',
      remedy: 'it is tried again; wadah job list',
    })
  }

  /** A store that can't be asked now says nothing. */
  #isPlaced(): Promise<boolean> {
    return this.#ports.isPlaced().catch(() => false)
  }

  /** What both say. What came there whole and was placed there is not lost: what has become of it since is no end of the move. */
  async #resolve(state: ArrivalState): Promise<Resolution> {
    const what = resolveMove(await this.#ports.migration.ask(this.#order.vm), state)
    if (what !== 'lost' || !(await this.#isPlaced())) return what
    return !mayGoPostcopy(this.#order) || (await this.#rest.hasAllGone()) ? 'finish' : 'lost'
  }

  /** What follows the guest over there. Whatever ends it too early, its memory is lost. */
  async #afterIt(rest: Promise<void>, signal: AbortSignal): Promise<void> {
    try {
      await rest
    } catch (error) {
      signal.throwIfAborted()
      throw await this.#memoryLost(toFault(error).detail, true)
    }
  }

  /**
   * No QEMU has the guest whole. What is left of it here ends, for its RAM may be older than its disks; where it is placed it can be started.
   * `there`: the target may have the rest, and where it was not the one who said so it has to be told.
   */
  async #memoryLost(why: string, there = false): Promise<WadahError> {
    const { job, name } = this.#order
    const lost = fail(
      'memory_lost',
      `What was in the memory of "${name}" is lost: ${why.replace(/\.$/, '')}. Its disks are whole.`,
      {
        effect: 'partial',
        remedy: `wadah vm start ${name}`,
      },
    )
    await this.#leaving?.quit()
    if (there && this.#line.lostThere === undefined) await this.#line.tellLost(lost)
    else this.#line.send({ type: 'abort', job, fault: lost.fault })
    // Where the target has committed there is none of this move any more.
    await this.#ports.unseal()
    await this.#leaving?.close()
    this.#line.close()
    return lost
  }

  /** A daemon that was started anew: what it said before is not known, so the target is asked first. */
  async resume(signal: AbortSignal): Promise<{ moved: boolean }> {
    const { vm, job } = this.#order
    this.#sealed = true
    this.#line.beat()
    for (;;) {
      this.#leaving ??= await this.#ports.migration.rejoinLeaving(vm, job)
      const own = await this.#ports.migration.ask(vm)
      // One that has not let go never said `go`: it need not wait for a target that is silent.
      const mayWait = resolveMove(own, 'cannot-tell') === 'ask-again'
      const { state } = await this.#line
        .ask(mayWait ? signal : AbortSignal.any([signal, AbortSignal.timeout(SILENT_MS)]))
        .catch((error: unknown) => {
          signal.throwIfAborted()
          if (mayWait) throw error
          return { state: 'cannot-tell' as const }
        })
      const what = await this.#resolve(state)
      this.#ports.log(`after a restart: the target is ${state}: ${what}`)
      if (own.is === 'gone' && state === 'waiting' && ['postcopy', 'hybrid'].includes(this.#order.mode))
        throw await this.#memoryLost('its QEMU here ended before all of it had gone over', true)
      if (what === 'finish') {
        await this.#committed(signal)
        if (this.#leaving) {
          // Post-copy may still be under way; if it can't end, this QEMU has what the guest needs, and stays.
          await this.#afterIt(this.#rest.follow(this.#need(), signal), signal)
          await this.#leaving.quit()
        } else if (mayGoPostcopy(this.#order)) await this.#afterIt(this.#rest.hadAllGone(signal), signal)
        this.#line.send({ type: 'done', job })
        await this.#leaving?.close()
        this.#line.close()
        return { moved: true }
      }
      if (what === 'lost')
        throw await this.#memoryLost(
          own.is === 'gone' ? 'no QEMU of it is left' : 'its new host has no QEMU of it, and may have run it',
        )
      if (what === 'take-back') {
        await this.#leaving?.takeBack()
        await this.#leaving?.close()
        await this.#ports.unseal()
        this.#line.close()
        return { moved: false }
      }
      if (what === 'go') {
        this.#line.send({ type: 'go', job, how: 'precopy' })
        await this.#line.next(['running', 'abort'], ANSWER_MS, signal).catch(() => undefined)
      } else if (what === 'undo-target') {
        this.#line.send({ type: 'abort', job, fault: toFault(fail('cancelled', 'The source was started anew.')) })
        // Its word, or the end of the stream: then it is asked over another one.
        await this.#line.next(['abort'], ANSWER_MS, this.#line.orLost(signal)).catch(() => undefined)
        this.#line.close()
        await sleep(systemClock, 10, signal)
      } else await sleep(systemClock, 1_000, signal)
    }
  }
}
