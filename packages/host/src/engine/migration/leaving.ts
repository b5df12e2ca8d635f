/** The source's half of a move over QMP. What each call promises stands in packages/ports/src/migration.ts. */
import { setTimeout as sleep } from 'node:timers/promises'
import { WadahError, fail, toFault } from '@wadah/api/fault'
import type {
  CopyOrder,
  LeavingVm,
  MoveFacts,
  MovePeer,
  MovePhase,
  MoveProgress,
  QemuClaim,
  RecoverAt,
  SwitchedOver,
} from '@wadah/ports/migration'
import type { VmDirectory } from '../directory.ts'
import type { RunningVm } from '../running-vm.ts'
import type { MoveIdentity } from './certificates.ts'
import { Copying } from './copying.ts'
import { Mirrors, diskProgress } from './mirror.ts'
import { Outgoing, ask, claimOf, goOnHere } from './outgoing.ts'
import { dropSetup, setCapabilities, setTls, tcpUri } from './setup.ts'

/** A very large guest through a thin line; whoever asked may say less. */
const GONE_MS = 2_000
/** As long as not a page comes through, which a guest that runs fetches all the time, and QEMU sends by itself. */
const STUCK_MS = 1_000
/** Our own word, between QEMU's `postcopy-paused` and `postcopy-recover`. */
const CONNECTS = 'postcopy-connects'
const CONNECT_MS = 20_000
const FOLLOW_MS = 7 * 24 * 3600 * 1000
/** QEMU's own "no limit" is a number (MAX_MIGRATE_BANDWIDTH is SIZE_MAX); this is as good. */
const NO_LIMIT = 2 ** 50

export type LeavingOptions = {
  running: RunningVm
  directory: VmDirectory
  job: string
  facts: MoveFacts
  identity?: MoveIdentity
  /** A new one, where the connection has to be made anew. */
  identify: () => Promise<MoveIdentity>
  /** Whether the daemon is root: QEMU then has the VM's own user. */
  root: boolean
  wall_ms: () => number
  /** Ends the VM here, with all that was made for it. */
  stop: () => Promise<void>
  log: (line: string) => void
}

type Tell = Parameters<LeavingVm['copy']>[1]

export class Leaving implements LeavingVm {
  readonly vm: string
  readonly facts: MoveFacts
  readonly #o: LeavingOptions
  readonly #out: Outgoing
  readonly #unhush: () => Promise<void>
  readonly #mirrors: Mirrors
  #closed = false

  constructor(options: LeavingOptions) {
    this.vm = options.running.vm
    this.facts = options.facts
    this.#o = options
    this.#out = new Outgoing(options.running)
    this.#mirrors = new Mirrors(options.running)
    this.#unhush = options.running.hush()
  }

  async copy(order: CopyOrder, tell: Tell, signal: AbortSignal): Promise<SwitchedOver> {
    const { running, job } = this.#o
    signal.throwIfAborted()
    const { paused, mirrors } = this.facts
    if ((await running.status()) !== (paused ? 'paused' : 'running'))
      throw fail('wrong_state', 'It was paused, or let go on, at the very moment of its move.', {
        remedy: 'move it again',
      })
    if (paused && (order.mode === 'postcopy' || order.mode === 'hybrid'))
      throw fail('wrong_state', 'A guest that is paused fetches nothing: it goes by pre-copy.', {
        remedy: '--mode precopy',
      })
    try {
      await running.noteMoving({ job, role: 'leaving', ...(paused ? { paused } : {}) })
      await this.#prepare(order)
      if (mirrors.length > 0) await this.#mirror(order, tell, signal)
      void tell.phase('copy')
      let held: Promise<void> | undefined
      const phase = (name: MovePhase) => (held = tell.phase(name))
      const copying = new Copying(running, this.#out, order, { ...this.#afterDisks(tell), phase }, this.#o.wall_ms)
      if (mirrors.length > 0)
        copying.beforeSwitch = async () => {
          // Given up meanwhile, nothing is to be ended any more.
          if (held) await held.then(() => signal.throwIfAborted())
          await this.#mirrors.end()
        }
      return await copying.run(signal)
    } catch (error) {
      await this.#failed(error)
      const fault = toFault(error)
      const { stood_ms } = this.#out
      if (fault.code !== 'does_not_converge' || stood_ms === undefined) throw error
      const stood = `Its guest stood still for ${Math.round(stood_ms)} ms, and runs on here.`
      throw new WadahError({ ...fault, detail: `${fault.detail} ${stood}` }, error)
    }
  }

  async #mirror({ to, limits }: CopyOrder, tell: Tell, signal: AbortSignal): Promise<void> {
    const { exports, tls } = to
    if (!exports) throw fail('invalid', 'The target has no place for its local disks.')
    const { mirrors, ram_bytes } = this.facts
    const bytes_per_s = limits.bandwidth_bytes_per_s
    const progress = (done: number, total: number, rate: number) =>
      tell.progress(diskProgress(done, total, ram_bytes, rate))
    void tell.phase('mirror')
    await this.#mirrors.begin(
      mirrors,
      exports,
      { ...(this.#o.identity && tls ? { tls_name: tls.name } : {}), ...(bytes_per_s ? { bytes_per_s } : {}) },
      { progress },
      signal,
    )
  }

  /** RAM comes after the disks: what is told of it begins where they ended. */
  #afterDisks(tell: Tell): Tell {
    const disks = this.#mirrors.total_bytes
    if (disks === 0) return tell
    const progress = (p: MoveProgress) =>
      tell.progress({ ...p, sent_bytes: p.sent_bytes + disks, total_bytes: p.total_bytes + disks })
    return { ...tell, progress }
  }

