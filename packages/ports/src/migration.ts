/**
 * A move of a running VM from one machine to another, as the cluster asks the two machines for it, and what the two daemons tell each
 * other. Plain data and small objects; docs/migration.md has the order of it all.
 */
import type { Fault } from '@wadah/api/fault'
import type { BootRecord, LaunchRequest } from './machine.ts'
import type { PoolDefinition, VolumeDefinition } from './volumes.ts'

/**
 * `precopy`: all of RAM first, then the switch. `postcopy`: the guest goes over at once and fetches its RAM. `hybrid`: some rounds of
 * the first, then the second. `auto`: the first, and the second only when it can't come to an end and it is allowed.
 */
export type MoveMode = 'precopy' | 'postcopy' | 'hybrid' | 'auto'

/** In their order; on the source all, on the target those it takes part in. Each is kept with its begin and end. */
export type MovePhase =
  /** Source: finds out what it has to tell. */
  | 'offer'
  /** Target: disks, taps, a QEMU that waits. */
  | 'prepare'
  /** The hand-over is sealed in the store. */
  | 'seal'
  /** Local disks are copied while the guest runs; what it writes meanwhile goes to both. */
  | 'mirror'
  /** RAM is copied while the guest runs. */
  | 'copy'
  /** The guest stands still, until the source has let go of it. */
  | 'switch'
  /** `go` was said, until the guest runs on the target. */
  | 'start'
  /** The placement is committed. */
  | 'commit'
  /** Post-copy: the rest of RAM follows. */
  | 'follow'
  /** The source's QEMU ends. */
  | 'quit'
export type PhaseTimes = { phase: MovePhase; begin_ms: number; end_ms?: number }

/** What the peer of a TLS connection must be: signed by this CA, with this name. */
export type MovePeer = { ca: string; name: string }

export type MoveDisk = {
  name: string
  size_bytes: number
  format: 'qcow2' | 'raw'
  /** It stands on layers that the target has by then: what it holds itself goes. */
  layered?: true
}
/** What a target has to know. */
export type MoveFacts = {
  vm: string
  boot: BootRecord
  /** `boot.cpu` is what its QEMU has given the guest. The release before says what QEMU was asked for. */
  cpu_exact?: true
  qemu_version: string
  ram_bytes: number
  /** Absent: QEMU to QEMU in the clear. */
  tls?: MovePeer
  /** Disks that the target does not see, to be copied. */
  mirrors: MoveDisk[]
  /** The user has paused it: it goes over as it is, and stays so. */
  paused?: true
  /** Files of the machine's own, base64: UEFI variables. A TPM's state comes with RAM. */
  state?: Record<string, string>
}

export type MoveAddress = { host: string; port: number }
/** What a source has to know. */
export type MoveAccepted = {
  qemu_version: string
  address: MoveAddress
  tls?: MovePeer
  /** Where to copy local disks to: disk → name of the export. */
  exports?: { address: MoveAddress; disks: Record<string, string> }
  /** `auto`: it can't become post-copy here; said only where the offer allows it (`or_precopy`). */
  no_postcopy?: { reason: string; remedy: string }
}

export type MoveLimits = {
  /** The guest may stand still for this long, and no longer. */
  max_stall_ms: number
  /** 0 or absent: as fast as it goes. */
  bandwidth_bytes_per_s?: number
  /** `hybrid`: so many rounds before it goes over. */
  rounds?: number
  /** `auto`: whether it may end as post-copy. */
  may_postcopy?: boolean
  /**
   * Without hardware acceleration (TCG) RAM is copied in one pass, for QEMU 7.2 loses writes when it looks at a running guest's dirty pages
   * (docs/migration.md). This lets it look all the same: for measuring.
   */
  tcg_rounds?: boolean
  /** Given up after this long without having switched. */
  deadline_ms?: number
}
export type CopyOrder = {
  mode: MoveMode
  to: MoveAccepted
  limits: MoveLimits
  /** Where QEMU goes over RAM once only, `auto` chooses by it. */
  foreseen?: Promise<MoveForecast | undefined>
}

