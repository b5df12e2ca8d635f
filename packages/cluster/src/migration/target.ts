/**
 * The target's side of a move. Its QEMU waits (-S, -incoming); it lets the guest run only with `go` in hand, and gives its word (`undone`) only
 * when its QEMU is gone. docs/migration.md.
 */
import { type Fault, WadahError, fail, toFault } from '@wadah/api/fault'
import type {
  ArrivalRequest,
  ArrivalState,
  ArrivingVm,
  Migration,
  MoveOffer,
  MovePeer,
  MoveProgress,
} from '@wadah/ports/migration'
import { anyFault } from '../jobs/faults.ts'
import { MOVE_PROTOCOL, type MessageLink, endedLink } from './link.ts'
import { pausePoint } from './pause-point.ts'
import { mayGoPostcopy } from './resolve.ts'
import { LONGEST_MS, type Of, PeerAbort, Talk } from './talk.ts'
import type { Turns } from './turns.ts'

export type MoveInPorts = {
  migration: Pick<Migration, 'arrive' | 'ask' | 'rejoinArriving' | 'wall_ms'>
  /**
   * The store says that nobody carries this move out any more, or that the VM stayed where it was: nothing more will be heard of the source.
   * @throws when it can't be asked
   */
  isOver(job: string, vm: string): Promise<boolean>
  /** This host's address, where its QEMUs listen. */
  address(): string
  /**
   * Looks whether this VM may come here (placement names this host and the epoch of the offer), and says with what: the launch request of
   * this host's own records, the address to listen on, whether TLS is wanted. @throws what the source is to be told
   */
  prepare(
    job: string,
    offer: MoveOffer,
    signal: AbortSignal,
  ): Promise<Pick<ArrivalRequest, 'request' | 'listen' | 'tls' | 'mirrors'>>
  /** The placement is this host's from now on: `{host, epoch}`, hand-over gone. Done twice is done once. Tried until it works. */
  commitMoved(job: string, offer: Pick<MoveOffer, 'vm' | 'epoch'>, signal: AbortSignal): Promise<void>
  /** How many come at a time; absent: any number. */
  turns?: Turns
  /** Whether this host carries out the job of the move: no other may begin it here, or take it up again. */
  isBy(job: string, host: string): Promise<boolean>
  /** What was made beside QEMU (empty volumes) goes again. */
  undone?(job: string, vm: string): Promise<void>
  progress?(vm: string, p: MoveProgress): void
  log(line: string): void
}

const OFFER_MS = 30_000
const DONE_MS = 600_000
/** After a break a source that still copies has given up by then; one that has let go comes back. */
const LOST_MS = 60_000
const LOOK_MS = 3_000
const UNKNOWN_MS = 500
/** Post-copy, and the source is gone: the last pages may still be on their way into QEMU. */
const WHOLE_MS = 5_000
/** What became of moves is told to sources that come back late; that many of them. */
const MOST_REMEMBERED = 500
const RETRY_MS = [100, 500, 2_000, 5_000] as const

/** One move that comes here. */
export class MoveIn {
  readonly job: string
  readonly vm: string
  /** Settles, never rejects, when all is over: `moved`, or `undone` with the reason. */
  readonly over: Promise<{ moved: boolean; fault?: Fault }>
  readonly #offer: Pick<MoveOffer, 'vm' | 'epoch' | 'mode' | 'limits'>
  readonly #ports: MoveInPorts
  readonly #stop: AbortSignal
  readonly #end: (how: { moved: boolean; fault?: Fault }) => void
  #talk: Talk
  #arriving: ArrivingVm | undefined
  #state: ArrivalState = 'waiting'
  #run_ms: number | undefined
  #isOver = false
  #going = false
  /** Post-copy: its QEMU here ended before it had all of it. Kept for a source that asks later. */
  #lost: WadahError | undefined
  readonly #placed = Promise.withResolvers<void>()

