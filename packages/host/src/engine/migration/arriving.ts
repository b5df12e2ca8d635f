/** The target's half of a move over QMP. What each call promises stands in packages/ports/src/migration.ts. */
import { fail } from '@wadah/api/fault'
import type { ArrivingVm, MoveAccepted, MoveAddress, MovePeer, RecoverAt } from '@wadah/ports/migration'
import type { QmpEvent } from '@wadah/qmp/client'
import type { VmDirectory } from '../directory.ts'
import type { RunningVm } from '../running-vm.ts'
import { unlessTold } from '../unless-told.ts'
import type { MoveIdentity } from './certificates.ts'
import { unexportDisks } from './mirror.ts'
import { type Info, ask, stampOf, statusOf } from './outgoing.ts'
import { type Relay, relay } from './relay.ts'
import { dropSetup } from './setup.ts'

const RESUME_MS = 30_000
const LISTEN_MS = 10_000
/** Of what a connection's end causes. */
const NOTICE_MS = 3_000
const BY_ITSELF_MS = 1_000
const PAUSED = 'postcopy-paused'
const FOLLOW_MS = 7 * 24 * 3600 * 1000

export type ArrivingOptions = {
  running: RunningVm
  job: string
  directory: VmDirectory
  /** Whose QEMU it is; null: the daemon's own user. */
  uid: number | null
  /** A new one, where the connection has to be made anew. */
  identify: () => Promise<MoveIdentity>
  accepted: MoveAccepted
  /** Ends the VM here, with all that was made for it. */
  undo: () => Promise<void>
  log: (line: string) => void
}

export class Arriving implements ArrivingVm {
  readonly vm: string
  readonly epoch: number
  readonly accepted: MoveAccepted
  readonly gone: Promise<{ reason: string }>
  readonly #o: ArrivingOptions
  readonly #off: () => void
  readonly #unhush: () => Promise<void>
  readonly #waiting = new Set<() => void>()
  #status = 'setup'
  #told = 0
  #run_ms: number | undefined
  #isGone: string | undefined
  #relay: Relay | undefined
  #isPlain: Promise<unknown> | undefined

  constructor(options: ArrivingOptions) {
    const { running } = options
    this.#o = options
    this.vm = running.vm
    this.epoch = running.live.epoch
    this.accepted = options.accepted
    this.gone = running.gone
    this.#unhush = running.hush()
    this.#off = running.subscribe((event) => this.#on(event))
    void running.gone.then(({ reason }) => {
      this.#isGone = reason
      this.#wake()
    })
  }

