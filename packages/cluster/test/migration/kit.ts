/** Two machines without QEMU: what each half was asked, and where the guest runs. */
import { fail } from '@wadah/api/fault'
import type {
  ArrivalRequest,
  ArrivingVm,
  CopyOrder,
  LeavingVm,
  MoveAccepted,
  MoveFacts,
  SwitchedOver,
} from '@wadah/ports/migration'
import type { LaunchRequest } from '@wadah/ports/machine'
import { Arrivals, type MoveInPorts } from '../../src/migration/target.ts'
import type { MoveOut, MoveOutPorts } from '../../src/migration/source.ts'
import { type Wire, wire } from '../../src/migration/testing.ts'

export const JOB = 'job-aaaaaaaaaa'
export const VM = 'vm-aaaaaaaaaa'
const facts = { vm: VM, boot: {}, qemu_version: '7.2', ram_bytes: 1, mirrors: [] } as unknown as MoveFacts
const accepted: MoveAccepted = { qemu_version: '7.2', address: { host: '127.0.0.1', port: 1 } }

export const NO_POSTCOPY = { reason: 'its kernel forbids it', remedy: 'sysctl -w something=1' }

export class World {
  /** Runs on the source, stands still, runs on the target. */
  source: 'running' | 'let-go' | 'gone' = 'running'
  target: 'none' | 'waiting' | 'running' = 'none'
  how: SwitchedOver['how'] = 'precopy'
  placement = { host: 'a', epoch: 1, sealed: false }
  /** The job of the move has ended at the source, and the store says so. */
  over = false
  /** Post-copy broke for good: what runs on the target may be ended. */
  lost = false
  /** Post-copy goes on and on: neither end says anything of itself. */
  follows = false
  /** The source's QEMU has noticed that the connection is gone. */
  paused = false
  /** The target's kernel lets QEMU be no target of post-copy. */
  declines = false
  /** What the target's machine was asked for, and how the source was told to copy. */
  asked: ArrivalRequest | undefined
  copied: CopyOrder | undefined
  /** Throws at the call of this name, once. */
  fails: string | undefined
  readonly calls: string[] = []
  readonly gone = Promise.withResolvers<{ reason: string }>()
  /** At no time it may run in both. */
  check(what: string): void {
    this.calls.push(what)
    if (this.source === 'running' && this.target === 'running') throw new Error(`two run (at ${what})`)
    if (this.fails === what) {
      this.fails = undefined
      throw fail('qemu_failed', `injected: ${what}`)
    }
  }