  constructor(
    job: string,
    offer: Pick<MoveOffer, 'vm' | 'epoch' | 'mode' | 'limits'>,
    link: Talk,
    ports: MoveInPorts,
    stop: AbortSignal,
    arriving?: ArrivingVm,
  ) {
    this.job = job
    this.vm = offer.vm
    const { vm, epoch, mode, limits } = offer
    this.#offer = { vm, epoch, mode, limits }
    this.#ports = ports
    this.#stop = stop
    this.#talk = link
    const { promise, resolve } = Promise.withResolvers<{ moved: boolean; fault?: Fault }>()
    this.over = promise
    this.#end = (how) => {
      this.#isOver = true
      // What it said last is all that is asked for from now on; the stream goes with its buffers.
      this.#arriving = undefined
      this.#talk = new Talk(endedLink('this move is over'), ports.migration.wall_ms)
      resolve(how)
    }
    if (!arriving) return
    this.#adopt(arriving)
    this.begun.resolve()
  }

  get state(): ArrivalState {
    return this.#state
  }
  get isOver(): boolean {
    return this.#isOver
  }
  isRefused = false
  /** Gives back its place among those that come. */
  #leave: (() => void) | undefined

  #adopt(arriving: ArrivingVm): void {
    this.#arriving = arriving
    void arriving.gone.then(({ reason }) => {
      if (this.#state === 'waiting')
        void this.#undo(fail('qemu_failed', `QEMU, which waited for the guest, ended: ${reason}.`))
      else void this.#ended(arriving, reason)
    })
  }

  /** Its end after `running` is the VM's, not the move's; but in post-copy the source's QEMU would wait for it for ever. */
  async #ended(arriving: ArrivingVm, reason: string): Promise<void> {
    if (this.#isOver || this.#lost || (this.#state !== 'running' && this.#state !== 'committed')) return
    if (await arriving.whole().catch(() => true)) return
    this.#lost = fail('memory_lost', `Its QEMU on its new host ended (${reason}) before all of its memory was there.`)
    this.#ports.log(`${this.vm}: ${this.#lost.fault.detail}`)
    this.#talk.send({ type: 'abort', job: this.job, fault: this.#lost.fault })
    // It is placed here first, for here it can be started.
    await this.#placed.promise
    this.#done()
  }

  /** Settles when the target is made, or was taken back. */
  readonly begun = Promise.withResolvers<void>()

  /** From the offer to the accept, then on as the messages come. Never rejects: what goes wrong is told to the source. */
  async begin(offer: MoveOffer): Promise<void> {
    const { job } = this
    const limit = AbortSignal.any([this.#stop, this.#talk.lost])
    try {
      // One of the release before does not know `wait`, and takes it for silence; it says less of itself, too.
      const leave = offer.or_precopy === true ? await this.#ports.turns?.take(this.#talk, job, limit) : undefined
      if (leave) {
        this.#leave = leave
        void this.over.then(leave)
      }
      await pausePoint('target-prepare')
      const made = await this.#ports.prepare(job, offer, limit)
      const { mode, limits, facts } = offer
      const may_postcopy = limits.may_postcopy === true
      const or_precopy = offer.or_precopy === true ? { or_precopy: true as const } : {}
      const arriving = await this.#ports.migration.arrive(
        { ...made, job, mode, may_postcopy, ...or_precopy, facts },
        limit,
      )
      const { accepted } = arriving
      if (accepted.no_postcopy) this.#offer.limits = { ...limits, may_postcopy: false }
      this.#adopt(arriving)
      await pausePoint('target-accept')
      this.#talk.send({ type: 'accept', job, accepted })
    } catch (error) {
      this.#ports.log(`${this.vm}: refused: ${(error as Error).message}`)
      await this.#ports.undone?.(job, this.vm).catch((e: unknown) => this.#ports.log(String(e)))
      this.#state = 'undone'
      this.isRefused = true
      const why = refusalOf(error)
      this.#talk.send({ type: 'refuse', job, fault: why })
      this.#end({ moved: false, fault: why })
      return
    } finally {
      this.begun.resolve()
    }
    await this.#serve(this.#talk)
  }

  /** The source comes back over another stream. What still comes over the old one counts no more. */
  async resume(talk: Talk): Promise<void> {
    const old = this.#talk
    this.#talk = talk
    old.close()
    await this.#serve(talk, true)
  }

  async #answer(talk: Talk): Promise<void> {
    const { job } = this
    talk.send({
      type: 'resumed',
      job,
      state: this.#state,
      ...(this.#run_ms === undefined ? {} : { run_ms: this.#run_ms }),
      ...(this.#lost ? { lost: true } : {}),
    })
  }

  /** Does what the source says, until it says no more. */
  async #serve(talk: Talk, resumed = false): Promise<void> {
    talk.onProgress = ({ progress }) => this.#ports.progress?.(this.vm, progress)
    talk.beat()
    if (resumed) await this.#answer(talk)
    else this.#tellLoaded(talk)
    try {
      while (talk === this.#talk && !this.#isOver) {
        const m = await talk.next(['go', 'sealed', 'resume', 'recover', 'done'], LONGEST_MS, this.#stop)
        if (talk !== this.#talk) return
        // Not waited for: a QEMU that stands for a page of a source that has ended answers nothing, and its end has to be heard of.
        if (m.type === 'go') this.#letRun(talk, m)
        else if (m.type === 'resume') await this.#answer(talk)
        else if (m.type === 'recover') await this.#recover(talk, m.tls)
        else if (m.type === 'done') return await this.#finished()
      }
    } catch (error) {
      if (talk !== this.#talk || this.#isOver) return
      if (error instanceof PeerAbort && error.fault.code === 'memory_lost') return this.#memoryLost(error)
      if (error instanceof PeerAbort) return this.#undo(error)
      if (this.#stop.aborted) return
      this.#ports.log(`${this.vm}: ${(error as Error).message}`)
      // Running: all that matters is done or being done. Waiting: the source comes back, or QEMU ends with it (`gone`).
      // Post-copy that is not through: the source has what is missing.
      if (this.#state === 'committed') {
        await this.#leftAlone(talk)
      } else if (this.#state === 'waiting') await this.#deserted(talk)
    }
  }

  /** Post-copy: nobody but us can say when it may run. */
  #tellLoaded(talk: Talk): void {
    if (!mayGoPostcopy(this.#offer)) return
    const limit = AbortSignal.any([this.#stop, talk.lost])
    void this.#arriving
      ?.loaded('postcopy', limit)
      .then(() => talk.send({ type: 'loaded', job: this.job }))
      .catch(() => {})
  }

  /** Once at a time: a `go` that is said again is answered by the first. */
  #letRun(talk: Talk, m: Of<'go'>): void {
    if (this.#going) return
    this.#going = true
    void this.#go(talk, m)
      .catch((error: unknown) => this.#ports.log(`${this.vm}: ${(error as Error).message}`))
      .finally(() => (this.#going = false))
  }

  async #go(talk: Talk, { how }: Of<'go'>): Promise<void> {
    const { job } = this
    if (this.#state === 'running' || this.#state === 'committed') {
      talk.send({ type: 'running', job, run_ms: this.#run_ms ?? this.#ports.migration.wall_ms() })
      if (this.#state === 'committed') talk.send({ type: 'committed', job })
      return
    }
    const arriving = this.#arriving
    if (!arriving || this.#state !== 'waiting') return this.#sayUndone(talk, fail('gone', 'The move was undone here.'))
    try {
      const before = pausePoint('target-before-go')
      if (before) await before
      const { run_ms } = await arriving.go(this.#stop)
      const after = pausePoint('target-after-go')
      if (after) await after
      this.#state = 'running'
      this.#run_ms = run_ms
    } catch (error) {
      // It could not run, or nobody can tell: it is asked, and only a QEMU that is proved never to have run is ended.
      let is = await this.#ports.migration.ask(this.vm)
      // A monitor is silent for a moment before its QEMU is known to be gone; until it can be told, that is what is answered.
      while (is.is === 'unknown' && !this.#isOver) {
        this.#state = 'cannot-tell'
        await new Promise((resolve) => setTimeout(resolve, UNKNOWN_MS).unref())
        if (this.#stop.aborted) throw error
        is = await this.#ports.migration.ask(this.vm)
      }
      if (this.#isOver) return
      if (this.#state === 'cannot-tell') this.#state = 'waiting'
      if (is.is === 'there' && is.status === 'running') this.#state = 'running'
      else if (is.is === 'gone') {
        // By the source's word that what was still to come is lost: that has been answered.
        if (this.#state !== 'waiting') return
        // It ended after `cont`, and may have run for a moment: there is no word to give.
        this.#state = 'unknown'
        const fault = toFault(error)
        talk.send({ type: 'abort', job, fault })
        await this.#ports.undone?.(job, this.vm).catch((e: unknown) => this.#ports.log(String(e)))
        talk.close()
        return this.#end({ moved: false, fault })
      } else return this.#undo(error)
    }
    talk.send({ type: 'running', job, run_ms: this.#run_ms ?? this.#ports.migration.wall_ms() })
    void this.#settle(how)
  }

  async #settle(how: 'precopy' | 'postcopy'): Promise<void> {
    const settled = this.#arriving
      ?.settle(how, this.#stop)
      .catch((error: unknown) => this.#ports.log(`${this.vm}: after the move: ${(error as Error).message}`))
    for (let i = 0; !this.#stop.aborted; i++) {
      try {
        await pausePoint('target-before-commit')
        await this.#ports.commitMoved(this.job, this.#offer, this.#stop)
        await pausePoint('target-after-commit')
        this.#state = 'committed'
        this.#talk.send({ type: 'committed', job: this.job })
        break
      } catch (error) {
        this.#ports.log(`${this.vm}: it runs here, and could not be committed: ${(error as Error).message}`)
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(i, RETRY_MS.length - 1)]).unref())
      }
    }
    this.#placed.resolve()
    await settled
    // The source says `done`, or its host is gone: there is nothing to wait for then.
    setTimeout(() => this.#done(), DONE_MS).unref()
  }

  async #recover(talk: Talk, peer: MovePeer | undefined): Promise<void> {
    const { job } = this
    try {
      const at = await this.#arriving?.recover(this.#ports.address(), peer, this.#stop)
      if (!at) throw fail('gone', 'There is nothing to be recovered here.')
      talk.send({ type: 'recover-at', job, ...at })
    } catch (error) {
      const is = await this.#ports.migration.ask(this.vm)
      const why = is.is === 'gone' ? fail('memory_lost', 'Its QEMU ended before all of its memory was there.') : error
      talk.send({ type: 'abort', job, fault: toFault(why) })
      if (is.is === 'gone') this.#done()
    }
  }

  /** The source says `done`, and has ended its QEMU, or found it ended: what has not come by then never will. */
  async #finished(): Promise<void> {
    for (const end = performance.now() + WHOLE_MS; ; ) {
      const whole = await this.#arriving?.whole().catch(() => undefined)
      if (whole !== false) return this.#done()
      if (performance.now() > end) break
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    await this.#memoryLost(fail('memory_lost', 'Its source ended before all of its memory was here.'))
  }

  /** Post-copy broke for good: no QEMU has all of its memory. It ends here, where it is placed. */
  async #memoryLost(why: WadahError): Promise<void> {
    this.#lost = why
    this.#ports.log(`${this.vm}: what was in its memory is lost: ${why.fault.detail}`)
    await this.#arriving
      ?.undo()
      .catch((error: unknown) => this.#ports.log(`${this.vm}: it can't be ended: ${(error as Error).message}`))
    if (this.#state !== 'running' && this.#state !== 'committed') {
      this.#state = 'unknown'
      await this.#ports.undone?.(this.job, this.vm).catch((e: unknown) => this.#ports.log(String(e)))
    }
    this.#talk.send({ type: 'abort', job: this.job, fault: why.fault })
    this.#done()
  }

  #done(): void {
    if (this.#isOver) return
    this.#talk.close()
    this.#end({ moved: true })
  }

  #sayUndone(talk: Talk, error: unknown): void {
    talk.send({ type: 'abort', job: this.job, fault: toFault(error), undone: true })
  }

  /** Nobody came back. What has been loaded whole may be the only guest there is: that waits, for the source or for whoever decides. */
  async #deserted(talk: Talk): Promise<void> {
    const until_ms = performance.now() + LOST_MS
    const isAlone = () => talk === this.#talk && this.#state === 'waiting' && !this.#stop.aborted
    while (isAlone()) {
      // It may have told the store what it could not tell us.
      const over = await this.#ports.isOver(this.job, this.vm).catch(() => false)
      if (!isAlone()) return
      if (over) return this.#undo(fail('cancelled', 'The source ended the move, and could not tell it here.'))
      if (performance.now() > until_ms) {
        const is = await this.#ports.migration.ask(this.vm)
        if (!isAlone()) return
        if (is.is === 'gone' || (is.is === 'there' && is.status === 'inmigrate'))
          return this.#undo(fail('unreachable', `The source was not heard of for ${LOST_MS / 1000} s.`))
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS).unref())
    }
  }

  /** Found by a daemon that was started anew, and nobody has asked for it yet. */
  alone(): void {
    void (this.#state === 'waiting' ? this.#deserted(this.#talk) : this.#leftAlone(this.#talk))
  }

  /** It runs here, and its source is silent: the one that has the rest of a post-copy comes back, unless somebody has given its host up. */
  async #leftAlone(talk: Talk): Promise<void> {
    while (talk === this.#talk && !this.#isOver && !this.#stop.aborted) {
      if (this.#state === 'committed') {
        // A monitor that does not answer says nothing about it.
        const whole = this.#arriving ? await this.#arriving.whole().catch(() => undefined) : true
        if (talk !== this.#talk) return
        if (whole === true) return this.#done()
        const over = whole === false && (await this.#ports.isOver(this.job, this.vm).catch(() => false))
        if (talk !== this.#talk) return
        // The last of it may have come meanwhile.
        if (over) return this.#finished()
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS).unref())
    }
  }

  #undoing: Promise<void> | undefined
  /** Ends the QEMU that waits; then, and only then, says so. Asked once more, it waits for the first. */
  async #undo(why: unknown): Promise<void> {
    if (this.#state === 'waiting') this.#undoing = this.#takeBack(why)
    await this.#undoing
  }

  async #takeBack(why: unknown): Promise<void> {
    this.#state = 'cannot-tell'
    const told = why instanceof WadahError ? why : fail('internal', (why as Error).message)
    try {
      await this.#arriving?.undo()
      await this.#ports.undone?.(this.job, this.vm)
      this.#state = 'undone'
    } catch (error) {
      this.#ports.log(`${this.vm}: what was made for the move can't be taken back: ${(error as Error).message}`)
      // Nothing comes any more: others may.
      this.#leave?.()
      return
    }
    this.#ports.log(`${this.vm}: undone: ${told.fault.detail}`)
    this.#sayUndone(this.#talk, told)
    this.#talk.close()
    this.#end({ moved: false, fault: told.fault })
  }

  /** Found running after a restart of this daemon. */
  runs(how: 'precopy' | 'postcopy'): void {
    this.#state = 'running'
    void this.#settle(how)
  }

  /** Somebody with the right to decide gives it up: the source's host is gone for good, say. Not once `go` was heard. */
  async giveUp(why: WadahError): Promise<boolean> {
    await this.#undo(why)
    return this.#state === 'undone'
  }
}

/** In the words of whoever asked: the other host's files are not theirs to see. */
export function refusalOf(error: unknown): Fault {
  const { code } = error as NodeJS.ErrnoException
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return anyFault(error)
  return fail('no_room', 'The file system of the host it was to go to is full.', {
    remedy: 'on that host: df -h (its data folder); or another host: --to HOST',
  }).fault
}

/** All moves that come to this host: whoever takes a stream from another daemon hands it here. */
export class Arrivals {
  readonly #ports: MoveInPorts
  readonly #stop: AbortSignal
  readonly #moves = new Map<string, MoveIn>()

  constructor(ports: MoveInPorts, stop: AbortSignal) {
    this.#ports = ports
    this.#stop = stop
  }

  get(job: string): MoveIn | undefined {
    return this.#moves.get(job)
  }

  /** A stream that another daemon opened for a move; `from`: its host, as proved. Resolves when there is no more to be done on it. */
  async handle(link: MessageLink, from: string): Promise<void> {
    const talk = new Talk(link, this.#ports.migration.wall_ms)
    let first: Of<'offer'> | Of<'resume'>
    try {
      first = await talk.next(['offer', 'resume'], OFFER_MS, this.#stop)
    } catch {
      return talk.close()
    }
    const { job, version } = first
    if (version !== MOVE_PROTOCOL) {
      const why = `Moves are spoken in version ${MOVE_PROTOCOL} here, and in version ${version} there.`
      talk.send({ type: 'refuse', job, fault: toFault(fail('host_lacks', why, { remedy: 'upgrade the older host' })) })
      return talk.close()
    }
    const why = await this.#ports.isBy(job, from).then(
      (is) => (is ? undefined : fail('not_owner', 'This move is carried out by another host than the one that asks.')),
      (error: unknown) => error,
    )
    if (why !== undefined) {
      // To a source that comes back nothing is said that it could take for the target's word: it tries again.
      if (first.type === 'offer') talk.send({ type: 'refuse', job, fault: toFault(why) })
      return talk.close()
    }
    if (first.type === 'resume') return this.#resume(talk, first)
    const { offer } = first
    const there = this.#moves.get(job)
    // A source that begins the same job anew has never said `go`: what it began before is of no use.
    await there?.begun.promise
    if (there && !there.isOver && !(await there.giveUp(fail('cancelled', 'The source begins anew.')))) {
      talk.send({ type: 'refuse', job, fault: toFault(fail('busy', 'This move is under way already.')) })
      return talk.close()
    }
    const move = new MoveIn(job, offer, talk, this.#ports, this.#stop)
    this.#remember(job, move)
    await move.begin(offer)
    // It never had a QEMU here: nobody asks for it, and what became of others is not to be pushed out by it.
    if (move.isRefused && this.#moves.get(job) === move) this.#moves.delete(job)
  }

  /** After a start of this daemon: what was on its way here. Those that run are committed; those that wait do so until they are asked for. */
  async recover(found: readonly { vm: string; job: string }[]): Promise<void> {
    for (const { vm, job } of found) (await this.#rejoin(vm, job))?.alone()
  }

  readonly #rejoining = new Map<string, Promise<MoveIn | undefined>>()
  /** The move that a daemon before this one took; undefined when this host has nothing of it. */
  #rejoin(vm: string, job: string): Promise<MoveIn | undefined> {
    const there = this.#moves.get(job)
    if (there) return Promise.resolve(there)
    const mine = this.#rejoining.get(job) ?? this.#find(vm, job).finally(() => this.#rejoining.delete(job))
    this.#rejoining.set(job, mine)
    return mine
  }

  async #find(vm: string, job: string): Promise<MoveIn | undefined> {
    const arriving = await this.#ports.migration.rejoinArriving(vm, job).catch(() => undefined)
    if (!arriving) return undefined
    const is = await this.#ports.migration.ask(vm)
    const postcopy = is.is === 'there' && is.migration.startsWith('postcopy')
    const mode = postcopy ? ('postcopy' as const) : ('precopy' as const)
    const offer = { vm, epoch: arriving.epoch, mode, limits: { max_stall_ms: 0 } }
    const talk = new Talk(endedLink('this daemon was started anew'), this.#ports.migration.wall_ms)
    const move = new MoveIn(job, offer, talk, this.#ports, this.#stop, arriving)
    if (is.is === 'there' && is.status === 'running') move.runs(mode)
    this.#remember(job, move)
    return move
  }

  #remember(job: string, move: MoveIn): void {
    this.#moves.delete(job)
    this.#moves.set(job, move)
    for (const [id, { isOver }] of this.#moves) {
      if (this.#moves.size <= MOST_REMEMBERED) break
      if (isOver) this.#moves.delete(id)
    }
  }

  async #resume(talk: Talk, { job, vm }: Of<'resume'>): Promise<void> {
    const move = await this.#rejoin(vm, job)
    if (move) return move.resume(talk)
    // This daemon was started anew, or never heard of it: its machine knows.
    const is = await this.#ports.migration.ask(vm)
    let state: ArrivalState = is.is === 'gone' ? 'unknown' : 'cannot-tell'
    // One that no move brought: started here since, after the one that came had ended.
    const lost = is.is === 'there' && is.job === undefined && is.migration === 'none'
    // One that was taken over paused waits for nothing any more: no job is noted with it.
    if (is.is === 'there' && (is.status === 'running' || is.job === undefined)) {
      // It is here, and whoever let it may have died before it could commit that.
      const { epoch } = is
      state = await this.#ports.commitMoved(job, { vm, epoch }, this.#stop).then(
        () => 'committed' as const,
        () => 'running' as const,
      )
    }
    talk.send({ type: 'resumed', job, state, ...(lost ? { lost } : {}) })
  }
}