export type MoveProgress = {
  /** Bytes of RAM that are still to be sent; of disks. */
  remaining_bytes: number
  disk_remaining_bytes?: number
  sent_bytes: number
  total_bytes: number
  dirty_bytes_per_s: number
  bandwidth_bytes_per_s: number
  round: number
  /** What QEMU is told to bear at this moment. */
  downtime_limit_ms: number
}

/** All times are those of this machine's clock, ms since 1970 with fractions, as QEMU stamps its events. */
export type SwitchedOver = {
  how: 'precopy' | 'postcopy'
  /** The last STOP; absent when the guest did not run. */
  stop_ms?: number
  /** When the source said that it has let go. */
  released_ms: number
}
/** QEMU's own words after the end. */
export type QemuClaim = {
  downtime_ms?: number
  total_ms?: number
  sent_bytes?: number
  rounds?: number
  bandwidth_mbps?: number
}

/** What a QEMU says it is; `gone`: proved that there is none. */
export type QemuAnswer =
  | { is: 'gone' }
  | { is: 'unknown'; why: string }
  | { is: 'there'; status: string; migration: string; epoch: number; job?: string }

/** Where a broken post-copy goes on; the keys of both ends are new ones. */
export type RecoverAt = { address: MoveAddress; tls?: MovePeer }

/** The source's half of one move. */
export interface LeavingVm {
  readonly vm: string
  readonly facts: MoveFacts
  /**
   * Copies until the source has let go of the guest: pre-copy is complete, or post-copy has begun. Rejects only when the guest goes on
   * here, or with effect `unknown`. The signal gives it up, as long as the source has not let go.
   * @param tell what `phase` returns of the switch is waited for where QEMU waits there anyway, for its disks: a test may hold it
   * @throws WadahError `cancelled`, `does_not_converge` (with the number that would do), `qemu_failed`, `timeout`, `wrong_state`
   */
  copy(
    order: CopyOrder,
    tell: {
      progress(p: MoveProgress): void
      phase(phase: MovePhase): Promise<void> | undefined
      log(line: string): void
    },
    signal: AbortSignal,
  ): Promise<SwitchedOver>
  /** Post-copy: until all of RAM has gone over. A broken connection: `recover`. */
  follow(signal: AbortSignal): Promise<'completed' | 'paused'>
  /** Post-copy of which nothing goes over, after a line was cut: broken, to be recovered, before TCP tries it again by itself. */
  breakIfStuck(signal: AbortSignal): Promise<void>
  /** Post-copy that was paused by a broken connection goes on through a new one. `ask`: where to, told who comes (TLS). */
  recover(ask: (mine?: MovePeer) => Promise<RecoverAt>, signal: AbortSignal): Promise<void>
  /** What QEMU says of it. Not while the guest stands still. */
  claim(): Promise<QemuClaim>
  /**
   * The guest goes on here after all. Only before `go`, or when the target has given its word that it never will.
   * @throws WadahError effect `unknown`: it does not go on yet; `in_use`: before the QEMU over there has ended, which has its disks
   */
  takeBack(): Promise<void>
  /** Ends this QEMU: the guest runs elsewhere, and that is committed. */
  quit(): Promise<void>
  /** Lets go of whatever this move holds, also after a failure; the guest stays as it is. */
  close(): Promise<void>
  /** What it holds of the VM's monitor; that it is on its way stays noted, for whoever finds out how it ended. */
  letGo(): Promise<void>
}