  async #prepare({ mode, limits, to }: CopyOrder): Promise<void> {
    const { running, directory, identity, root } = this.#o
    const postcopy = mode === 'postcopy' || mode === 'hybrid' || (mode === 'auto' && limits.may_postcopy === true)
    await setCapabilities(running, { postcopy, preempt: false, pause: this.facts.mirrors.length > 0 })
    if (identity) {
      if (!to.tls) throw fail('invalid', 'The target does not speak TLS, which was asked for.')
      await setTls(running, directory, 'client', identity, to.tls, root ? running.live.uid : null)
    }
    const bandwidth = limits.bandwidth_bytes_per_s || NO_LIMIT
    await running.execute('migrate-set-parameters', {
      'max-bandwidth': bandwidth,
      'max-postcopy-bandwidth': limits.bandwidth_bytes_per_s ?? 0,
    })
  }

  /** Rejecting means that the guest goes on here. */
  async #failed(error: unknown): Promise<void> {
    const { running } = this.#o
    // Its monitor is closed a moment before its end is known.
    const silent = toFault(error).code === 'monitor_silent'
    if (silent) await Promise.race([running.gone, sleep(GONE_MS, undefined, { ref: false })])
    if (running.isGone)
      throw new WadahError(
        {
          ...toFault(error),
          effect: 'partial',
          detail: `The VM ended on its own host: ${(await running.gone).reason}.`,
        },
        error,
      )
    await this.#goOn().catch((why: unknown) => {
      this.#o.log(`${this.vm}: ${(why as Error).message}`)
      throw new WadahError({ ...toFault(error), effect: 'unknown' }, why)
    })
  }

  /** First the mirrors: a write of the guest may hang on one, and with it all that waits for the disks. */
  async #goOn(): Promise<void> {
    const { running } = this.#o
    await this.#mirrors.drop().catch((e: unknown) => this.#o.log(`${this.vm}: ${(e as Error).message}`))
    await goOnHere(running, this.facts.paused === true)
    if (running.live.paused_by === 'job') await running.note(undefined)
  }

  async follow(signal: AbortSignal): Promise<'completed' | 'paused'> {
    await this.#out.look()
    return this.#out.until(
      () => {
        if (this.#out.gone !== undefined || this.#out.status === 'failed')
          throw fail(
            'qemu_failed',
            `Post-copy ended before all of RAM had gone over (${this.#out.gone ?? 'failed'}).`,
            {
              effect: 'unknown',
            },
          )
        if (this.#out.status === 'completed') return 'completed'
        return this.#out.status === 'postcopy-paused' ? 'paused' : undefined
      },
      FOLLOW_MS,
      signal,
    )
  }

  async breakIfStuck(signal: AbortSignal): Promise<void> {
    const { running } = this.#o
    const sent = async () => {
      const { status, ram } = await ask(running)
      return status === 'postcopy-active' ? ram?.transferred : undefined
    }
    const before = await sent()
    if (before === undefined) return
    await sleep(STUCK_MS, undefined, { signal })
    if ((await sent()) !== before) return
    this.#o.log(`${this.vm}: nothing of it goes over after a cut: its connection is made anew`)
    await running.execute('migrate-pause').catch(() => {})
  }

  async recover(ask: (mine?: MovePeer) => Promise<RecoverAt>, signal: AbortSignal): Promise<void> {
    const { running, directory, identify, root } = this.#o
    const set = (await running.execute('query-migrate-parameters', {}, { signal })) as { 'tls-creds'?: string }
    const mine = set['tls-creds'] ? await identify() : undefined
    const to = await ask(mine && { ca: mine.ca, name: mine.name })
    if (mine) {
      if (!to.tls) throw fail('invalid', 'The target does not speak TLS any more.')
      await setTls(running, directory, 'client', mine, to.tls, root ? running.live.uid : null)
    }
    this.#out.status = CONNECTS
    await running.execute('migrate', { uri: tcpUri(to.address), resume: true }, { signal })
    // Until it is through to the other one it is paused, by QEMU's own word; and one that was asked again meanwhile would break the connection.
    await this.#out.until(
      () => this.#out.status !== CONNECTS || this.#out.gone !== undefined || undefined,
      CONNECT_MS,
      signal,
    )
  }

  async claim(): Promise<QemuClaim> {
    return claimOf(await ask(this.#o.running))
  }

  async takeBack(): Promise<void> {
    await this.#goOn()
  }

  async quit(): Promise<void> {
    await this.#o.stop()
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const { running, log } = this.#o
    if (!running.isGone) {
      try {
        await this.#mirrors.drop()
        await dropSetup(running)
        await running.noteMoving(undefined)
      } catch (error) {
        log(`${this.vm}: after the move: ${(error as Error).message}`)
      }
    }
    await this.letGo()
  }

  async letGo(): Promise<void> {
    this.#out.close()
    await this.#unhush()
  }
}