  leaving(): LeavingVm {
    return {
      vm: VM,
      facts,
      copy: async (order, tell, signal) => {
        this.copied = order
        void tell.phase('copy')
        try {
          this.check('copy')
          await new Promise((resolve) => setTimeout(resolve, 5))
          signal.throwIfAborted()
          void tell.phase('switch')
        } catch (error) {
          this.source = 'running'
          throw error
        }
        this.source = 'let-go'
        return { how: this.how, stop_ms: 1, released_ms: 2 }
      },
      follow: async (signal) => {
        this.check('follow')
        while (this.follows) {
          if (this.paused) return 'paused'
          signal.throwIfAborted()
          await new Promise((resolve) => setTimeout(resolve, 1))
        }
        return 'completed'
      },
      breakIfStuck: async () => this.check('breakIfStuck'),
      recover: async (ask) => {
        await ask()
        this.check('recover')
      },
      claim: async () => ({ downtime_ms: 1 }),
      takeBack: async () => {
        if (this.target === 'running') throw new Error('taken back while it runs over there')
        if (this.source === 'let-go' && this.how === 'postcopy' && this.target === 'waiting')
          throw fail('in_use', 'the QEMU over there has its disks', { effect: 'unknown' })
        this.source = 'running'
        this.check('takeBack')
      },
      quit: async () => {
        this.check('quit')
        if (this.source !== 'gone' && this.placement.host !== 'b' && this.target !== 'none')
          throw new Error('ended before it was committed')
        this.source = 'gone'
      },
      close: async () => {},
      letGo: async () => {},
    }
  }
  arriving(): ArrivingVm {
    return {
      vm: VM,
      epoch: 2,
      accepted: { ...accepted, ...(this.declines ? { no_postcopy: NO_POSTCOPY } : {}) },
      loaded: async () => {
        while (this.source !== 'let-go') await new Promise((resolve) => setTimeout(resolve, 1))
        this.check('loaded')
      },
      go: async () => {
        this.check('go')
        this.target = 'running'
        this.check('runs')
        return { run_ms: 11 }
      },
      whole: async () => !this.lost,
      recover: async () => ({ address: { host: '127.0.0.1', port: 2 } }),
      settle: async () => this.check('settle'),
      undo: async () => {
        this.check('undo')
        if (this.target === 'running' && !this.lost) throw new Error('undone while it runs')
        this.target = 'none'
      },
      gone: this.gone.promise,
    }
  }
  get a(): MoveOutPorts['migration'] {
    return {
      wall_ms: () => performance.now(),
      leave: async () => {
        this.check('leave')
        return this.leaving()
      },
      rejoinLeaving: async () => (this.source === 'gone' ? undefined : this.leaving()),
      ask: async () =>
        this.source === 'gone'
          ? { is: 'gone' }
          : {
              is: 'there',
              status: this.source === 'running' ? 'running' : 'postmigrate',
              migration: this.source === 'running' ? 'active' : this.follows ? 'postcopy-active' : 'completed',
              epoch: 1,
            },
    }
  }
  get b(): MoveInPorts['migration'] {
    return {
      wall_ms: () => performance.now() + 1_000,
      arrive: async (request) => {
        this.asked = request
        this.check('arrive')
        this.target = 'waiting'
        return this.arriving()
      },
      rejoinArriving: async () => (this.target === 'none' ? undefined : this.arriving()),
      ask: async () =>
        this.target === 'none'
          ? { is: 'gone' }
          : { is: 'there', status: this.target === 'running' ? 'running' : 'paused', migration: 'completed', epoch: 2 },
    }
  }

  readonly order: MoveOut = {
    job: JOB,
    vm: VM,
    name: 'web',
    from: 'host-aaaaaaaaaa',
    epoch: 2,
    mode: 'precopy',
    limits: { max_stall_ms: 300 },
    tls: true,
  }
  /** The target's QEMU ends; usually the source's does not notice. */
  killTarget(noticed = false): void {
    this.lost = true
    this.paused = noticed
    this.target = 'none'
    this.gone.resolve({ reason: 'killed' })
  }

  readonly stop = new AbortController()
  arrivals = this.daemon()
  /** Another daemon on the target: it knows nothing but what its machine does. */
  daemon(over: Partial<MoveInPorts> = {}): Arrivals {
    return new Arrivals(
      {
        migration: this.b,
        prepare: async () => {
          this.check('prepare')
          return { request: { vm: VM } as LaunchRequest, listen: '127.0.0.1', tls: true }
        },
        isBy: async (_job, host) => host === 'host-source',
        commitMoved: async (_job, { epoch }) => {
          this.check('commit')
          this.placement = { host: 'b', epoch, sealed: false }
        },
        isOver: async () => this.placement.host === 'a' && this.over,
        address: () => '127.0.0.1',
        log: () => {},
        ...over,
      },
      this.stop.signal,
    )
  }
  ports(stream: Wire, over: Partial<MoveOutPorts> = {}): MoveOutPorts {
    void this.arrivals.handle(stream.b, 'host-source')
    return {
      migration: this.a,
      link: stream.a,
      relink: async () => {
        const again = wire()
        void this.arrivals.handle(again.b, 'host-source')
        return again.a
      },
      seal: async () => {
        this.check('seal')
        this.placement.sealed = true
      },
      unseal: async () => {
        this.check('unseal')
        this.placement.sealed = false
      },
      isPlaced: async () => this.placement.host === 'b',
      log: () => {},
      ...over,
    }
  }
}