/** The target's half of one move. */
export interface ArrivingVm {
  readonly vm: string
  readonly epoch: number
  readonly accepted: MoveAccepted
  /** Until all that is needed to run is here. Wakes by an event; post-copy has none, there QEMU is asked again and again. */
  loaded(how: 'precopy' | 'postcopy', signal: AbortSignal): Promise<void>
  /** Lets the guest run, or takes a paused one over. Only with `go` in hand. Returns when QEMU says that it runs. */
  go(signal: AbortSignal): Promise<{ run_ms: number }>
  /** Whether nothing of it is still to come: post-copy has ended, or there was none. Of one whose QEMU is gone: had ended, before that. */
  whole(): Promise<boolean>
  /** Post-copy on a connection that broke: listens anew, on this address of the machine, by TLS where it is told who comes. */
  recover(listen: string, peer: MovePeer | undefined, signal: AbortSignal): Promise<RecoverAt>
  /** Announced, observed, capabilities taken back, mirrors' exports closed. After post-copy: all of RAM is here. */
  settle(how: 'precopy' | 'postcopy', signal: AbortSignal): Promise<void>
  /** Ends the QEMU that waits and takes back what was made for it. Never after `go`, but for one that provably never ran, or never can again. */
  undo(): Promise<void>
  /** Settles when its QEMU is gone. */
  readonly gone: Promise<{ reason: string }>
}

export type ArrivalRequest = {
  job: string
  mode: MoveMode
  /** Whether it may become post-copy. */
  may_postcopy: boolean
  /** `auto`: where it can't become post-copy here, it comes by pre-copy alone. */
  or_precopy?: true
  tls: boolean
  /** The address of this machine to listen on. */
  listen: string
  request: LaunchRequest
  facts: MoveFacts
  /** Volumes that were made empty here to take what is mirrored: disk → volume. */
  mirrors?: Record<string, { pool: PoolDefinition; volume: VolumeDefinition }>
}

export type PostcopySupport = { ok: true } | { ok: false; reason: string; remedy: string }

export interface Migration {
  /** Opens a move of a VM that runs here. `mirrors`: disks that the target can't see; `layered`: those of them that stand on layers which it has, with the volume that QEMU must be writing to. @throws `wrong_state` that says why it can't be moved */
  leave(
    vm: string,
    request: { job: string; tls: boolean; mirrors?: readonly string[]; layered?: Record<string, string> },
    signal: AbortSignal,
  ): Promise<LeavingVm>
  /** Makes everything for a VM that is to come, and a QEMU that waits for it. Takes everything back when it can't. */
  arrive(request: ArrivalRequest, signal: AbortSignal): Promise<ArrivingVm>
  /** After a restart of the daemon: the half of a move whose QEMU is still there. */
  rejoinLeaving(vm: string, job: string): Promise<LeavingVm | undefined>
  rejoinArriving(vm: string, job: string): Promise<ArrivingVm | undefined>
  /** VMs of which something lies here; with the job of the move that brings one. */
  found(): Promise<{ vm: string; job?: string }[]>
  /** Asks the QEMU of this VM here what it is; never a guess. */
  ask(vm: string): Promise<QemuAnswer>
  /** Whether an unprivileged QEMU here may be the target of post-copy. */
  postcopy(): Promise<PostcopySupport>
  /** Bytes per second that the guest writes to, sampled for a second; undefined while it moves or when QEMU can't. */
  dirtyRate(vm: string, signal: AbortSignal): Promise<number | undefined>
  /** Bytes of its RAM that hold something; undefined when it does not run. */
  usedRam(vm: string): Promise<number | undefined>
  /** ms since 1970 with fractions, the clock QEMU stamps its events with. */
  readonly wall_ms: () => number
}

// ---- what the two daemons tell each other ------------------------------------------------------------------------------

