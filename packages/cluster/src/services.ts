/** What routes call: one function for each thing the API can do. Types only; the implementations lie beside. */
import type {
  Cluster,
  ClusterEdit,
  ClusterHost,
  Drain,
  DrainPlan,
  JoinToken,
  JoinTokenCreate,
  MoveWishes,
} from '@wadah/api/schema/cluster'
import type { MovePlan, VmMigrate } from '@wadah/api/schema/migration'
import type { Rule, RuleCreate } from '@wadah/api/schema/rule'
import type { HostDevices } from '@wadah/api/schema/devices'
import type { Subject } from '@wadah/api/schema/access'
import type { Exec, ExecResult, GuestInfo } from '@wadah/api/schema/guest'
import type { Host, HostCheck } from '@wadah/api/schema/host'
import type { ImageFromVm, ImageImport, ImageUpload, ImportFormat, VolumeUpload } from '@wadah/api/schema/imports'
import type { Job } from '@wadah/api/schema/job'
import type { FirewallGroup, FirewallGroupCreate, FirewallGroupEdit, VmFirewall } from '@wadah/api/schema/firewall'
import type { Network, NetworkCreate } from '@wadah/api/schema/network'
import type {
  Image,
  ImageBuild,
  ImageWarm,
  Pool,
  PoolCreate,
  Recipe,
  Volume,
  VolumeClone,
  VolumeCreate,
} from '@wadah/api/schema/storage'
import type { Snapshot, SnapshotCreate, SnapshotRevert } from '@wadah/api/schema/snapshot'
import type { Vm, VmCreate, VmEdit, VmState } from '@wadah/api/schema/vm'
import type { ConsoleStream, ConsoleTarget } from '@wadah/ports/machine'

/** Who asks. `idempotency`: the same key and digest again gives the same job; the same key with another digest is refused. */
export type Caller = { subject: Subject; project: string; idempotency?: { key: string; digest: string } }
export type ListQuery = { limit?: number; cursor?: string }
export type PageOf<T> = { items: T[]; next?: string }
/** From `If-Match`: refused with `precondition_failed` when the generation is another by now. */
export type IfGeneration = number | undefined