  #on(event: QmpEvent): void {
    if (event.event === 'MIGRATION') {
      this.#told += 1
      const status = statusOf(event)
      // One that listens anew says `setup`, and is paused until somebody comes.
      if (status !== 'setup' || this.#status !== PAUSED) this.#status = status
      // While its monitor answers; and the guest does not yet stand still.
      if (this.#status === 'active') void this.#plain()
    }
    // The first: what it does later is not the move's.
    else if (event.event === 'RESUME') this.#run_ms ??= stampOf(event)
    else return
    this.#wake()
  }
  #wake(): void {
    for (const look of [...this.#waiting]) look()
  }
  /** Asks QEMU for what its events may not have said to this daemon. */
  async look(): Promise<void> {
    this.#status =
      (
        await unlessTold(
          () => this.#told,
          () => ask(this.#o.running),
        )
      )?.status ?? this.#status
    this.#wake()
  }

  async #until(look: () => boolean, what: string, timeout_ms: number, signal: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const check = () => {
      if (look()) resolve()
      else if (this.#isGone !== undefined)
        reject(fail('qemu_failed', `QEMU, which waited for the guest, ended: ${this.#isGone}.`))
    }
    const stop = () => reject(signal.reason as Error)
    const timer = setTimeout(
      () => reject(fail('timeout', `QEMU did not ${what} within ${timeout_ms / 1000} s.`)),
      timeout_ms,
    )
    signal.addEventListener('abort', stop, { once: true })
    this.#waiting.add(check)
    try {
      signal.throwIfAborted()
      check()
      await promise
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      this.#waiting.delete(check)
    }
  }

  async loaded(how: 'precopy' | 'postcopy', signal: AbortSignal): Promise<void> {
    const loadedBy = how === 'precopy' ? ['completed'] : ['postcopy-active', 'completed']
    await this.#until(() => loadedBy.includes(this.#status), 'load the guest', FOLLOW_MS, signal)
    if (how === 'precopy') return
    // There is no event for it: the question is put again on the open monitor, which answers once the devices are loaded.
    while ((await this.#o.running.status({ signal })) === 'inmigrate') signal.throwIfAborted()
  }

  async go(signal: AbortSignal): Promise<{ run_ms: number }> {
    const { running } = this.#o
    if (running.live.moving?.paused) return this.#take(signal)
    await running.execute('cont', {}, { signal })
    if (this.#run_ms === undefined)
      await this.#until(() => this.#run_ms !== undefined, 'let the guest run', RESUME_MS, signal)
    return { run_ms: this.#run_ms ?? Number.NaN }
  }

  /** A paused guest is this host's once that is written down: nothing that QEMU does tells it from one that waits. */
  async #take(signal: AbortSignal): Promise<{ run_ms: number }> {
    const { running } = this.#o
    await this.#until(() => this.#status === 'completed', 'load the guest', RESUME_MS, signal)
    await running.noteTaken()
    return { run_ms: Date.now() }
  }

  async whole(): Promise<boolean> {
    if (this.#isGone !== undefined) return this.#status === 'completed'
    return !(await ask(this.#o.running)).status?.startsWith('postcopy')
  }

  /** Asks QEMU nothing but out of band: its main loop may wait for the page that is to come (relay.ts). */
  async recover(listen: string, peer: MovePeer | undefined, signal: AbortSignal): Promise<RecoverAt> {
    const { running, directory, identify, accepted } = this.#o
    if (accepted.tls && !peer) throw fail('invalid', 'The source does not speak TLS any more.')
    const mine = peer && (await identify())
    await this.#plain()
    // A connection that breaks in this state is the last: QEMU takes no other (before 8.2, migration.c, qmp_migrate_recover).
    if (this.#status === 'postcopy-recover')
      throw fail('busy', 'The QEMU that takes the guest is about to go on with it.')
    this.#relay?.close()
    const notices = (ms: number) =>
      this.#until(() => this.#status === PAUSED, 'notice that it lost its source', ms, signal)
    await notices(BY_ITSELF_MS).catch(async () => {
      // It mostly listens. Not told at once: told while it notices by itself it crashes (7.2, qmp_migrate_pause uses the closed file).
      await running.execute('migrate-pause', {}, { oob: true, timeout_ms: NOTICE_MS, signal }).catch(() => {})
      await notices(NOTICE_MS)
    })
    const path = directory.recover
    await running.execute('migrate-recover', { uri: `unix:${path}` }, { oob: true, timeout_ms: LISTEN_MS, signal })
    const way = await relay(listen, { path, uid: this.#o.uid }, mine && peer ? { mine, peer } : undefined)
    // Asked twice at once, over an old stream and a new one: the last one counts.
    this.#relay?.close()
    this.#relay = way
    return {
      address: { host: listen, port: way.port },
      ...(mine ? { tls: { ca: mine.ca, name: mine.name } } : {}),
    }
  }

  /** From here on this QEMU takes connections as they are: the first has come, and each later one comes through the relay. */
  async #plain(): Promise<void> {
    this.#isPlain ??= this.#o.running
      .execute('migrate-set-parameters', { 'tls-creds': '' }, { timeout_ms: NOTICE_MS })
      .then(
        () => true,
        () => (this.#isPlain = undefined),
      )
    await this.#isPlain
  }

  async settle(how: 'precopy' | 'postcopy', signal: AbortSignal): Promise<void> {
    const { running } = this.#o
    if (how === 'postcopy')
      await this.#until(() => this.#status === 'completed', 'get the rest of RAM', FOLLOW_MS, signal)
    await unexportDisks(running)
    // QEMU's own announcement went out when it had loaded, before the guest ran; switches may have heard the source since.
    await running
      .execute('announce-self', { initial: 50, max: 550, rounds: 5, step: 100 })
      .catch((error: unknown) => this.#o.log(`${this.vm}: not announced: ${(error as Error).message}`))
    this.#off()
    try {
      await dropSetup(running)
    } finally {
      // Not before: the next move waits for this, and what it sets must not be taken back.
      await running.noteMoving(undefined)
    }
    await this.#unhush()
    await running.begin()
  }

  /** What it holds of the VM's monitor; QEMU waits on. */
  async letGo(): Promise<void> {
    this.#off()
    await this.#unhush()
  }

  async undo(): Promise<void> {
    await this.letGo()
    await this.#o.undo()
  }
}

/** Where QEMU listens, now that it was told to. */
export async function listening(running: RunningVm, host: string, signal: AbortSignal): Promise<MoveAddress> {
  for (const end = performance.now() + LISTEN_MS; ; ) {
    const info = (await running.execute('query-migrate', {}, { signal })) as Info & {
      'socket-address'?: { type: string; host?: string; port?: string }[]
    }
    const port = Number(info['socket-address']?.find((a) => a.type === 'inet')?.port)
    if (Number.isInteger(port) && port > 0) return { host, port }
    if (performance.now() > end) throw fail('qemu_failed', `QEMU does not listen on ${host} for the guest.`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