/** One stream per move. Fields that are not known are kept out of the way, so that versions can differ. */
export type MoveMessage =
  | { type: 'offer'; version: number; job: string; offer: MoveOffer }
  /** Target: as many as it takes at a time (`most`) come already. Said again and again, until it is this one's turn. */
  | { type: 'wait'; job: string; most: number }
  | { type: 'accept'; job: string; accepted: MoveAccepted }
  | { type: 'refuse'; job: string; fault: Fault }
  | { type: 'progress'; progress: MoveProgress }
  /** t1: sent; the answer adds t2: received, t3: answered. The asker knows t4 (RFC 5905, section 8). */
  | { type: 'heartbeat'; n: number; t1_ms: number }
  | { type: 'heartbeat-answer'; n: number; t1_ms: number; t2_ms: number; t3_ms: number }
  | { type: 'sealed'; job: string; epoch: number }
  /** Target: post-copy; what is needed to run is here. */
  | { type: 'loaded'; job: string }
  | { type: 'go'; job: string; how: 'precopy' | 'postcopy' }
  | { type: 'running'; job: string; run_ms: number }
  /** Target: the placement is committed, the source may quit. */
  | { type: 'committed'; job: string }
  | { type: 'done'; job: string }
  /** Either, before `go`. From the target also after it: `undone` is its word that its QEMU is gone and will not come back. */
  | { type: 'abort'; job: string; fault: Fault; undone?: true }
  /** Post-copy broke: where to go on to. */
  | { type: 'recover'; job: string; tls?: MovePeer }
  | ({ type: 'recover-at'; job: string } & RecoverAt)
  /** First on a new stream after a break. */
  | { type: 'resume'; version: number; job: string; vm: string }
  /** `lost`: post-copy; the QEMU that ran there ended before all of the memory had come. */
  | { type: 'resumed'; job: string; state: ArrivalState; run_ms?: number; lost?: true }
  /** A stopped VM: what lies on its host alone is to be taken. First on a stream of its own. */
  | { type: 'bring'; version: number; job: string; bring: BringOffer }
  /** Target: it has room, and what is small; the disks may come, each over a stream of its own. */
  | { type: 'ready'; job: string }
  | { type: 'bringing'; job: string; volume: string; done_bytes: number; total_bytes: number }
  /** Target: this volume is whole and on the disk; without one: all is. */
  | { type: 'brought'; job: string; volume?: string }

/** How far a target is. `waiting`: QEMU is there, `go` was not heard. `unknown`: nobody knows the job here, and no QEMU of the VM is here. */
export type ArrivalState = 'waiting' | 'running' | 'committed' | 'undone' | 'unknown' | 'cannot-tell'

export type MoveOffer = {
  vm: string
  name: string
  /** Of the placement that the target is to have. */
  epoch: number
  mode: MoveMode
  limits: MoveLimits
  facts: MoveFacts
  from: string
  /** This source reads `no_postcopy`. One of the release before does not: its QEMU would begin as if both sides could. */
  or_precopy?: true
}

/** What a stopped VM has on its host alone. */
export type BringOffer = {
  vm: string
  /** Of the placement that the target is to have. */
  epoch: number
  /** `bytes`: what each takes at the source, as far as that is known. */
  disks: { volume: string; bytes: number; as?: 'layer' }[]
  /** The machine's own files (`Machine.readState`). */
  state: Record<string, string>
  bandwidth_bytes_per_s?: number
  /** It knows `wait`. */
  waits?: boolean
}

/** What was measured, kept with the job. */
export type MoveReport = {
  mode: MoveMode
  how: 'precopy' | 'postcopy'
  /** From the source's last STOP to the target's first RESUME, on the source's clock. */
  stall_ms: number
  /** The two clocks can be this far apart from what was estimated. */
  stall_error_ms: number
  /** It was paused and still is: nothing stood still, and `stall_ms` is 0. */
  paused?: true
  claim: QemuClaim
  total_ms: number
  phases: PhaseTimes[]
  clock: { offset_ms: number; round_trip_ms: number; samples: number }
  forecast?: MoveForecast
  /** Achieved ÷ forecast. */
  ratio?: { stall?: number; total?: number; bytes?: number }
  notes: string[]
}

export type MoveForecast = {
  /** `auto`: what it will come to. */
  how: 'precopy' | 'postcopy'
  converges: boolean
  rounds: number
  total_ms: number
  stall_ms: number
  /** Of RAM. */
  bytes: number
  /** Of local disks, beside it. */
  disk_bytes?: number
  why?: string
}