export interface VmService {
  list(
    caller: Caller,
    q: ListQuery & {
      name?: string
      state?: VmState
      image?: string
      network?: string
      label?: string
      selector?: string
    },
  ): PageOf<Vm>
  get(caller: Caller, ref: string): Vm
  create(caller: Caller, body: VmCreate): Promise<Job>
  edit(caller: Caller, ref: string, body: VmEdit, generation: IfGeneration): Promise<Vm>
  delete(
    caller: Caller,
    ref: string,
    options: { force?: boolean; keep_disks?: boolean },
    generation: IfGeneration,
  ): Promise<Job>
  start(caller: Caller, ref: string): Promise<Job>
  stop(caller: Caller, ref: string): Promise<Job>
  shutdown(caller: Caller, ref: string, body: { timeout_s?: number; force?: boolean }): Promise<Job>
  clone(caller: Caller, ref: string, body: { name: string; start?: boolean }): Promise<Job>
  migrate(caller: Caller, ref: string, body: VmMigrate): Promise<Job>
  planMove(caller: Caller, ref: string, body: VmMigrate, signal: AbortSignal): Promise<MovePlan>
  reset(caller: Caller, ref: string): Promise<Vm>
  pause(caller: Caller, ref: string): Promise<Vm>
  resume(caller: Caller, ref: string): Promise<Vm>
  exec(caller: Caller, ref: string, body: Exec, signal: AbortSignal): Promise<ExecResult>
  readFile(caller: Caller, ref: string, path: string, signal: AbortSignal): AsyncIterable<Uint8Array>
  writeFile(
    caller: Caller,
    ref: string,
    path: string,
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void>
  guest(caller: Caller, ref: string, signal: AbortSignal): Promise<GuestInfo>
  freeze(caller: Caller, ref: string, timeout_s: number, signal: AbortSignal): Promise<{ file_systems: number }>
  thaw(caller: Caller, ref: string, signal: AbortSignal): Promise<{ file_systems: number }>
  /** Whether a console may be opened now; the ticket itself is the daemon's. Returns the VM's id. */
  checkConsole(caller: Caller, ref: string, target: ConsoleTarget): string
  console(vmId: string, target: ConsoleTarget): Promise<ConsoleStream>
  /** `image` undefined: takes out what is in the drive. */
  changeMedium(
    caller: Caller,
    ref: string,
    cdrom: string,
    image: string | undefined,
    force: boolean,
    signal: AbortSignal,
  ): Promise<Vm>
  screenshot(caller: Caller, ref: string, signal: AbortSignal): AsyncIterable<Uint8Array>
  /** What passes, in the order in which it is asked. */
  firewall(caller: Caller, ref: string): VmFirewall
  log(caller: Caller, ref: string, bytes: number): Promise<{ text: string; size_bytes: number }>
  health(caller: Caller, ref: string, signal: AbortSignal): Promise<{ ok: boolean; detail: string; took_ms: number }>
}

export interface SnapshotService {
  list(caller: Caller, vm: string): { items: Snapshot[] }
  get(caller: Caller, vm: string, snapshot: string): Snapshot
  create(caller: Caller, vm: string, body: SnapshotCreate): Promise<Job>
  revert(caller: Caller, vm: string, snapshot: string, body: SnapshotRevert): Promise<Job>
  delete(caller: Caller, vm: string, snapshot: string): Promise<Job>
}

export interface StorageService {
  listPools(caller: Caller, q: ListQuery): Promise<PageOf<Pool>>
  getPool(caller: Caller, ref: string): Promise<Pool>
  createPool(caller: Caller, body: PoolCreate): Promise<Pool>
  editPool(caller: Caller, ref: string, body: { overcommit: number }, generation: IfGeneration): Promise<Pool>
  deletePool(caller: Caller, ref: string, generation: IfGeneration): Promise<void>
  listVolumes(caller: Caller, q: ListQuery & { pool?: string; vm?: string }): PageOf<Volume>
  getVolume(caller: Caller, ref: string): Promise<Volume>
  createVolume(caller: Caller, body: VolumeCreate): Promise<Job>
  cloneVolume(caller: Caller, ref: string, body: VolumeClone): Promise<Job>
  resizeVolume(caller: Caller, ref: string, body: { size_mib: number }): Promise<Job>
  deleteVolume(caller: Caller, ref: string, generation: IfGeneration): Promise<Job>
}

export interface ImageService {
  list(caller: Caller, q: ListQuery): PageOf<Image>
  get(caller: Caller, ref: string): Image
  recipes(): Promise<Recipe[]>
  build(caller: Caller, body: ImageBuild): Promise<Job>
  createKernel(
    caller: Caller,
    body: { name: string; description?: string; cmdline?: string; min_memory_mib?: number },
  ): Promise<Image>
  createIso(caller: Caller, body: { name: string; description?: string }): Promise<Image>
  upload(
    caller: Caller,
    ref: string,
    file: 'kernel' | 'initrd' | 'iso',
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void>
  delete(caller: Caller, ref: string, generation: IfGeneration): Promise<Job>
}

/** Images whose template was booted, for instant clones. */
export interface WarmService {
  warm(caller: Caller, ref: string, body: ImageWarm): Promise<Job>
  unwarm(caller: Caller, ref: string): Promise<Job>
}

/** Disks that come in and go out. */
export interface TransferService {
  importUrl(caller: Caller, body: ImageImport): Promise<Job>
  importFile(caller: Caller, query: ImageUpload, data: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<Job>
  imageFromVm(caller: Caller, body: ImageFromVm): Promise<Job>
  exportImage(caller: Caller, ref: string, format: ImportFormat, signal: AbortSignal): AsyncIterable<Uint8Array>
  uploadVolume(caller: Caller, query: VolumeUpload, data: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<Job>
  downloadVolume(caller: Caller, ref: string, format: ImportFormat, signal: AbortSignal): AsyncIterable<Uint8Array>
  changeVolume(caller: Caller, ref: string, to: { format?: 'qcow2' | 'raw'; pool?: string }): Promise<Job>
}

export interface NetworkService {
  list(caller: Caller, q: ListQuery): PageOf<Network>
  get(caller: Caller, ref: string): Network
  create(caller: Caller, body: NetworkCreate): Promise<Network>
  delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void>
}

export interface FirewallGroupService {
  list(caller: Caller, q: ListQuery): PageOf<FirewallGroup>
  get(caller: Caller, ref: string): FirewallGroup
  create(caller: Caller, body: FirewallGroupCreate): Promise<FirewallGroup>
  edit(caller: Caller, ref: string, body: FirewallGroupEdit, generation: IfGeneration): Promise<FirewallGroup>
  delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void>
}

export type JobProgress = { job: string; step: string; percent: number }

export interface JobService {
  /** Newest first. */
  list(caller: Caller, q: ListQuery & { state?: Job['state']; target?: string }): PageOf<Job>
  get(caller: Caller, id: string): Job
  /** The job once it ended, or as it is after `wait_s`. */
  wait(caller: Caller, id: string, wait_s: number, signal: AbortSignal): Promise<Job>
  log(caller: Caller, id: string, from: number): Promise<{ lines: string[]; next: number; ended: boolean }>
  cancel(caller: Caller, id: string): Promise<Job>
  /** The job that the caller's idempotency key made before, if it made one. */
  replay(caller: Caller): Promise<Job | undefined>
  /** Volatile: progress of jobs as it comes, for the event stream. */
  subscribe(listener: (progress: JobProgress) => void): () => void
  /** How far the jobs are that this host carries out. */
  underWay(): JobProgress[]
}

export interface HostService {
  get(): Promise<Host>
  check(): Promise<HostCheck>
  devices(): Promise<HostDevices>
  /** Shuts down every guest, in the reverse of the order they start in; what is wanted of them stays. */
  stopGuests(caller: Caller, body: { timeout_s?: number; total_s?: number }): Promise<Job>
}

export interface ClusterService {
  get(): Promise<Cluster>
  set(caller: Caller, body: ClusterEdit): Promise<Cluster>
  host(caller: Caller, ref: string): ClusterHost
  edit(caller: Caller, ref: string, body: { maintenance: boolean }): Promise<ClusterHost>
  plan(caller: Caller, ref: string, o?: { at_once?: number }): Promise<DrainPlan>
  drain(caller: Caller, ref: string, body: Drain): Promise<Job>
  undrain(caller: Caller, ref: string, body: MoveWishes): Promise<Job>
  token(caller: Caller, body: JoinTokenCreate): Promise<JoinToken>
  /** `lost`: it is off for ever; `drop`: what lay on its disks only is lost, and is forgotten. */
  remove(caller: Caller, ref: string, o?: { lost?: boolean; drop?: boolean }): Promise<void>
}

/** By which VMs are placed. */
export interface RuleService {
  list(caller: Caller, q: ListQuery): PageOf<Rule>
  get(caller: Caller, ref: string): Rule
  create(caller: Caller, body: RuleCreate): Promise<Rule>
  delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void>
}

export interface MetricsService {
  /** In Prometheus' text format. */
  text(): Promise<string>
}

export type Services = {
  cluster: ClusterService
  vms: VmService
  snapshots: SnapshotService
  storage: StorageService
  images: ImageService
  warm: WarmService
  transfers: TransferService
  networks: NetworkService
  firewallGroups: FirewallGroupService
  jobs: JobService
  host: HostService
  metrics: MetricsService
  rules: RuleService
}
